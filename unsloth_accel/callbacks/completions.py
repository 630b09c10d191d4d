"""Completions: where a step's seconds go that writes completions, some of them in a file, and what keeps them from
teaching anything."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..adapters.generating import text_of, writes_completions
from ..adapters.hook_types import Arguments, Control, Json, State, TrainerCallback
from ..artifacts.log_file import LogFile, finite
from ..artifacts.run_directory import RunDirectory
from ..capabilities.probe import available
from ..config.run_config import RunConfig
from ..errors import counted
from ..rewards.functions import GuardedReward
from .order import add_figures
from .rank_log import RankLog

if TYPE_CHECKING:
    from transformers import Trainer

KEPT = 4
"""Completions of a log that are kept in the file."""
PATIENCE = 5
"""Logs in a row after which what teaches nothing is told."""


def watch_completions(trainer: Trainer, run: RunConfig, log: RankLog) -> None:
    """Add `Completions` to `trainer`, for `run`, and have faults of its rewards told by `log`."""

    def tell(message: str) -> None:
        if log.rank == 0:  # which all ranks know
            log.warn("reward", message, trainer.state.global_step)

    for one in trainer.reward_funcs:
        if isinstance(one, GuardedReward):
            one.warn = tell
    trainer.add_callback(Completions(trainer, log, RunDirectory(run.output_dir).completions))


class Completions(TrainerCallback):
    """Adds to a log `generating_seconds`, `scoring_seconds` and `updating_seconds`: the mean step's seconds of writing
    completions, of their rewards, and of all else, on the rank that took longest for it.

    Rank 0 writes to `path` a line of JSON for some completions of each log, best and worst first: `step`, `prompt`,
    `completion`, `rewards` by function, `advantage`. `log` is warned where for five logs in a row no completion ended
    by itself, or no group had a signal: those that are compared had all one reward, or none.
    """

    adds_figures = True

    def __init__(self, trainer: Trainer, log: RankLog, path: str | Path) -> None:
        self._trainer: Any = trainer
        self._log = log
        self._path = Path(path)
        self._file: LogFile | None = None
        self._seconds: dict[str, float] = defaultdict(float)
        self._steps = 0
        self._since = 0.0
        self._in_a_row: dict[str, int] = defaultdict(int)
        if writes_completions(trainer):
            for part, name in (("generating", "_generate"), ("scoring", "_calculate_rewards")):
                setattr(trainer, name, self._timed(part, getattr(trainer, name)))

    def _timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return call(*arguments, **named)
            finally:
                if self._trainer.model.training:
                    self._seconds[part] += time.perf_counter() - started

        return timed

    def on_train_begin(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        self._steps, self._since = 0, time.perf_counter()
        self._seconds.clear()
        self._in_a_row.clear()
        if state.is_world_process_zero:
            self._file = LogFile(self._path, anew=not state.global_step)

    def on_step_end(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        now = time.perf_counter()
        self._seconds["updating"] += now - self._since
        self._since = now
        self._steps += 1

    def on_evaluate(
        self, args: Arguments, state: State, control: Control, metrics: Json | None = None, **kwargs: Any
    ) -> None:
        self._since = time.perf_counter()
        if metrics is not None:  # older TRL (1.0) has the reward in what it logs alone, and by it the best is chosen
            logged = state.log_history[-1] if state.log_history else {}
            metrics |= {name: value for name, value in logged.items() if name.startswith("eval_")} | metrics

    on_save = on_evaluate

    def on_log(self, args: Arguments, state: State, control: Control, logs: Json | None = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs or not self._steps:
            return
        import torch

        parts = {part: self._seconds[part] / self._steps for part in ("generating", "scoring", "updating")}
        parts["updating"] = max(0.0, parts["updating"] - parts["generating"] - parts["scoring"])
        accelerator = self._trainer.accelerator
        own = torch.tensor([[*parts.values()]], dtype=torch.float64, device=accelerator.device)
        slowest = accelerator.gather(own.float()).max(0).values.tolist()
        add_figures(logs, state, {f"{name}_seconds": round(one, 4) for name, one in zip(parts, slowest, strict=True)})
        self._seconds.clear()
        self._steps = 0
        self._tell(logs, state.global_step, args)
        if self._file is not None:
            self._file.add(self._some(state.global_step))

    def _tell(self, logs: Json, step: int, args: Any) -> None:
        """Warn, on rank 0, of what has taught nothing for some logs in a row, once each."""
        if args.process_index:
            return
        limit = counted(getattr(args, "max_completion_length", None) or 0, "token")
        told = {
            "completions/clipped_ratio": f"all completions of {PATIENCE} logs in a row were cut at {limit}, so "
            "none shows its end to a reward. Fix: a larger training.max_completion_length, a prompt that asks for "
            "shorter answers, or a reward for them (soft_overlong_punishment)",
            "frac_reward_zero_std": f"for {PATIENCE} logs in a row all completions of each prompt had the same reward: "
            "nothing is learned from them. Fix: prompts that the model answers rightly now and then, a reward with "
            "steps between right and wrong, a larger training.num_generations or training.temperature",
            "reward": f"for {PATIENCE} logs in a row no completion had a reward: nothing is learned. Fix: correct the "
            "reward functions, which failed (that was told) or returned None for each; rewards.on_error=stop ends a "
            "run where one fails",
        }
        for name, message in told.items():
            share = logs.get(name)
            nothing = share is not None and share >= 1
            if name == "reward":  # without any, TRL counts no group as one without a signal
                nothing = name in logs and finite(share) is None
            self._in_a_row[name] = self._in_a_row[name] + 1 if nothing else 0
            if self._in_a_row[name] == PATIENCE:
                self._log.warn("completions", message, step)

    def _some(self, step: int) -> list[dict[str, Any]]:
        """Return some of the completions that were written last, best and worst first."""
        if not available("completions that are kept"):
            return []
        held = self._trainer._logs
        prompts, answers, advantages = (list(held[name]) for name in ("prompt", "completion", "advantages"))
        rewards = {name: list(values) for name, values in held["rewards"].items()}
        return [
            {
                "step": step,
                "prompt": text_of(prompts[index]),
                "completion": text_of(answers[index]),
                "rewards": {name: finite(round(values[index], 4)) for name, values in rewards.items()},
                "advantage": finite(round(advantages[index], 4)),
            }
            for index in _chosen(advantages)
        ]


def _chosen(advantages: Sequence[float]) -> list[int]:
    """Return the positions of the highest and the lowest, and of the first others, up to `KEPT`."""
    order = sorted(range(len(advantages)), key=lambda index: -advantages[index])
    return list(dict.fromkeys([*order[:1], *order[-1:], *range(len(advantages))]))[:KEPT]
