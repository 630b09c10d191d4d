"""Steps of trainers whose model writes completions (`adapters.generating`), in parts, where memory is out.

TRL's GRPOTrainer writes and scores a step's completions inside of its first micro-batch, all ranks together, and then
computes gradients from what it wrote. What may be repeated by one rank alone is only the latter, so the two are taken
apart here: `adapters.out_of_memory` has a micro-batch written once, and computes it in as many parts as it must.

A loss of sums over the tokens of all ranks (`SUMS`; dapo, TRL's usual, is one) is that of its parts. One of means over
the rows or tokens of a micro-batch isn't, and Unsloth's backward pass takes no factor that would weigh its parts
(unsloth_zoo/rl_replacements.py: `UnslothEfficientGRPO`), so there the run ends.
"""

from __future__ import annotations

import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from heapq import nlargest
from typing import TYPE_CHECKING, Any

from ..capabilities.probe import available
from ..errors import counted
from ..hardware.ranks import of_every_rank
from .generating import text_of
from .lack_of_memory import is_lack_of_memory
from .micro_batches import WRITTEN

if TYPE_CHECKING:
    import torch
    from transformers import Trainer

SUMS = ("dapo", "cispo", "vespo")
"""Losses that are sums over tokens, divided by those of all ranks (trl/trainer/grpo_trainer.py: `_compute_loss`)."""
_MEANS = ("_entropy_bonus_enabled", "aux_loss_enabled")
"""Attributes of a GRPOTrainer that say of a mean over the micro-batch in its loss."""
_TRIED = 64
"""Prompts with the most characters, among which the one with the most tokens is looked for."""


def why_whole(trainer: Any) -> str | None:
    """Return why the micro-batches of `trainer`, one that writes completions, can't be computed in parts; None where
    they can."""
    args = trainer.args
    loss = getattr(args, "loss_type", None)
    if loss not in SUMS:
        said = f"loss_type={loss}" if loss else type(trainer).__name__
        return f"the loss of a micro-batch is a mean over it ({said}), so those of its parts don't add up to it"
    mean = next((name for name in _MEANS if getattr(trainer, name, False)), None)
    if mean or getattr(args, "top_entropy_quantile", 1.0) < 1:
        return "the loss has a part that is a mean over a micro-batch, or its quantile"
    if args.use_vllm:
        return "vLLM writes, and what it takes of a GPU beside the training can't be halved"
    return None if available("completions of a step in parts") else "the installed TRL lacks a name that it needs"


class WrittenSteps:
    """The micro-batches of `trainer`: written by all ranks together, computed by each alone, in parts.

    `part` stands for the trainer's own `training_step`. What its loss notes for the log is kept apart until `share`,
    which makes it that of all ranks.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._plain: Callable[..., torch.Tensor] = trainer.training_step
        self._noted: dict[str, list[float]] = defaultdict(list)
        trainer._generate_single_turn = WritesInParts(trainer)

    def written(self, model: torch.nn.Module, inputs: Any) -> dict[str, Any]:
        """Return a micro-batch with its completions and their advantages; every rank must call it. One that has them
        already is as it was."""
        if isinstance(inputs, Mapping) and WRITTEN in inputs:
            return dict(inputs)
        started = time.perf_counter()
        model.train()  # by which the trainer knows that it trains, also after an evaluation
        found: dict[str, Any] = self._trainer._prepare_inputs(inputs)
        self._noted["step_time"].append(time.perf_counter() - started)
        return found

    def part(self, model: torch.nn.Module, inputs: dict[str, Any], *rest: Any) -> torch.Tensor:
        """Add the gradients of a micro-batch that is written, or of a part of one; returns its loss."""
        trainer = self._trainer
        known, step = trainer._metrics["train"], trainer._step
        before = {name: len(values) for name, values in known.items()}
        try:
            with as_written(trainer):
                return self._plain(model, inputs, *rest)
        finally:
            trainer._step = step
            for name, values in known.items():
                self._noted[name] += values[before.get(name, 0) :]
                del values[before.get(name, 0) :]

    def forget(self) -> None:
        """Drop the figures of a step that was begun."""
        self._noted.clear()

    def end(self) -> None:
        """Count a micro-batch, which may have been computed in several parts."""
        self._trainer._step += 1

    def share(self) -> None:
        """Note the figures of a step, of all ranks; each must call it."""
        own = {name: _of_parts(name, values) for name, values in self._noted.items() if values}
        self._noted.clear()
        everyone: list[dict[str, float]] = of_every_rank(own)
        for name in own:
            values = [one[name] for one in everyone if name in one]
            self._trainer._metrics["train"][name].append(_joined(name, values))


def _of_parts(name: str, values: list[float]) -> float:
    return sum(values) if name == "step_time" else _joined(name, values)


def _joined(name: str, values: list[float]) -> float:
    """Return the figure of all of `values`; NaN, a figure of nothing, doesn't count."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return math.nan
    if name == "step_time" or name.endswith("max"):
        return max(known)
    return min(known) if name.endswith("min") else sum(known) / len(known)


@contextmanager
def as_written(trainer: Any) -> Iterator[None]:
    """Inside, micro-batches of `trainer` are taken as they are: their completions have been written."""
    before = vars(trainer).get("_prepare_inputs")
    trainer._prepare_inputs = lambda inputs: inputs
    try:
        yield
    finally:
        if before is None:
            del trainer._prepare_inputs
        else:
            trainer._prepare_inputs = before


class WritesInParts:
    """Calls the generation of `trainer` for fewer prompts at once where memory is out; each rank for itself, since no
    rank waits for another in it. `parts`: in how many, from now on."""

    def __init__(self, trainer: Any) -> None:
        self.parts = 1
        self._trainer = trainer
        self._whole: Callable[..., Any] = trainer._generate_single_turn

    def __call__(self, prompt_ids: list[Any], images: Any, multimodal_fields: Any, *rest: Any, **named: Any) -> Any:
        """Return the completions' token ids, and None or log probabilities, as TRL's `_generate_single_turn` does."""
        if images or multimodal_fields:
            return self._whole(prompt_ids, images, multimodal_fields, *rest, **named)
        while True:
            size = max(1, math.ceil(len(prompt_ids) / self.parts))
            starts = range(0, len(prompt_ids), size)
            try:
                found = [
                    self._whole(prompt_ids[start : start + size], images, multimodal_fields, *rest, **named)
                    for start in starts
                ]
            except RuntimeError as error:
                if size == 1 or not is_lack_of_memory(error):
                    raise
            else:
                return _together(found)
            self._take_less(size)  # only here, with the error gone and all that its frames held

    def _take_less(self, size: int) -> None:
        from accelerate.utils.memory import clear_device_cache

        clear_device_cache(garbage_collection=True)
        self.parts *= 2
        at_once = counted(math.ceil(size / 2), "completion")
        rank, step = self._trainer.accelerator.process_index, self._trainer.state.global_step + 1
        told = f"out of memory while {counted(size, 'completion')} were written at once, in step {step}"
        print(f"unsloth_accel: rank {rank}: {told}; from here on {at_once}", file=sys.stderr, flush=True)


def _together(found: list[Any]) -> Any:
    """Return what several calls of `_generate_single_turn` gave as one."""
    if len(found) == 1 or not isinstance(found[0], tuple):
        return found[0] if len(found) == 1 else [row for rows in found for row in rows]
    lists = zip(*found, strict=True)
    return tuple(None if one[0] is None else [row for rows in one for row in rows] for one in map(list, lists))


def longest_written(trainer: Trainer, limit: int | None) -> dict[str, Any]:
    """Return a micro-batch as long as any that `trainer` will have, as if written: its longest prompts, each with the
    longest completion that is allowed. `limit`: the most tokens of both together, which prompts that are streamed are
    taken to leave."""
    import torch

    given: Any = trainer
    args, device = given.args, given.accelerator.device
    rows, completion = args.per_device_train_batch_size, given.max_completion_length
    prompt = _longest_prompt(given)
    if prompt is None:
        prompt = max(1, (limit or completion + 1) - completion)
    tokenizer = given.processing_class
    ends = {tokenizer.pad_token_id, tokenizer.eos_token_id}
    token = next(one for one in range(len(tokenizer)) if one not in ends)
    ids = torch.full((rows, prompt + completion), token, dtype=torch.long, device=device)
    mask = torch.ones_like(ids)
    made: dict[str, Any] = {
        "prompt_ids": ids[:, :prompt],
        "prompt_mask": mask[:, :prompt],
        WRITTEN: ids[:, prompt:],
        "completion_mask": mask[:, prompt:],
        "advantages": torch.linspace(-1, 1, rows, device=device),
        "num_items_in_batch": torch.tensor(rows * completion * given.accelerator.num_processes, device=device),
    }
    logps = torch.zeros((rows, completion), device=device)
    if args.steps_per_generation > args.gradient_accumulation_steps or given.num_iterations > 1:
        made["old_per_token_logps"] = logps
    if given.beta:
        made["ref_per_token_logps"] = logps
    return made | {"old_logps": logps.sum(1)}  # which RLOO takes


def _longest_prompt(trainer: Any) -> int | None:
    """Return the most tokens of a training prompt; None where they are streamed."""
    if not hasattr(trainer.train_dataset, "__len__"):
        return None
    tokenizer = trainer.processing_class

    def tokens(prompt: Any) -> int:
        if isinstance(prompt, str):
            return len(tokenizer(prompt)["input_ids"])
        said = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        return len(tokenizer(said, add_special_tokens=False)["input_ids"])

    return max(map(tokens, nlargest(_TRIED, trainer.train_dataset["prompt"], key=lambda one: len(text_of(one)))))
