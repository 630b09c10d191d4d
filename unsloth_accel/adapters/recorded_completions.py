"""Recorded completions: what one process wrote is trained on by several, so that the two can be compared.

Each rank draws its own random numbers, so runs of one and of several processes never write the same. Here the one run's
completions are kept in a file, in the order of TRL's sampler, and the others take them from there. A generation's
prompts stand in that order over the ranks, too: accelerate deals out batches of as many as a rank writes at once
(accelerate/data_loader.py: `BatchSamplerShard`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..capabilities.probe import available
from ..errors import UnslothAccelError
from .generating import writes_completions

if TYPE_CHECKING:
    from transformers import Trainer

RECORDED = "UNSLOTH_ACCEL_COMPLETIONS"
"""Environment variable of processes that `verify` launches: the file of the completions."""


class OtherPrompts(UnslothAccelError):
    """The prompts of a generation are not those that were recorded."""

    on_every_rank = True


class RecordedCompletions:
    """Calls of a trainer's generation, in training, kept in `path`; with `replays` they are read from there instead.

    A line of the file is one generation over all ranks: `prompts` and `completions`, lists of token ids; `pair` where
    the trainer (GRPO's, not RLOO's) gets log probabilities beside them, or None in their place.
    """

    def __init__(self, trainer: Trainer, path: Path, *, replays: bool) -> None:
        self._trainer: Any = trainer
        self._path = path
        self._plain: Callable[..., Any] = trainer._generate_single_turn
        self._lines = path.read_text(encoding="utf-8").splitlines() if replays else None
        self._calls = 0
        trainer._generate_single_turn = self._generate
        pad = trainer.processing_class.pad_token_id
        if pad not in self._trainer.eos_token_ids and hasattr(trainer, "generation_config"):
            # A model without sense writes it, and Unsloth's loss leaves it out by its value, where TRL's knows by place
            # (unsloth_zoo/rl_replacements.py: `create_completion_attention_mask`).
            self._trainer.generation_config.suppress_tokens = [pad]

    def _generate(self, prompts: list[list[int]], *rest: Any, **named: Any) -> Any:
        if not self._trainer.model.training:
            return self._plain(prompts, *rest, **named)
        self._calls += 1
        if self._lines is None:
            found = self._plain(prompts, *rest, **named)
            with self._path.open("a", encoding="utf-8") as file:
                answers = found[0] if isinstance(found, tuple) else found
                told = {"prompts": _plain(prompts), "completions": _plain(answers), "pair": isinstance(found, tuple)}
                file.write(json.dumps(told) + "\n")
            return found
        line: dict[str, Any] = json.loads(self._lines[self._calls - 1]) if self._calls <= len(self._lines) else {}
        first = self._trainer.accelerator.process_index * len(prompts)
        own = slice(first, first + len(prompts))
        if line.get("prompts", [])[own] != _plain(prompts):
            raise OtherPrompts(
                f"generation {self._calls} has other prompts than one process had: its rows came in another order, or "
                "in another number. Fix: the same training.num_generations, batch and rows in both runs."
            )
        answers = line["completions"][own]
        return (answers, None) if line["pair"] else answers


def record_or_replay(trainer: Trainer) -> RecordedCompletions | None:
    """Record the completions of `trainer`, or take those of an earlier run, where `verify` launched this process."""
    path = os.environ.get(RECORDED)
    if not path or not writes_completions(trainer):
        return None
    available("completions of one run in another")
    return RecordedCompletions(trainer, Path(path), replays=Path(path).is_file())


def _plain(rows: Any) -> list[list[int]]:
    return [[int(token) for token in row] for row in rows]
