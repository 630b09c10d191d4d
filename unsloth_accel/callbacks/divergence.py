"""Divergence: stops a run that trains into nothing, before it overwrites what was good."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..adapters.hook_types import Arguments, Control, Json, State, TrainerCallback
from ..adapters.rank_checks import is_sharded
from ..artifacts.checkpoints import checkpoints
from ..artifacts.run_directory import step_of
from ..errors import UnslothAccelError
from .rank_log import RankLog

if TYPE_CHECKING:
    import torch


class DivergenceError(UnslothAccelError):
    """Training has diverged; raised on every rank in the same step."""

    on_every_rank = True


class LossRule:
    """Test for a loss far above what it was: more than `factor` times the median of the last `window` logged ones *and*
    more than `margin` above it, `patience` logs in a row. Losses that are far above don't enter the median.

    The defaults are meant never to stop a run that would have recovered: a loss of 1 has to stay above 3 for ten logs.
    """

    def __init__(self, factor: float = 3.0, margin: float = 1.0, window: int = 50, patience: int = 10) -> None:
        self.factor = factor
        self.margin = margin
        self.patience = patience
        self.above = 0
        """Number of logs in a row so far."""
        self._recent: deque[float] = deque(maxlen=window)

    LEAST = 5
    """Fewest logged losses for a median that a loss is compared with."""

    @property
    def median(self) -> float | None:
        return statistics.median(self._recent) if len(self._recent) >= self.LEAST else None

    def diverged(self, loss: float) -> bool:
        """Take the next logged loss, a finite one; return whether training has diverged."""
        median = self.median
        if median is None or loss <= max(self.factor * median, median + self.margin):
            self._recent.append(loss)
            self.above = 0
            return False
        self.above += 1
        return self.above >= self.patience


class Divergence(TrainerCallback):
    """Raises `DivergenceError`, on every rank in the same step, when

    - a logged loss or gradient norm is NaN or infinite (in fp16 a gradient norm `patience` times in a row: its scaler
      skips such steps), or
    - a trainable weight is, on any rank: looked at in every step that saves. (The Trainer by default leaves NaN out of
      the loss that it logs, `logging_nan_inf_filter`; but a weight that is NaN makes every later gradient norm so.) Or
    - `LossRule` says so.

    A step that is to be saved is looked at first, and nothing is saved while the loss is far above, so checkpoints
    stay good; the error names the last one. `log` gets it as a line.
    """

    def __init__(self, rule: LossRule | None = None, log: RankLog | None = None) -> None:
        self.rule = rule or LossRule()
        self._log = log
        self._overflows = 0
        self._good = 0

    def on_train_begin(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        self._good = state.global_step
        self._overflows = 0

    def on_step_end(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        if control.should_save:
            self._check_weights(args, state, kwargs["model"])
            control.should_save = not self.rule.above

    on_epoch_end = on_step_end

    def on_log(self, args: Arguments, state: State, control: Control, logs: Json | None = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return
        if "grad_norm" not in logs:
            self._check_weights(args, state, kwargs["model"])
        loss, norm = float(logs["loss"]), float(logs.get("grad_norm", 0.0))
        self._overflows = 0 if math.isfinite(norm) else self._overflows + 1
        # Loss and gradient norm are of all ranks together, so that each comes to the same end here.
        if not math.isfinite(loss):
            self._stop(args, state, f"the loss is {loss}")
        if self._overflows >= (self.rule.patience if args.fp16 else 1):
            self._stop(args, state, f"the gradient norm is {norm}")
        median = self.rule.median
        if self.rule.diverged(loss):
            text = f"the loss is {loss:.4g}, {self.rule.above} logs in a row far above its median of {median:.4g}"
            self._stop(args, state, text, since=self._good)
        if self.rule.above:
            control.should_save = False
        else:
            self._good = state.global_step

    def _check_weights(self, args: Arguments, state: State, model: torch.nn.Module) -> None:
        if not everywhere_finite(p for p in model.parameters() if p.requires_grad):
            self._stop(args, state, "trained weights are NaN or infinite")

    def _stop(self, args: Arguments, state: State, what: str, since: int | None = None) -> None:
        """Raise the error; checkpoints after step `since` are not good, though finite."""
        latest = state.global_step if since is None else since
        found = [path for path in checkpoints(args.output_dir or ".") if (step_of(path) or 0) <= latest]
        last = found[-1] if found else None
        where = f"The last good checkpoint is {last}" if last else "There is no good checkpoint"
        message = (
            f"diverged at step {state.global_step}: {what}; all was well at step {self._good}. {where}. "
            f"Fix: a lower training.learning_rate (now {args.learning_rate:g}), more training.warmup_steps, a "
            "lower training.max_grad_norm, or rows without faults"
            + (f", and go on with {last.name} (training.resume=true)." if last else ".")
        )
        if self._log is not None:
            self._log.warn("divergence", message, state.global_step, event="error", last_good=last and str(last))
        raise DivergenceError(message)


def everywhere_finite(parameters: Iterable[torch.nn.Parameter]) -> bool:
    """Return whether every element is finite, on every rank; all ranks must call it, and get the same answer."""
    import torch
    from accelerate import PartialState

    own = [p.detach().to_local() if is_sharded(p) else p.detach() for p in parameters]
    own = [tensor for tensor in own if tensor.numel()]
    state = PartialState()
    # The largest magnitude of each: NaN and infinity come through, and nothing overflows.
    finite = torch.ones((), device=state.device)
    if own:
        largest = torch.stack([torch.linalg.vector_norm(one, float("inf")).float().to(state.device) for one in own])
        finite = largest.isfinite().all().float()
    if state.num_processes > 1:
        torch.distributed.all_reduce(finite, op=torch.distributed.ReduceOp.MIN)
    return bool(finite.item())
