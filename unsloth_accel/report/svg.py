"""Charts as inline SVG, complete without scripts: each says its content in words, and its figures as a table.

Lines are drawn in a box of 1000 × 1000 that is stretched to the page's width (strokes keep theirs), so that labels,
which are text of the page, have one size on a phone and on a desk. Colours are classes (`c1` …) that the style sheet
gives a value for light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

from markupsafe import Markup

from .figures import Series
from .numbers import compact, coordinate, figure, short
from .rendering import drawn

BOX = 1000.0
MOST_POINTS = 600
"""Most points of one line; more are not seen."""
TABLE_ROWS = 12


@dataclass(frozen=True)
class Segment:
    """A part of a bar."""

    name: str
    value: float
    colour: str
    label: str = ""
    """Value as text."""


@dataclass(frozen=True)
class Bar:
    name: str
    segments: tuple[Segment, ...]
    note: str = ""
    """Text at the bar's end."""


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    note: str = "",
    from_zero: bool = False,
    mean_of: int = 0,
    dots: Sequence[Series] = (),
    x_name: str = "step",
    tall: bool = False,
) -> Markup:
    """A figure with a line per series, labelled at its end; empty where there is nothing to draw.

    `mean_of` > 1 draws each series faintly and its running mean over so many points boldly. `dots` are series of few
    points, drawn as such.
    """
    shown = [one for one in (*series, *dots) if one]
    if not shown:
        return Markup("")
    left, right = min(min(one.xs) for one in shown), max(max(one.xs) for one in shown)
    if left == right:
        left, right = left - 1, right + 1
    ticks = _y_ticks(shown, from_zero)
    scale = _Scale(left, right, ticks[0], ticks[-1])
    paths, tags = [], []
    for index, one in enumerate(shown):
        colour = f"c{index % 6 + 1}"
        bold = one
        if one in dots or len(one.xs) == 1:  # a line of one point would not be seen
            # Lines of no length with round ends: a circle would be stretched with the box.
            points = [point for run in _runs(one, scale, most=120) for point in run]
            paths.append((f"points {colour}", one.name, points, colour))
        elif mean_of > 1:
            bold = running_mean(one, mean_of)
            paths += [(f"{colour} faint", one.name, run, "") for run in _runs(one, scale)]
            paths += [(f"{colour} silent", one.name, run, "") for run in _runs(bold, scale)]
        else:
            paths += [(colour, one.name, run, "") for run in _runs(one, scale)]
        last = next(y for y in reversed(bold.ys) if math.isfinite(y))
        tags.append((scale.y(last) / BOX, one.name if len(shown) > 1 else "", compact(last, 3), colour))
    x_ticks = [tick for tick in nice_ticks(left, right) if left <= tick <= right]
    return drawn(
        "lines",
        title=title,
        note=note,
        kind="chart" + " named" * (len(shown) > 1) + " tall" * tall,
        x_name=x_name,
        range=(left, right, ticks[0], ticks[-1]),
        said=[_said(one, x_name) for one in shown],
        ticks=[(scale.y(tick), compact(tick)) for tick in ticks],
        x_ticks=[(scale.x(tick), compact(tick)) for tick in x_ticks if x_name != "step" or tick == int(tick)],
        paths=paths,
        tags=_apart(tags, tall),
        names=[one.name for one in shown],
        rows=_rows(shown),
    )


def bars(title: str, rows: Sequence[Bar], *, note: str = "", whole: float | None = None) -> Markup:
    """A figure with a stacked bar per row; `whole` is the length of the full width, by default the longest bar."""
    whole = whole or max((math.fsum(s.value for s in row.segments) for row in rows), default=0.0)
    if not rows or not whole:
        return Markup("")
    keys = {s.name: s.colour for row in rows for s in row.segments if s.value > 0}
    return drawn("bars", title=title, note=note, keys=keys, rows=[(row, _parts(row, whole)) for row in rows])


def thinned(one: Series, most: int = MOST_POINTS) -> Series:
    """Return at most `most` points: of each stretch its least and its greatest, so that no spike is lost."""
    if len(one.xs) <= most:
        return one
    kept = {0, len(one.xs) - 1}
    stretches = (most - 2) // 2
    for index in range(stretches):
        stretch = range(index * len(one.xs) // stretches, (index + 1) * len(one.xs) // stretches)
        finite = [i for i in stretch if math.isfinite(one.ys[i])] or list(stretch)[:1]
        kept |= {min(finite, key=lambda i: one.ys[i]), max(finite, key=lambda i: one.ys[i])}
    return Series.of(one.name, [(one.xs[i], one.ys[i]) for i in sorted(kept)])


def running_mean(one: Series, over: int) -> Series:
    """The mean of the `over` points around each; fewer at the ends, and only finite ones."""
    sums = list(accumulate((y if math.isfinite(y) else 0.0 for y in one.ys), initial=0.0))
    counts = list(accumulate(map(math.isfinite, one.ys), initial=0))
    ys = []
    for index in range(len(one.ys)):
        a, b = max(0, index - over // 2), min(len(one.ys), index + over // 2 + 1)
        many = counts[b] - counts[a]
        ys.append((sums[b] - sums[a]) / many if many else math.nan)
    return Series(one.name, one.xs, tuple(ys))


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values that cover `low` to `high`: steps of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.10g}") for index in range(first, last + 1)]


@dataclass(frozen=True)
class _Scale:
    left: float
    right: float
    low: float
    high: float

    def x(self, value: float) -> float:
        return BOX * (value - self.left) / (self.right - self.left)

    def y(self, value: float) -> float:
        return BOX * (self.high - value) / (self.high - self.low)


def _y_ticks(series: Sequence[Series], from_zero: bool) -> list[float]:
    finite = [y for one in series for y in one.ys if math.isfinite(y)]
    low, high = min(finite), max(finite)
    if from_zero:
        low = min(0.0, low)
    size = max(abs(low), abs(high))
    if high - low <= size * 1e-6:  # a flat line, in the middle
        low, high = low - (size / 2 or 1.0), high + (size / 2 or 1.0)
    return nice_ticks(low, high)


def _runs(one: Series, scale: _Scale, most: int = MOST_POINTS) -> list[list[tuple[str, str]]]:
    """Return a line's points in the box: a list for each stretch of finite values."""
    few = thinned(one, most)
    stretches = groupby(zip(few.xs, few.ys, strict=True), key=lambda point: math.isfinite(point[1]))
    return [
        [(coordinate(scale.x(x)), coordinate(scale.y(y))) for x, y in stretch]
        for finite, stretch in stretches
        if finite
    ]


def _apart(tags: list[tuple[float, str, str, str]], tall: bool) -> list[tuple[float, str, str, str]]:
    """Labels at the lines' ends, moved apart where they would cover each other, and above the axis."""
    beside = all(len(name) < 3 for _, name, _, _ in tags)  # else it stands below its value
    room = (0.1 if beside else 0.17) * (1.0 if tall else 1.25)
    tags = sorted(tags)
    tops: list[float] = []
    for top, *_ in tags:
        tops.append(max(top, tops[-1] + room) if tops else max(top, 0.0))
    lowest = 1.0 if beside else 1.0 - room / 2
    for index in reversed(range(len(tops))):
        tops[index] = min(tops[index], lowest)
        lowest = tops[index] - room
    return [
        (top, value, name, colour + " beside" * beside)
        for top, (_, name, value, colour) in zip(tops, tags, strict=True)
    ]


def _said(one: Series, x_name: str) -> str:
    """Return a description of the line for a reader who doesn't see it."""
    pairs = [(x, y) for x, y in zip(one.xs, one.ys, strict=True) if math.isfinite(y)]
    (x0, y0), (x1, y1) = pairs[0], pairs[-1]
    least, most = min(pairs, key=lambda p: p[1]), max(pairs, key=lambda p: p[1])
    gone = len(one.ys) - len(pairs)
    return (
        f"{one.name}: {figure(y0)} at {x_name} {short(x0)}, {figure(y1)} at {x_name} {short(x1)}; "
        f"least {figure(least[1])} at {short(least[0])}, greatest {figure(most[1])} at {short(most[0])}."
        + (f" {gone} values are not finite." if gone else "")
    )


def _rows(series: Sequence[Series]) -> list[tuple[str, list[float | None]]]:
    """A few rows of figures, evenly over the run."""
    longest = max(series, key=lambda one: len(one.xs))
    last = len(longest.xs) - 1
    picked = {longest.xs[round(i * last / (TABLE_ROWS - 1))] for i in range(TABLE_ROWS)}
    dotted = {x for one in series if len(one.xs) <= TABLE_ROWS for x in one.xs}
    by_x = [dict(zip(one.xs, one.ys, strict=True)) for one in series]
    return [(short(x), [ys.get(x) for ys in by_x]) for x in sorted(picked | dotted)]


def _parts(row: Bar, whole: float) -> list[tuple[Segment, float, float]]:
    """Return a bar's segments with start and width in percent."""
    segments = [segment for segment in row.segments if segment.value > 0]
    widths = [100 * segment.value / whole for segment in segments]
    return list(zip(segments, accumulate(widths, initial=0.0), widths, strict=False))
