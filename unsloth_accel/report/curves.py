"""The charts of one run."""

from __future__ import annotations

from markupsafe import Markup

from ..methods import METHODS
from .figures import PARTS, Series, column, evaluated, shares, throughput
from .numbers import figure, percent
from .run_record import Recorded, at, number, text
from .svg import Bar, Segment, bars, line_chart

_COLOURS = {"compute": "c1", "data": "c2", "callbacks": "c3", "wait": "c5"}


def training(run: Recorded) -> list[Markup]:
    """What is learned first, then what explains it; those of which nothing was logged are left out."""
    loss = column(run.steps, "loss", "training")
    held = _held_out(run, "loss")
    over = smoothing(len(loss.xs))
    planned = METHODS.get(text(at(run.plan, "method")))
    methods = [planned] if planned else [*METHODS]  # a script has no plan: what it logs tells its method
    titles = {name: title for method in methods for name, title in method.charts.items()}
    first = next((method.score for method in methods if method.score), "")
    note = f"Every logged step, and the running mean of {over}." if over > 1 else ""
    drawn = {name: _of_method(run, title, name, over, tall=name == first) for name, title in titles.items()}
    score = drawn.pop(first, Markup())
    made = [
        score,
        line_chart("Loss", [loss], dots=[held], note=note, mean_of=over, tall=not score),
        *drawn.values(),
        _by_function(run, over),
        _seconds(run, over),
        line_chart("Learning rate", [column(run.steps, "learning_rate", "learning rate")], from_zero=True),
        line_chart("Gradient norm", [column(run.steps, "grad_norm", "gradient norm")], from_zero=True, mean_of=over),
    ]
    return [chart for chart in made if chart]


def _of_method(run: Recorded, title: str, name: str, over: int, *, tall: bool) -> Markup:
    """Return the chart of one of the method's own figures; empty where it wasn't logged."""
    drawn = [column(run.steps, name, "training")]
    return line_chart(title, drawn, dots=[_held_out(run, name)], mean_of=over, tall=tall)


def _by_function(run: Recorded, over: int) -> Markup:
    """Return the chart of each reward function's mean, as TRL logs them; empty where there are not several."""
    names = {
        name: None for line in run.steps for name in line if name.startswith("rewards/") and name.endswith("/mean")
    }
    drawn = [column(run.steps, name, name[len("rewards/") : -len("/mean")]) for name in names]
    return line_chart("Reward by function", drawn, mean_of=over) if len(drawn) > 1 else Markup()


def _seconds(run: Recorded, over: int) -> Markup:
    """Return the chart of where a step's seconds go that writes completions; empty elsewhere."""
    parts = ("generating", "scoring", "updating")
    drawn = [column(run.steps, f"{part}_seconds", part) for part in parts]
    note = "Each on the rank that took longest for it."
    return line_chart("Seconds of a step", drawn, note=note, from_zero=True, mean_of=over)


def smoothing(points: int) -> int:
    """Return the number of points of the running mean; 0 where there are so few that each can be seen."""
    return points // 20 if points >= 100 else 0


def _held_out(run: Recorded, name: str) -> Series:
    """Held-out figure at every evaluation, before and after training included."""
    before, after = (number(at(run.results, when, name)) for when in ("before", "after"))
    lines: list[tuple[float, float | None]] = [(0.0, before), *evaluated(run, name)]
    lines += [(float(line["step"]), after) for line in run.steps[-1:]]
    known = {step: figure for step, figure in lines if figure is not None}
    return Series.of("held-out", known.items())


def speed(run: Recorded) -> Markup:
    speed = throughput(run)
    over = smoothing(len(speed.xs))
    bold = f"; the bold line is the running mean of {over} steps" if over > 1 else ""
    note = f"All ranks together, padding left out{bold}."
    return line_chart("Tokens per second", [speed], note=note, from_zero=True, mean_of=over)


def step_time(run: Recorded) -> Markup:
    drawn = [
        Bar(
            f"rank {share.rank}",
            tuple(Segment(part, share.parts[part], _COLOURS[part], percent(share.parts[part])) for part in PARTS),
            f"{figure(share.seconds, 3)} s",
        )
        for share in shares(run)
    ]
    note = (
        "Computing on the rank itself, waiting for rows (data) or for the other ranks (wait), and callbacks between "
        "steps; right, its median step."
    )
    return bars("Where a step's time goes", drawn, note=note, whole=1.0)
