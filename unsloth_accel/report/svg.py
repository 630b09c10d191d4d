"""Charts as inline SVG, complete without scripts: each says its content in words, and its figures as a table.

Lines are drawn in a box of 1000 × 1000 that is stretched to the page's width (strokes keep theirs), so that labels,
which are text of the page, have one size on a phone and on a desk. Colours are classes (`c1` …) that the style sheet
gives a value for light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from .figures import Series
from .numbers import compact, figure, short

BOX = 1000.0
MOST_POINTS = 600
"""Of one line; more are not seen."""
TABLE_ROWS = 12


@dataclass(frozen=True)
class Segment:
    """A part of a bar."""

    name: str
    value: float
    colour: str
    label: str = ""
    """Its value as text."""


@dataclass(frozen=True)
class Bar:
    name: str
    segments: tuple[Segment, ...]
    note: str = ""
    """What stands at its end."""


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    note: str = "",
    unit: str = "",
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
    drawn = [one for one in (*series, *dots) if one]
    if not drawn:
        return Markup("")
    left, right = min(min(one.xs) for one in drawn), max(max(one.xs) for one in drawn)
    if left == right:
        left, right = left - 1, right + 1
    low, high, ticks = _range(drawn, from_zero)
    scale = _Scale(left, right, low, high)
    paths, tags = [], []
    for index, one in enumerate(drawn):
        colour = f"c{index % 6 + 1}"
        bold = one
        if one in dots or len(one.xs) == 1:  # a line of one point would not be seen
            paths.append(_dots(one, scale, colour))
        elif mean_of > 1:
            bold = running_mean(one, mean_of)
            paths += [_line(one, scale, f"{colour} faint"), _line(bold, scale, f"{colour} silent")]
        else:
            paths.append(_line(one, scale, colour))
        last = next(y for y in reversed(bold.ys) if math.isfinite(y))
        tags.append((scale.y(last) / BOX, one.name if len(drawn) > 1 else "", compact(last, 3), colour))
    grid = Markup("").join(
        Markup('<line class="grid" x1="0" x2="1000" y1="{0}" y2="{0}"/>').format(_short(scale.y(tick)))
        for tick in ticks
    )
    return Markup(
        '<figure class="{kind}" data-x="{x}" data-range="{range}" data-unit="{unit}">'
        "<figcaption><h3>{title}</h3>{note}</figcaption>"
        '<div class="plot"><div class="ys" aria-hidden="true">{ys}</div>'
        '<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" aria-label="{said}">{grid}{paths}</svg>'
        '<div class="tags" aria-hidden="true">{tags}</div><div class="xs" aria-hidden="true">{xs}</div></div>'
        "{table}</figure>"
    ).format(
        kind="chart" + " named" * (len(drawn) > 1) + " tall" * tall,
        x=x_name,
        range=f"{left!r} {right!r} {low!r} {high!r}",
        unit=unit,
        title=title,
        note=Markup("<p>{}</p>").format(note) if note else "",
        ys=_ticks(ticks, scale),
        said=f"{title}. " + " ".join(_said(one, x_name, unit) for one in drawn),
        grid=grid,
        paths=Markup("").join(paths),
        tags=_tags(tags, tall),
        xs=_x_ticks(left, right, scale, x_name),
        table=_table(drawn, x_name, unit),
    )


def bars(title: str, rows: Sequence[Bar], *, note: str = "", unit: str = "", whole: float | None = None) -> Markup:
    """A figure with a stacked bar per row; `whole` is the length of the full width, by default the longest bar."""
    whole = (whole if rows else 0.0) or max((math.fsum(s.value for s in row.segments) for row in rows), default=0.0)
    if not whole:
        return Markup("")
    made = Markup("").join(_bar(row, whole) for row in rows)
    names: dict[str, str] = {}
    for row in rows:
        names |= {segment.name: segment.colour for segment in row.segments if segment.value > 0}
    keys = Markup("").join(
        Markup(
            '<li><svg class="key" aria-hidden="true"><rect class="{}" width="100%" height="100%"/></svg>{}</li>'
        ).format(colour, name)
        for name, colour in names.items()
    )
    return Markup(
        '<figure class="bars"><figcaption><h3>{}</h3>{}</figcaption><ul class="keys" aria-hidden="true">{}</ul>'
        '<div class="rows">{}</div></figure>'
    ).format(title, Markup("<p>{}</p>").format(note) if note else "", keys, made)


def thinned(one: Series, most: int = MOST_POINTS) -> Series:
    """At most `most` points: of each stretch its least and its greatest, so that no spike is lost."""
    if len(one.xs) <= most:
        return one
    kept = {0, len(one.xs) - 1}
    stretches = (most - 2) // 2
    for index in range(stretches):
        stretch = range(index * len(one.xs) // stretches, (index + 1) * len(one.xs) // stretches)
        finite = [i for i in stretch if math.isfinite(one.ys[i])] or list(stretch)[:1]
        kept |= {min(finite, key=lambda i: one.ys[i]), max(finite, key=lambda i: one.ys[i])}
    order = sorted(kept)
    return Series(one.name, tuple(one.xs[i] for i in order), tuple(one.ys[i] for i in order))


def running_mean(one: Series, over: int) -> Series:
    """The mean of the `over` points around each; fewer at the ends, and only finite ones."""
    sums, counts = [0.0], [0]
    for y in one.ys:
        finite = math.isfinite(y)
        sums.append(sums[-1] + (y if finite else 0.0))
        counts.append(counts[-1] + finite)
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


def _range(series: Sequence[Series], from_zero: bool) -> tuple[float, float, list[float]]:
    finite = [y for one in series for y in one.ys if math.isfinite(y)]
    low, high = min(finite), max(finite)
    if from_zero:
        low = min(0.0, low)
    size = max(abs(low), abs(high))
    if high - low <= size * 1e-6:  # a flat line, in the middle
        low, high = low - (size / 2 or 1.0), high + (size / 2 or 1.0)
    ticks = nice_ticks(low, high)
    return ticks[0], ticks[-1], ticks


def _line(one: Series, scale: _Scale, classes: str) -> Markup:
    """Broken where a value is not finite."""
    few = thinned(one)
    runs: list[list[str]] = [[]]
    for x, y in zip(few.xs, few.ys, strict=True):
        if math.isfinite(y):
            runs[-1].append(f"{_short(scale.x(x))},{_short(scale.y(y))}")
        elif runs[-1]:
            runs.append([])
    made = Markup('<polyline class="line {}" data-name="{}" points="{}"/>')
    return Markup("").join(made.format(classes, one.name, " ".join(points)) for points in runs if points)


def _dots(one: Series, scale: _Scale, colour: str) -> Markup:
    """Lines of no length with round ends: a circle would be stretched with the box."""
    few = thinned(one, 120)
    pairs = [(x, y) for x, y in zip(few.xs, few.ys, strict=True) if math.isfinite(y)]
    made = Markup('<line class="dot {0}" x1="{1}" x2="{1}" y1="{2}" y2="{2}"/>')
    dots = Markup("").join(made.format(colour, _short(scale.x(x)), _short(scale.y(y))) for x, y in pairs)
    joined = " ".join(f"{_short(scale.x(x))},{_short(scale.y(y))}" for x, y in pairs)
    return Markup('<polyline class="line thin {}" data-name="{}" points="{}"/>').format(colour, one.name, joined) + dots


def _tags(tags: list[tuple[float, str, str, str]], tall: bool) -> Markup:
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
    made = Markup('<span class="tag {}{}" style="top:{:.1f}%"><b>{}</b>{}</span>')
    return Markup("").join(
        made.format(colour, " beside" * beside, 100 * top, value, Markup("<i>{}</i>").format(name) if name else "")
        for top, (_, name, value, colour) in zip(tops, tags, strict=True)
    )


def _ticks(ticks: list[float], scale: _Scale) -> Markup:
    made = Markup('<span style="top:{:.1f}%">{}</span>')
    return Markup("").join(made.format(100 * scale.y(tick) / BOX, compact(tick)) for tick in ticks)


def _x_ticks(left: float, right: float, scale: _Scale, name: str) -> Markup:
    inner = [tick for tick in nice_ticks(left, right) if left <= tick <= right]
    if name == "step":
        inner = [tick for tick in inner if tick == int(tick)]
    made = Markup('<span style="left:{:.1f}%">{}</span>')
    marks = Markup("").join(made.format(scale.x(tick) / BOX * 100, compact(tick)) for tick in inner)
    return marks + Markup("<em>{}</em>").format(name)


def _said(one: Series, x_name: str, unit: str) -> str:
    """What a reader who doesn't see the line should know of it."""
    pairs = [(x, y) for x, y in zip(one.xs, one.ys, strict=True) if math.isfinite(y)]
    (x0, y0), (x1, y1) = pairs[0], pairs[-1]
    least, most = min(pairs, key=lambda p: p[1]), max(pairs, key=lambda p: p[1])
    unit = f" {unit}" if unit else ""
    gone = len(one.ys) - len(pairs)
    return (
        f"{one.name}: {figure(y0)}{unit} at {x_name} {short(x0)}, {figure(y1)}{unit} at {x_name} {short(x1)}; "
        f"least {figure(least[1])} at {short(least[0])}, greatest {figure(most[1])} at {short(most[0])}."
        + (f" {gone} values are not finite." if gone else "")
    )


def _table(series: Sequence[Series], x_name: str, unit: str) -> Markup:
    """A few rows of figures, evenly over the run."""
    longest = max(series, key=lambda one: len(one.xs))
    many = len(longest.xs)
    picked = sorted({round(i * (many - 1) / (TABLE_ROWS - 1)) for i in range(TABLE_ROWS)}) if many > 1 else [0]
    by_x = [dict(zip(one.xs, one.ys, strict=True)) for one in series]
    dotted = {x for one in series if len(one.xs) <= TABLE_ROWS for x in one.xs}
    xs = sorted({longest.xs[i] for i in picked} | dotted)
    head = Markup("").join(
        Markup("<th>{}</th>").format(one.name + (f", {unit}" if unit and unit != one.name else "")) for one in series
    )
    rows = Markup("").join(
        Markup("<tr><th>{}</th>{}</tr>").format(
            short(x), Markup("").join(Markup("<td>{}</td>").format(figure(ys.get(x))) for ys in by_x)
        )
        for x in xs
    )
    return Markup(
        "<details><summary>As a table</summary><table><thead><tr><th>{}</th>{}</tr></thead><tbody>{}</tbody></table>"
        "</details>"
    ).format(x_name, head, rows)


def _bar(row: Bar, whole: float) -> Markup:
    start, rects, labels = 0.0, [], []
    for segment in row.segments:
        width = 100 * segment.value / whole
        if width <= 0:
            continue
        rects.append(
            Markup('<rect class="{}" x="{:.2f}%" width="{:.2f}%" height="100%"><title>{} {}</title></rect>').format(
                segment.colour, start, max(0.0, width - 0.15), segment.name, segment.label
            )
        )
        if segment.label and width > 5.5 + 1.6 * len(segment.label):
            labels.append(
                Markup('<text class="on {}" x="{:.2f}%" y="50%" dy=".36em">{}</text>').format(
                    segment.colour, start + 1.2, segment.label
                )
            )
        start += width
    said = f"{row.name}: " + ", ".join(f"{s.name} {s.label or figure(s.value)}" for s in row.segments if s.value > 0)
    return Markup(
        '<div class="row"><span class="name">{}</span>'
        '<svg class="bar" role="img" aria-label="{}">{}{}</svg><span class="end">{}</span></div>'
    ).format(row.name, said, Markup("").join(rects), Markup("").join(labels), row.note)


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
