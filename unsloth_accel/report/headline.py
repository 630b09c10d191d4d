"""What stands at the top of a page: the run in a line, and its key figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..errors import counted
from .figures import Figures
from .numbers import duration, figure, gib, percent
from .run_record import Recorded, at, number, text

Card = tuple[str, str, str]
"""A name, the figure, and what it means."""


def short_name(model: str) -> str:
    """A hub id as it is, a directory's last part."""
    path = Path(model)
    is_directory = path.is_absolute() or model.startswith((".", "~")) or len(path.parts) > 2
    return path.name if is_directory else model or "a run"


def facts(run: Recorded, found: Figures) -> list[str]:
    """What ran where, in a few words each."""
    batch = run.batch.get("global_size")
    precision = text(at(run.plan, "mixed_precision"))
    told = [found.strategy, found.where]
    told += [f"{counted(batch, 'row')} per step"] if batch else []
    told += ["no mixed precision" if precision == "no" else precision]
    told += [f"begins with the adapter {adapter}"] if (adapter := text(at(run.plan, "adapter"))) else []
    told += ["4-bit base"] if at(run.run, "model", "load_in_4bit") else []
    kept, blocks = (number(at(run.results, "training", key)) for key in ("keep_activations", "blocks"))
    told += [f"{kept:g} of {blocks:g} blocks keep their activations"] if kept is not None and blocks else []
    told += [f"trained in {counted(run.attempts, 'part')}"] if run.attempts > 1 else []
    told += [text(at(run.results, "training", "stopped_early"))]
    return [fact for fact in told if fact]


def cards(found: Figures) -> Iterator[Card]:
    """The key figures that are known."""
    over = f"mean of the first and last {found.loss_over} logged steps" if found.loss_over > 1 else "first and last"
    if found.reward_last is not None:  # a loss over advantages passes through 0, whatever is learned
        yield "training reward", _change(found.reward_first, found.reward_last, _three), over
        yield from _held_out("reward", found.held_reward, found.rewarded)
    else:
        if found.loss_first is not None:
            yield "training loss", _change(found.loss_first, found.loss_last, _three), over
        yield from _held_out("loss", found.held_loss, found.evaluated)
    before, after = found.held_pairs
    if after is not None:
        yield "held-out pairs", _change(before, after, percent), "the chosen answer wins"
    before, after = found.held_accuracy
    if after is not None:
        many = f"of {counted(found.held_rows, 'held-out answer')}" if found.held_rows else _when(before)
        yield "exact match", _change(before, after, percent), many
    if found.tokens_per_second is not None:
        yield "tokens per second", figure(found.tokens_per_second), _speed(found)
    if found.seconds is not None:
        each = f", {_three(found.step_seconds)} s each" if found.step_seconds is not None else ""
        steps = " ".join(filter(None, (counted(found.steps, "step"), found.parts)))
        yield "training time", duration(found.seconds), steps + each
    if found.peak_gib is not None:
        yield "peak memory", gib(found.peak_gib), "allocated by torch, per GPU"


def _held_out(
    name: str, ends: tuple[float | None, float | None], evaluated: Sequence[tuple[int, float]]
) -> Iterator[Card]:
    """Yield a held-out figure from before and after training, else from the evaluations between."""
    before, after = ends
    if after is not None:
        yield f"held-out {name}", _change(before, after, _three), _when(before)
    elif evaluated:
        (first, before), (last, after) = evaluated[0], evaluated[-1]
        one = len(evaluated) == 1
        steps = f"at step {last}" if one else f"at steps {first} and {last}"
        yield f"held-out {name}", _change(None if one else before, after, _three), steps


def _speed(found: Figures) -> str:
    parts = []
    if found.processes > 1 and found.tokens_per_second_per_gpu is not None:
        unit = "GPU" if found.device == "cuda" else "process"
        parts.append(f"{figure(found.tokens_per_second_per_gpu)} per {unit}")
    if found.mfu is not None:
        parts.append(f"MFU {percent(found.mfu)}")
    return ", ".join(parts) or "padding left out"


def _change(before: float | None, after: float | None, shown: Callable[[float | None], str]) -> str:
    return shown(after) if before is None else f"{shown(before)} → {shown(after)}"


def _when(before: float | None) -> str:
    return "after training" if before is None else "before and after training"


def _three(value: float | None) -> str:
    return figure(value, 3)
