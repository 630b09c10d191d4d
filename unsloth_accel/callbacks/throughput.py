"""Throughput: real tokens per second, what a step's time goes into on each rank, and MFU.

A step of a rank is split by marks: `since` (the end of the step before), `logged` (that one's loss is there for its
log), `fetched` (its last rows are there), `begin` (the Trainer starts the first forward pass), `ready` (its gradients
are whole), `averaged` (those of all ranks are), `end`.

- data: seconds in the loader (`loader_clock`).
- compute: begin to ready, and averaged to end (`update`: clipping, optimizer).
- callbacks: seconds in callbacks between steps (`callback_clock`).
- wait: ready to averaged, fetched to begin, and since to logged without callbacks. The first is the all-reduce, in
  which a fast rank waits for the slowest and all of them for the network; the second is the Trainer's count of all
  ranks' tokens, where it waits for loaders; the third is its mean loss over the ranks, where it waits for one that was
  slow in its optimizer or its callbacks.
- The rest of `seconds` is the Trainer's own. Saving and evaluating are left out.

`ready` and `averaged` come from `adapters.out_of_memory`, which computes every micro-batch without meeting the other
ranks. Without it DDP averages inside of the last backward pass, all ranks end that at the same moment, and FSDP meets
in every layer: what of it is waiting can't be seen from the ranks' clocks, so there wait is not given (None) rather
than wrong, and compute includes it.

On a GPU marks are CUDA events, which cost microseconds and stop nothing; they are read one step later, or at a log,
where the Trainer has waited for the GPU itself.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from ..adapters.hook_types import Arguments, Control, Json, State, TrainerCallback
from ..adapters.token_count import count
from .callback_clock import CallbackClock
from .exchange import Exchange, Numbers
from .loader_clock import LoaderClock
from .mfu import ModelFlops, Peak, flops_of, peak_of
from .order import add_figures

if TYPE_CHECKING:
    import torch

    from ..adapters.out_of_memory import StepHalving


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimizer step of this rank."""

    step: int
    seconds: float
    data: float
    compute: float
    callbacks: float
    wait: float | None
    """Seconds of waiting for other ranks; None where it can't be known."""
    update: float
    """Seconds of `compute` after the gradients were averaged; 0 where that is not known."""
    tokens: int
    """Real tokens of this rank: neither padding nor rows without weight."""
    padded_tokens: int
    pairs: int
    """Pairs of real tokens with those before them in their row, and themselves."""

    @property
    def busy(self) -> float:
        """Seconds that this rank needed for itself."""
        return self.data + self.compute + self.callbacks


@dataclass
class _Open:
    """A step whose GPU may not be done yet."""

    step: int
    seconds: float
    data: float
    callbacks: float
    before_log: float
    """Seconds of `callbacks` up to the log of the step before."""
    marks: dict[str, Any]
    counts: Any
    padded: int


@dataclass
class Totals:
    """Sums over steps of one rank."""

    seconds: float = 0.0
    data: float = 0.0
    compute: float = 0.0
    callbacks: float = 0.0
    wait: float = 0.0
    tokens: int = 0
    flops: float = 0.0
    waits: bool = True
    times: list[float] = field(default_factory=list)

    def add(self, step: Step, flops: ModelFlops | None) -> None:
        self.seconds += step.seconds
        self.data += step.data
        self.compute += step.compute
        self.callbacks += step.callbacks
        self.wait += step.wait or 0.0
        self.waits = self.waits and step.wait is not None
        self.tokens += step.tokens
        self.flops += flops.of(step.tokens, step.pairs) if flops else 0.0
        self.times.append(step.seconds)

    @property
    def steps(self) -> int:
        return len(self.times)

    @property
    def median(self) -> float:
        """Median seconds of a step."""
        return statistics.median(self.times) if self.times else 0.0

    def share_of(self, name: str) -> float:
        """Share of the steps' seconds: `data`, `compute`, `callbacks` or `wait`."""
        return float(getattr(self, name)) / self.seconds if self.seconds else 0.0


class Throughput(TrainerCallback):
    """Adds to a log, if the last that has them is a second ago: `tokens_per_second` (all ranks),
    `tokens_per_second_per_gpu`, `step_seconds` (mean), `data_share`, `compute_share`, `callbacks_share`, `wait_share`
    (of the step, mean over ranks) and `mfu`, where known.

    `halving` is what `adapters.out_of_memory.halve_on_out_of_memory` returned; with several processes `wait` needs it.
    `listeners` get every `Step` of this rank when it can be read. `unsloth_accel.callbacks.figures_first(trainer)`
    (part of `adapt`) lets TensorBoard and others see the figures too. `exchange` is one that other callbacks use, by
    default its own.
    """

    adds_figures = True

    def __init__(self, halving: StepHalving | None = None, exchange: Exchange | None = None) -> None:
        self._ranks = (exchange or Exchange()).join(self._told)
        self.listeners: list[Callable[[Sequence[Step]], None]] = []
        self.recent: deque[Step] = deque(maxlen=1000)
        """Last steps of this rank."""
        self.total = Totals()
        self.window = Totals()
        """Totals since the last log that has figures."""
        self.flops: ModelFlops | str = "no step was trained"
        self.peak: Peak | str = "no step was trained"
        self._halving = halving if halving is not None and hasattr(halving, "timers") else None
        self._loader = LoaderClock(lambda: self._mark("fetched"))
        self._callbacks = CallbackClock()
        self._before_log = 0.0
        self._marks: dict[str, Any] = {}
        self._open: list[_Open] = []
        self._counts: list[Any] = []
        self._padded = 0
        self._since = self._last = 0.0
        self._on_gpu = False
        self._alone = True
        self._hook: Any = None

    @property
    def mfu_why(self) -> str:
        """Sentence on how MFU was computed, or why it wasn't."""
        if isinstance(self.peak, str):
            return self.peak
        if isinstance(self.flops, str):
            return self.flops
        return f"{self.flops.formula}, real tokens, no recomputing; peak of {self.peak.source}"

    def mfu(self, flops: float, gpu_seconds: float) -> float | None:
        """Return the MFU of `flops` in `gpu_seconds`, both over all ranks (whose cards are taken to be alike)."""
        if isinstance(self.peak, str) or isinstance(self.flops, str) or not gpu_seconds:
            return None
        return flops / (gpu_seconds * self.peak.flops)

    def on_train_begin(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        model = kwargs["model"]
        self.close()  # an earlier training of this trainer may have been interrupted
        self.forget()
        self._marks = {}
        self.total, self.window = Totals(), Totals()
        self.recent.clear()
        self._open.clear()
        self._on_gpu = args.device.type == "cuda"
        self._alone = args.world_size == 1
        self.flops, self.peak = flops_of(model), peak_of(args, model)
        self._hook = model.register_forward_pre_hook(self._count, with_kwargs=True)
        if self._halving is not None and self._mark not in self._halving.timers:
            self._halving.timers.append(self._mark)
        self._loader.start()
        self._callbacks.start()
        self._loader.take()
        self._callbacks.take()
        self._before_log = 0.0
        self._since = self._last = time.perf_counter()

    def on_step_begin(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        self._mark("begin")

    def on_step_end(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        counts = self._counted()
        self._mark("end")  # and so behind the counts: when it has passed, they are there
        now = time.perf_counter()
        self._open.append(
            _Open(
                step=state.global_step,
                seconds=now - self._since,
                data=self._loader.take(),
                callbacks=self._callbacks.take(),
                before_log=self._before_log,
                marks=self._marks,
                counts=counts,
                padded=self._padded,
            )
        )
        self._marks, self._padded, self._before_log = {"since": self._marks["end"]}, 0, 0.0
        self._since = self._last = now
        self._settle(keep=1 if self._on_gpu else 0)

    def on_log(self, args: Arguments, state: State, control: Control, logs: Json | None = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return
        self._mark("logged")
        self._before_log = self._callbacks.seconds
        ranks = self._ranks(state.global_step)
        if ranks is not None:
            if self.window.steps:
                add_figures(logs, state, self._figures(ranks))
            self.window = Totals()
        self._last = time.perf_counter()

    def on_evaluate(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        # What was done since the step's end, or its log, is no part of the next step.
        now = time.perf_counter()
        self._since += now - self._last
        self._last = now
        self._loader.take()
        self._callbacks.seconds = self._before_log
        self._marks = {name: self._marks[name] for name in ("since", "logged") if name in self._marks}

    on_save = on_evaluate

    def on_train_end(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        self._settle()
        self.close()

    def close(self) -> None:
        """Remove the hooks, which would stay after a run that ended by an error."""
        self._loader.stop()
        self._callbacks.stop()
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        if self._halving is not None and self._mark in self._halving.timers:
            self._halving.timers.remove(self._mark)

    def forget(self) -> None:
        """Drop the counts of a step that is done again."""
        self._counts, self._padded = [], 0

    def _told(self) -> list[float]:
        self._settle()
        return [float(getattr(self.window, name)) for name in _SHARED]

    def _figures(self, numbers: Numbers) -> dict[str, float]:
        own = self.window
        ranks = [dict(zip(_SHARED, row, strict=True)) for row in numbers]
        seconds = max(rank["seconds"] for rank in ranks)
        if not seconds:
            return {}
        tokens = sum(rank["tokens"] for rank in ranks)
        figures = {
            "tokens_per_second": round(tokens / seconds, 1),
            "tokens_per_second_per_gpu": round(tokens / seconds / len(ranks), 1),
            "step_seconds": round(seconds / own.steps, 4),
        }
        for name in ("data", "compute", "callbacks", *(("wait",) if own.waits else ())):
            figures[f"{name}_share"] = round(sum(r[name] / r["seconds"] for r in ranks) / len(ranks), 4)
        mfu = self.mfu(sum(rank["flops"] for rank in ranks), seconds * len(ranks))
        return figures if mfu is None else {**figures, "mfu": round(mfu, 4)}

    def _mark(self, name: str) -> None:
        if not self._on_gpu:
            self._marks[name] = time.perf_counter()
            return
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks[name] = event

    def _count(self, model: torch.nn.Module, args: tuple[Any, ...], inputs: Mapping[str, Any]) -> None:
        import torch

        # A reference's pass, which computes no gradients, reads the same rows once more.
        learns = model.training and torch.is_grad_enabled()
        if learns and getattr(inputs.get("input_ids"), "ndim", 0) == 2:
            self._counts.append(count(inputs))
            self._padded += inputs["input_ids"].numel()

    def _counted(self) -> Any:
        """Tokens and pairs of this step: a tensor of two, on its way from the GPU."""
        import torch

        counts, self._counts = self._counts, []
        if not counts:
            return torch.zeros(2, dtype=torch.int64)
        total = torch.stack(counts).sum(0)
        if not total.is_cuda:
            return total
        arriving = torch.empty(2, dtype=torch.int64, pin_memory=True)
        return arriving.copy_(total, non_blocking=True)

    def _settle(self, keep: int = 0) -> None:
        """Read all steps but the last `keep`."""
        if self._on_gpu and keep == 0:
            import torch

            torch.cuda.current_stream().synchronize()  # at a log, whose loss was read just now: nothing is left
        done = self._open[: len(self._open) - keep]
        if self._on_gpu:
            # The Trainer waits for the GPU in most steps, but nothing makes it do so in all.
            done = list(takewhile(lambda one: one.marks["end"].query(), done))
        if not done:
            return
        del self._open[: len(done)]
        steps = [self._closed(one) for one in done]
        flops = None if isinstance(self.flops, str) else self.flops
        for step in steps:
            self.recent.append(step)
            self.total.add(step, flops)
            self.window.add(step, flops)
        for listener in self.listeners:
            listener(steps)

    def _closed(self, one: _Open) -> Step:
        tokens, pairs = one.counts.tolist()
        compute = between(one.marks, "begin", "end")
        wait: float | None = None
        if self._alone:
            wait = 0.0
        elif "averaged" in one.marks:
            averaging = between(one.marks, "ready", "averaged")
            compute -= averaging
            wait = averaging + between(one.marks, "fetched", "begin")
            wait += max(0.0, between(one.marks, "since", "logged") - one.before_log)
        return Step(
            step=one.step,
            seconds=one.seconds,
            data=min(one.data, one.seconds),
            compute=compute,
            callbacks=min(one.callbacks, one.seconds),
            wait=wait,
            update=between(one.marks, "averaged", "end"),
            tokens=int(tokens),
            padded_tokens=one.padded,
            pairs=int(pairs),
        )


_SHARED = ("seconds", "data", "compute", "callbacks", "wait", "tokens", "flops")


def between(marks: Mapping[str, Any], first: str, second: str) -> float:
    """Return the seconds from one mark to another, both times or both CUDA events; 0 where one is missing."""
    if first not in marks or second not in marks:
        return 0.0
    if isinstance(marks[first], float):
        return max(0.0, float(marks[second] - marks[first]))
    return max(0.0, float(marks[first].elapsed_time(marks[second])) / 1000)
