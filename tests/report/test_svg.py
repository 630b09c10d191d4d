import math
import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from unsloth_accel.report import svg
from unsloth_accel.report.figures import Series, column


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.integers(1, 60), st.integers(4, 60))
def test_thinning_keeps_ends_and_extremes(values: list[float], times: int, most: int) -> None:
    values = values * times
    one = Series("x", tuple(map(float, range(len(values)))), tuple(values))
    thin = svg.thinned(one, most)
    assert len(thin.xs) <= most
    assert list(thin.xs) == sorted(set(thin.xs))
    assert (thin.xs[0], thin.xs[-1]) == (one.xs[0], one.xs[-1])
    assert (min(thin.ys), max(thin.ys)) == (min(values), max(values))
    assert set(zip(thin.xs, thin.ys, strict=True)) <= set(zip(one.xs, one.ys, strict=True))


@given(st.floats(-1e9, 1e9), st.floats(1e-9, 1e9))
def test_ticks_cover_and_are_few(low: float, size: float) -> None:
    high = low + max(size, abs(low) * 1e-6)
    ticks = svg.nice_ticks(low, high)
    slack = (high - low) * 1e-6
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack
    assert 2 <= len(ticks) <= 8


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=40))
def test_any_values_can_be_drawn(values: list[float]) -> None:
    lines = [{"step": index, "loss": value} for index, value in enumerate(values)]
    html = str(svg.line_chart("Loss", [column(lines, "loss", "loss")], mean_of=3))
    assert bool(html) == any(abs(value) < 1e100 for value in values)
    assert "nan" not in html
    assert "inf" not in html


def test_a_chart_says_what_it_shows() -> None:
    one = Series("training", (1, 2, 3, 4), (2.0, math.nan, 0.5, 1.0))
    html = str(svg.line_chart("Loss", [one]))
    said = "training: 2 at step 1, 1 at step 4; least 0.5000 at 3, greatest 2 at 1. 1 values are not finite."
    assert said in html
    assert html.count("<polyline") == 2  # broken where a value is not finite
    assert [row.split("<td>")[1] for row in html.split("</td></tr>")[:-1]] == ["2", "not finite", "0.5000", "1"]


def test_a_single_point_is_seen() -> None:
    """As a dot, in the colour of its place: a line through it would have no length."""
    html = str(svg.line_chart("Loss", [Series("A", (1, 2), (1.0, 2.0)), Series("B", (2,), (1.5,))]))
    assert re.findall(r'class="(line c\d|dot c\d)"', html) == ["line c1", "dot c2"]


def test_where_little_was_measured_there_are_points_and_no_line() -> None:
    """Between two evaluations nobody knows the loss."""
    held = [Series("A", (1, 2, 3), (1.0, 2.0, 1.5)), Series("B", (1, 3), (1.5, 1.2))]
    html = str(svg.line_chart("Held-out loss", [], dots=held))
    assert re.findall(r'class="line (\w+) c\d"', html) == ["points", "points"]
    assert html.count('class="dot c1"') == 3
    assert html.count('class="dot c2"') == 2
    style = (Path(svg.__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")
    assert style.rindex(".line.points { stroke: none; }") > style.rindex(".line.c6")


def test_a_running_mean() -> None:
    one = Series("x", (1, 2, 3, 4, 5), (1.0, 2.0, math.nan, 4.0, 5.0))
    assert svg.running_mean(one, 3).ys == (1.5, 1.5, 3.0, 4.5, 4.5)
