"""Two runs side by side: which figures differ by how much, which settings differ, and what can't be compared."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup

from ..artifacts.checkpoints import Checkpoint
from ..artifacts.resume_facts import LENGTH, other_rows, rows_as_written
from ..errors import counted
from . import numbers
from .curves import smoothing
from .figures import Figures, column, figures, median, throughput
from .headline import facts, short_name
from .rendering import rendered
from .run_context import versions
from .run_record import Recorded, at, text, values
from .svg import line_chart

NOT_SETTINGS = ("output_dir",)
"""Keys of run.yaml that always differ between two runs."""
PLACES = ("model.name", "path", "chat_template")
"""Ends of keys of run.yaml that may hold a path, which has several spellings."""
WARM_UP = 0.1
"""The part of a run that its speed leaves out: compilation and first allocations."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A figure of both runs."""

    name: str
    a: str
    b: str
    ratio: str = ""


def comparison_page(a: Recorded, b: Recorded) -> str:
    """The whole page as HTML; `a` is what `b` is measured by."""
    found = (figures(a), figures(b))
    reasons = not_comparable(a, b)
    return rendered(
        "compare.html",
        title=f"{a.directory.absolute().name} against {b.directory.absolute().name}",
        sides=[
            (letter, run.directory.absolute().name, short_name(one.model), facts(run, one), one.status)
            for letter, run, one in zip("AB", (a, b), found, strict=True)
        ],
        verdict=verdict(a, b),
        reasons=reasons,
        charts=charts(a, b),
        rows=rows_of(a, b, *found),
        settings=differing(a, b),
        versions=list(_differing(versions(a), versions(b))),
    )


def verdict(a: Recorded, b: Recorded) -> str:
    """What the two runs show, in a sentence or two that claim no more than they do."""
    said = []
    first, second = speed(a), speed(b)
    if first and second:
        ratio = second / first
        here, there = figures(a).where, figures(b).where
        on = "" if here == there else f", on {there} against {here}"
        near = abs(ratio - 1) < 0.01
        what = "as many tokens/s as A, within 1\u00a0%" if near else f"{ratio:.2f}\u00a0× the tokens/s of A"
        said.append(f"B trains {what}{on}.")
    close = loss_difference(a, b)
    if close:
        steps, level, average, largest = close
        over = f"Over the {counted(steps, 'logged step')} that both have"
        higher = "higher" if level > 0 else "lower"
        mean_loss = f"B's mean loss is {_difference(abs(level))} {higher}" if level else "the mean loss is the same"
        single = f"single steps differ by {_difference(average)} on average, {_difference(largest)} at most"
        said.append(f"{over}, {mean_loss}; {single}.")
        if _batch_reasons(a, b):
            said.append("But these are not steps over the same rows.")
    return " ".join(said) or "Too little was logged to set the two runs side by side."


def speed(run: Recorded) -> float | None:
    """Median real tokens/s once the run is warm; None where it was not logged."""
    rates = throughput(run).ys
    return median(rates[int(len(rates) * WARM_UP) :])


def loss_difference(a: Recorded, b: Recorded) -> tuple[int, float, float, float] | None:
    """How many logged steps both have, how far B's mean loss lies above A's, and the mean and largest difference of
    single steps; all as parts of A's."""
    first, second = (column(run.steps, "loss", "") for run in (a, b))
    theirs = dict(zip(second.xs, second.ys, strict=True))
    pairs = [(x, theirs[step]) for step, x in zip(first.xs, first.ys, strict=True) if x and step in theirs]
    pairs = [(x, y) for x, y in pairs if math.isfinite(x) and math.isfinite(y)]
    if not pairs:
        return None
    parts = [abs(y - x) / abs(x) for x, y in pairs]
    level = math.fsum(y for _, y in pairs) / math.fsum(x for x, _ in pairs) - 1
    return len(pairs), level, statistics.fmean(parts), max(parts)


def not_comparable(a: Recorded, b: Recorded) -> list[str]:
    """In which respects one run says nothing about the other."""
    found = _batch_reasons(a, b)
    names = [_place(at(run.run, "model", "name")) for run in (a, b)]
    if names[0] != names[1]:
        found.append("Other models: neither loss, speed nor memory can be compared.")
    lengths = [at(run.run, *LENGTH.split(".")) for run in (a, b)]
    if lengths[0] != lengths[1]:
        found.append(
            f"Rows of up to {lengths[0]} tokens against {lengths[1]}: other tokens are trained, at another speed."
        )
    for letter, run in (("A", a), ("B", b)):
        end = figures(run).status
        if end != "finished":
            how = "failed" if end == "failed" else "has not come to its end"
            found.append(f"{letter} {how}: its last figures are not those of a whole run.")
    return found


def _batch_reasons(a: Recorded, b: Recorded) -> list[str]:
    """Why a step of one is not a step of the other."""
    found = []
    written = [rows_as_written(run.run) for run in (a, b)]
    recorded = [Checkpoint(run.checkpoint).made_with if run.checkpoint else {} for run in (a, b)]
    both = recorded[0].keys() & recorded[1].keys()  # which tell files of one name apart, and know one by its contents
    first, second = (one | {key: told[key] for key in both} for one, told in zip(written, recorded, strict=True))
    if others := [key for key in other_rows(first, second) if key != LENGTH]:  # which is told with what it means
        found.append(f"Other rows or tokens, by {', '.join(others)}: losses can't be compared.")
    sizes = [run.batch.get("global_size") for run in (a, b)]
    if sizes[0] != sizes[1]:
        found.append(f"{sizes[0]} rows per step against {sizes[1]}: curves over steps don't show the same rows.")
    return found


def charts(a: Recorded, b: Recorded) -> list[Markup]:
    """The curves of both runs in one box each, over epochs where their steps are of other sizes."""
    sides = (("A", a), ("B", b))
    sizes = {run.batch.get("global_size") for run in (a, b)}
    x = "epoch" if len(sizes) > 1 and all(values(run.steps, "epoch") for run in (a, b)) else "step"
    held = [column(run.evaluations, "eval_loss", letter, x) for letter, run in sides]
    over = smoothing(min(len(run.steps) for run in (a, b)))
    wanted = (("Loss", "loss", False), ("Gradient norm", "grad_norm", True), ("Learning rate", "learning_rate", True))
    made = [
        line_chart(
            title,
            [column(run.steps, key, letter, x) for letter, run in sides],
            from_zero=zero,
            mean_of=0 if key == "learning_rate" else over,
            note=f"Faint: every logged step; bold: the running mean of {over}." if key == "loss" and over else "",
            x_name=x,
            tall=key == "loss",
        )
        for title, key, zero in wanted
    ]
    made.insert(1, line_chart("Held-out loss", [], dots=held, x_name=x))
    rewards = [column(run.steps, "reward", letter, x) for letter, run in sides]
    made.insert(0, line_chart("Reward", rewards, mean_of=over, x_name=x, tall=True))
    rates = [replace(throughput(run), name=letter) for letter, run in sides]
    note = "All ranks together, padding left out."
    made.append(line_chart("Tokens per second", rates, note=note, from_zero=True, mean_of=over))
    return [chart for chart in made if chart]


def rows_of(a: Recorded, b: Recorded, first: Figures, second: Figures) -> list[Row]:
    """Headline figures side by side; those that neither has are left out."""
    pairs: list[tuple[str, float | None, float | None, Callable[[float | None], str]]] = [
        ("training loss at the end", first.loss_last, second.loss_last, numbers.figure),
        ("held-out loss", first.held_loss[1], second.held_loss[1], numbers.figure),
        ("training reward at the end", first.reward_last, second.reward_last, numbers.figure),
        ("held-out reward", first.held_reward[1], second.held_reward[1], numbers.figure),
        ("exact match", first.held_accuracy[1], second.held_accuracy[1], numbers.percent),
        ("tokens/s, median once warm", speed(a), speed(b), numbers.figure),
        ("tokens/s, whole run", first.tokens_per_second, second.tokens_per_second, numbers.figure),
        ("tokens/s per process", first.tokens_per_second_per_gpu, second.tokens_per_second_per_gpu, numbers.figure),
        ("model FLOPs utilisation", first.mfu, second.mfu, numbers.percent),
        ("seconds per step, median", first.step_seconds, second.step_seconds, numbers.figure),
        ("steps", float(first.steps), float(second.steps), numbers.figure),
        ("tokens", first.tokens, second.tokens, numbers.figure),
        ("training time", first.seconds, second.seconds, numbers.duration),
        ("peak memory per GPU", first.peak_gib, second.peak_gib, numbers.gib),
    ]
    return [
        Row(name=name, a=shown(x), b=shown(y), ratio=f"{y / x:.2f} ×" if x and y is not None else "")
        for name, x, y, shown in pairs
        if not (x is None and y is None)
    ]


def differing(a: Recorded, b: Recorded) -> list[Row]:
    """Settings of run.yaml and findings about the machine in which the two differ, and no others."""
    return list(_differing(_settings(a), _settings(b)))


def _settings(run: Recorded) -> dict[str, str]:
    flat = {key: value for key, value in _flat(run.run) if key not in NOT_SETTINGS}
    found = {key: _place(value) if key.endswith(PLACES) else value for key, value in flat.items()}
    found["precision"] = text(at(run.plan, "mixed_precision"))
    found["hardware"] = figures(run).where
    return found


def _differing(a: dict[str, str], b: dict[str, str]) -> Iterator[Row]:
    for key in sorted({*a, *b}):
        if a.get(key, "") != b.get(key, ""):
            yield Row(name=key, a=a.get(key) or numbers.NONE, b=b.get(key) or numbers.NONE)


def _place(value: Any) -> Any:
    """A path by the one spelling that `./models/X` and `models/X` have; a hub id as it is."""
    return os.path.normpath(value) if isinstance(value, str) and value else value


def _flat(values: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
            value = dict(enumerate(value))
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", text(value)


def _difference(part: float) -> str:
    return "less than 0.01\u00a0%" if part < 1e-4 else numbers.percent(part, 2 if part < 0.01 else 1)
