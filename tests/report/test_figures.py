"""The report's figures, charts and words, without a browser: tests/report/test_report_page.py looks at the page."""

import json
import math
import re
import resource
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import run_directories as made
from conftest import ROOT, Run, cli_command
from hypothesis import given
from hypothesis import strategies as st

from unsloth_accel import report
from unsloth_accel.cli.main import main
from unsloth_accel.errors import ConfigError
from unsloth_accel.launch.run_accelerate import LaunchError
from unsloth_accel.report import compare_page, memory_chart, messages, numbers, svg
from unsloth_accel.report.at_end import reported, tell
from unsloth_accel.report.figures import Measured, Series, column, figures, shares, throughput
from unsloth_accel.report.run_page import page
from unsloth_accel.report.run_record import read

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7 * 7 }}"


class Tags(HTMLParser):
    """Every element with its attributes, and the text between."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.text += " "

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def two(tmp_path: Path) -> Path:
    return made.two_gpus(tmp_path / "two")


def html_of(directory: Path) -> str:
    return report.write(directory).read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", made.KINDS)
def test_every_kind_of_run_has_a_report(kind: str, tmp_path: Path) -> None:
    steps = {"steps": 150} if kind == "eight-gpus" else {}
    directory = made.KINDS[kind](tmp_path / kind, **steps)
    found = figures(read(directory))
    assert found.status == ("failed" if kind == "crashed" else "finished")
    html = html_of(directory)
    assert found.model in Tags(html).text
    assert "None" not in Tags(html).text.replace(json.dumps(made.VERSIONS), "")
    assert "nan" not in re.findall(r'points="([^"]*)"', html)


def test_figures_come_from_the_summary(two: Path) -> None:
    told = json.loads((two / "logs" / "summary.json").read_text(encoding="utf-8"))
    found = figures(read(two))
    assert (found.tokens, found.tokens_per_second, found.mfu) == (told["tokens"], told["tokens_per_second"], 0.412)
    assert (found.strategy, found.processes, found.where) == ("ddp", 2, "2 × NVIDIA H100 80GB HBM3")
    assert found.held_loss == (1.3651, 0.4107)
    lines = [json.loads(line) for line in (two / "logs" / "steps.jsonl").read_text(encoding="utf-8").splitlines()]
    loss = [line["loss"] for line in lines if "loss" in line]
    assert found.loss_over == 12
    assert found.loss_first == pytest.approx(sum(loss[:12]) / 12)
    assert found.loss_last == pytest.approx(sum(loss[-12:]) / 12)


def test_without_a_summary_the_logs_give_the_same_figures(two: Path) -> None:
    whole = figures(read(two))
    parts = shares(read(two))
    (two / "logs" / "summary.json").unlink()
    (two / "results.json").unlink()
    found = figures(read(two))
    assert found.tokens == whole.tokens
    assert found.tokens_per_second == pytest.approx(whole.tokens_per_second, rel=0.01)
    assert [share.parts for share in shares(read(two))] == [pytest.approx(share.parts, abs=0.01) for share in parts]
    assert all(sum(share.parts.values()) == pytest.approx(1) for share in parts)


def test_an_old_run_counts_between_its_logged_steps(tmp_path: Path) -> None:
    directory = made.of_old(tmp_path)
    lines = [json.loads(line) for line in (directory / "logs" / "steps.jsonl").read_text(encoding="utf-8").splitlines()]
    a, b = lines[3], lines[4]
    rate = (b["num_input_tokens_seen"] - a["num_input_tokens_seen"]) / (b["seconds"] - a["seconds"])
    drawn = throughput(read(directory))
    assert drawn.ys[3] == pytest.approx(rate)
    assert len(drawn.ys) == 29


def test_a_crash_is_told_in_the_ranks_words_with_its_fix(tmp_path: Path) -> None:
    directory = made.crashed(tmp_path)
    found = figures(read(directory))
    assert found.status == "failed"
    assert found.steps == 60
    text = " ".join(Tags(html_of(directory)).text.split())
    assert "training.per_device_train_batch_size=32: rank 1 has no memory left at step 61. Fix 16, or fsdp2" in text
    assert "training.save_strategy=steps" in text  # nothing was saved, and how it would have been


def test_a_run_without_an_end_is_not_called_finished(tmp_path: Path) -> None:
    directory = made.crashed(tmp_path)
    shutil.rmtree(directory / "errors")
    assert figures(read(directory)).status == "unfinished"
    assert "has not come to its end" in Tags(html_of(directory)).text


def test_errors_of_an_earlier_attempt_do_not_count(two: Path) -> None:
    """Without `unsloth-accel launch` nobody takes them away."""
    error = {"rank": 0, "message": "of yesterday", "time": made.START - 86_400}
    (two / "errors").mkdir()
    path = two / "errors" / "rank-0.json"
    path.write_text(json.dumps(error), encoding="utf-8")
    assert figures(read(two)).status == "finished"
    # A run that has results of an earlier attempt, and fails as it goes on.
    path.write_text(json.dumps(error | {"time": time.time() + 1}), encoding="utf-8")
    assert figures(read(two)).message == "of yesterday"


def test_steps_that_were_trained_twice_count_once(tmp_path: Path) -> None:
    run = read(made.resumed(tmp_path))
    assert run.attempts == 2
    assert [step["step"] for step in run.ranks[0].steps] == list(range(1, 81))
    assert [step for step, _, _ in run.totals] == list(range(1, 81))
    # The later of the two attempts counts: it began an hour after the first.
    assert run.ranks[0].steps[44]["time"] > made.START + 3600
    assert "trained in 2 parts" in Tags(html_of(tmp_path)).text


def test_an_end_before_the_newest_start_is_not_this_runs(two: Path) -> None:
    for path in (two / "results.json", two / "logs" / "summary.json"):
        path.unlink()
    with (two / "logs" / "rank-0.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"event": "start", "time": made.START + 9e6}) + "\n")
    assert figures(read(two)).status == "unfinished"


def test_a_directory_of_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, told in ((tmp_path, "has no run's files"), (tmp_path / "no", "no such directory")):
        assert main(["report", str(path)]) == 2
        error = capsys.readouterr().err
        assert told in error
        assert "Fix: " in error


def test_the_command(two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(two)]) == 0
    assert capsys.readouterr().out == f"wrote {two / 'report.html'}\n"
    assert main(["report", str(two), "--out", str(tmp_path / "new" / "x.html")]) == 0
    assert (tmp_path / "new" / "x.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert main(["report", str(two), "--out", "/proc/no/x.html"]) == 2
    assert "can't be written" in capsys.readouterr().err
    for words in ([str(two), str(two)], ["--compare", str(two)]):
        assert main(["report", *words]) == 2
        assert "Fix: unsloth-accel report" in capsys.readouterr().err
    assert main(["report", "--compare", str(two), str(two)]) == 0
    assert (two / "compared-with-two.html").is_file()


def test_whatever_others_wrote_is_escaped(tmp_path: Path) -> None:
    other = made.hostile(tmp_path / "b", HOSTILE)
    first = made.two_gpus(tmp_path / "a", steps=12)
    compared = report.write_comparison(first, other).read_text(encoding="utf-8")
    for html in (html_of(other), compared):
        tags = Tags(html)
        assert [name for name, _ in tags.elements].count("script") == 1
        assert "img" not in [name for name, _ in tags.elements]
        assert not [key for _, attributes in tags.elements for key in attributes if key.startswith("on")]
        assert HOSTILE in tags.text
        assert "49" not in tags.text.replace(HOSTILE, "").split()
    assert Tags(html_of(other)).text.count(HOSTILE) > 20


JUNK = (None, "x", [], {}, 5, -1.5, [1], {"a": {"b": [None]}}, True, math.nan, math.inf, "9" * 400)


FILES = ("plan.json", "results.json", "logs/summary.json", "logs/steps.jsonl", "logs/rank-1.jsonl")


@pytest.mark.parametrize("name", FILES)
def test_no_file_can_break_it(name: str, tmp_path: Path) -> None:
    """Every value of every file, one at a time, is something else than a reader may expect."""
    directory = made.two_gpus(tmp_path / "run", steps=6)
    path = directory / name
    text = path.read_text(encoding="utf-8")
    lines = name.endswith("l")
    values: Any = [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
    if lines:  # one of each kind
        values = [*{line.get("event", "loss" in line): line for line in values}.values()]
    for number, place in enumerate(places(values)):
        changed = replaced(values, place, JUNK[number % len(JUNK)])
        junk = "".join(json.dumps(line) + "\n" for line in changed) if lines else json.dumps(changed)
        path.write_text(junk, encoding="utf-8")
        run = read(directory)
        assert len(page(run)) > 9000, place
        assert len(compare_page.page(run, run)) > 9000, place
    for cut in (0, 1, len(text) // 2, len(text) - 3):
        path.write_text(text[:cut], encoding="utf-8")
        page(read(directory))
    path.write_bytes(b"\xff\xfe\x00{")
    page(read(directory))


@pytest.mark.parametrize("text", ["", "model: [", "5", "model: 5\nbatch: x\ndata: []\ntraining: null"])
def test_no_description_can_break_it(text: str, two: Path) -> None:
    (two / "run.yaml").write_text(text, encoding="utf-8")
    run = read(two)
    assert len(page(run)) > 9000
    assert len(compare_page.page(run, run)) > 9000


def places(values: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value, twice, so that each meets two kinds of junk."""
    found = [before] * 2 if before else []
    keys = values if isinstance(values, dict) else range(len(values)) if isinstance(values, list) else ()
    for key in keys:
        found += places(values[key], (*before, key))
    return found


def replaced(values: Any, place: tuple[Any, ...], junk: Any) -> Any:
    copy = json.loads(json.dumps(values))
    at = copy
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = junk
    return copy


def test_a_long_run_is_small_and_quick(tmp_path: Path) -> None:
    """Processor time, of the best of three, since tests share their machine."""
    directory = made.eight_gpus(tmp_path)
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        code = "import sys; from unsloth_accel.cli.main import main; main(sys.argv[1:]);"
        code += "print([name for name in ('torch', 'transformers', 'accelerate') if name in sys.modules])"
        command = [sys.executable, "-c", code, "report", str(directory)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]"
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 2
    path = directory / "report.html"
    assert path.stat().st_size < 1_000_000
    lines = re.findall(r'points="([^"]*)"', path.read_text(encoding="utf-8"))
    assert 500 < max(len(points.split()) for points in lines) <= svg.MOST_POINTS


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


def test_a_running_mean() -> None:
    one = Series("x", (1, 2, 3, 4, 5), (1.0, 2.0, math.nan, 4.0, 5.0))
    assert svg.running_mean(one, 3).ys == (1.5, 1.5, 3.0, 4.5, 4.5)


def test_the_same_message_is_shown_once() -> None:
    line = {"event": "warning", "source": "memory", "message": "4 % is free. Fix: fewer rows", "free_gib": 3.1}
    lines = [{**line, "rank": rank, "step": step} for step in range(10, 20) for rank in (1, 3)]
    error = {"event": "error", "source": "rank_sync", "message": "ranks differ", "rank": 0, "step": 7}
    first, second = messages.grouped([*lines, error])
    assert (first.severity, first.source, first.where) == ("error", "rank sync", "rank 0, step 7")
    assert (second.message, second.fix) == ("4 % is free.", "fewer rows")
    assert second.where == "ranks 1, 3, steps 10 to 19, 20 times"
    assert second.more == (("free gib", "3.1"),)


def test_memory_is_compared_like_with_like() -> None:
    """What torch allocated against the terms that it allocates: not with its allocator's share, nor with CUDA's."""
    predicted = {"total": 17.0, "weights": 8.0, "lora": 1.0, "activations": 1.0, "fragmentation": 3.0, "context": 4.0}
    measured = [Measured(rank=rank, allocated=8.0 + rank, reserved=12.0, context=2.0, host=None) for rank in (0, 1)]
    said = memory_chart.verdict(predicted, measured, on_cpu=False)
    assert (
        said
        == "The plan expected 10.0 GiB of tensors and the largest rank took 9.00 GiB: 11.1\u00a0% more than measured."
    )
    html = str(memory_chart.chart(predicted, measured, on_cpu=False, of_gib=80.0))
    assert "rank 1: allocated by torch 9.0, allocator 3.0, context 2.0" in html
    assert memory_chart.verdict({}, measured, on_cpu=False) == ""


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0"), (1234567.8, "1,234,568"), (2e-5, "2e-5"), (0.41234, "0.4123"), (12.3456, "12.35"), (None, "–")],
)
def test_numbers(value: float | None, shown: str) -> None:
    assert numbers.figure(value) == shown


def test_durations() -> None:
    assert [numbers.duration(s) for s in (0.5, 59.4, 372, 11_100)] == ["0.50 s", "59 s", "6 min 12 s", "3 h 05 min"]


def test_a_comparison_says_what_it_may(tmp_path: Path) -> None:
    a = made.two_gpus(tmp_path / "a")
    b = made.two_gpus(tmp_path / "b", seed=9, speed=1.35, rate=3e-4)
    first, second = read(a), read(b)
    assert re.search(
        r"B trains 1\.3\d\s× the tokens/s of A\. Over the 240 logged steps", compare_page.verdict(first, second)
    )
    assert [(row.name, row.a, row.b) for row in compare_page.differing(first, second)] == [
        ("training.learning_rate", "0.0002", "0.0003")
    ]
    assert compare_page.not_comparable(first, second) == []
    html = report.write_comparison(a, b).read_text(encoding="utf-8")
    assert html.count('data-name="A"') == html.count('data-name="B"') > 4


def test_a_run_compared_with_itself_is_the_same(two: Path) -> None:
    run = read(two)
    said = compare_page.verdict(run, run)
    assert "as many tokens/s as A, within 1\u00a0%" in said
    assert "the mean loss is the same; single steps differ by less than 0.01\u00a0%" in said
    assert compare_page.differing(run, run) == []
    assert {row.ratio for row in compare_page.rows_of(run, run, figures(run), figures(run))} == {"1.00 ×"}


def test_what_cannot_be_compared_is_said(two: Path, tmp_path: Path) -> None:
    other = made.crashed(tmp_path / "other")
    text = (other / "run.yaml").read_text(encoding="utf-8").replace("data/train.jsonl", "data/more.jsonl")
    (other / "run.yaml").write_text(text.replace("global_size: 64", "global_size: 128"), encoding="utf-8")
    (other / "plan.json").unlink()
    said = " ".join(compare_page.not_comparable(read(two), read(other)))
    assert "Other data: losses can't be compared." in said
    assert "64 rows per step against 128" in said
    assert "B failed: its last figures" in said
    verdict = compare_page.verdict(read(two), read(other))
    assert "not steps over the same rows" in verdict
    html = report.write_comparison(two, other).read_text(encoding="utf-8")
    assert 'data-x="epoch"' in html


def test_a_launch_that_fails_has_a_report_and_leaves_its_word(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LaunchError), reported(two):
        raise LaunchError("rank 1 was ended by SIGKILL; out of memory is the usual reason.", 137)
    assert capsys.readouterr().out == f"report    {two / 'report.html'}\n"
    found = figures(read(two))
    assert (found.status, found.message) == (
        "failed",
        "rank 1 was ended by SIGKILL; out of memory is the usual reason.",
    )
    assert "rank 1 was ended by SIGKILL" in (two / "report.html").read_text(encoding="utf-8")


def test_a_report_that_cannot_be_made_costs_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with reported(tmp_path / "no"):
        pass
    said = capsys.readouterr().out
    assert said.startswith("report    not made: ConfigError: ")
    assert len(said.splitlines()) == 1
    tell(tmp_path / "no")


def test_templates_are_installed_with_the_package() -> None:
    from setuptools import find_packages
    from setuptools.config.setupcfg import read_configuration

    data = read_configuration(str(ROOT / "setup.cfg"))["options"]["package_data"]["unsloth_accel"]
    installed = {path for pattern in data for path in (ROOT / "unsloth_accel").glob(pattern)}
    assert installed >= set((ROOT / "unsloth_accel" / "report" / "templates").iterdir())
    assert "unsloth_accel.report" in find_packages(str(ROOT), include=["unsloth_accel*"])


@pytest.mark.parametrize("file", ["README.md", "README_CN.md"])
def test_the_picture_shown_is_there_and_small(file: str) -> None:
    (picture,) = re.findall(r"!\[.+\]\((.+)\)", (ROOT / file).read_text(encoding="utf-8"))
    assert 10_000 < (ROOT / picture).stat().st_size < 200_000


def test_a_plan_is_written_as_json(tmp_path: Path) -> None:
    decided = made.planned(tmp_path, "2xH100-80GB")
    decided.write(tmp_path)
    assert json.loads((tmp_path / "plan.json").read_text(encoding="utf-8")) == json.loads(json.dumps(decided.to_dict()))


def luminance(colour: str) -> float:
    colour = colour.lstrip("#")
    colour = "".join(2 * letter for letter in colour) if len(colour) == 3 else colour
    parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """Of WCAG 2.2: from 1 to 21."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_colours_can_be_told_apart() -> None:
    style = (ROOT / "unsloth_accel/report/templates/style.css").read_text(encoding="utf-8")
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{3,6});", part)) for part in style.split("@media")[:2])
    for scheme, colours in (("light", light), ("dark", light | dark)):
        texts = [(text, paper) for text in ("ink", "muted", "accent") for paper in ("paper", "card")]
        texts += [(name, f"{name}-tint") for name in ("good", "bad", "beware")]
        texts += [("ink", f"{name}-tint") for name in ("good", "bad", "beware")]
        texts += [("on", f"c{n}") for n in (2, 3, 4, 5, 6)] + [("on1", "c1"), ("on7", "c7"), ("good", "card")]
        for text, paper in texts:
            assert contrast(colours[text], colours[paper]) >= 4.5, (scheme, text, paper)
        for n in range(1, 8):
            assert contrast(colours[f"c{n}"], colours["paper"]) >= 3 or n == 6, (scheme, n)


def test_report_is_shown_with_open(two: Path, cli: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The default browser is a command here, as $BROWSER lets it be."""
    said = tmp_path / "said"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {said}\n', encoding="utf-8")
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{browser} %s")
    done = subprocess.run(cli_command("report", two, "--open"), cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"wrote {two / 'report.html'}\n"
    assert said.read_text(encoding="utf-8").strip() == (two / "report.html").as_uri()


def test_a_missing_file_is_a_problem_with_a_key() -> None:
    with pytest.raises(ConfigError) as raised:
        read("nowhere")
    (problem,) = raised.value.problems
    assert (problem.key, bool(problem.fix)) == ("nowhere", True)


KILLED = "rank 1 was ended by SIGKILL; out of memory is the usual reason."


def failed(directory: Path, since: float, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The summary of a launch that was started at `since` and failed."""
    monkeypatch.setattr("unsloth_accel.report.at_end.time", SimpleNamespace(time=lambda: since))
    with pytest.raises(LaunchError), reported(directory):
        raise LaunchError(KILLED, 137)
    told: dict[str, Any] = json.loads((directory / "logs" / "summary.json").read_text(encoding="utf-8"))
    return told


def test_a_failed_run_has_a_summary_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what its ranks had logged, and of how it ended; as `launch` leaves it."""
    directory = made.crashed(tmp_path)
    told = failed(directory, made.START - 1, monkeypatch)
    assert (told["status"], told["message"], told["steps"]) == ("failed", KILLED, 60)
    ranks = [rank.steps for rank in read(directory).ranks]
    assert told["tokens"] == sum(line["tokens"] for steps in ranks for line in steps)
    slowest = max(sum(line["seconds"] for line in steps) for steps in ranks)
    assert told["tokens_per_second"] == pytest.approx(told["tokens"] / slowest, abs=0.1)
    assert [rank["rank"] for rank in told["ranks"]] == [0, 1]
    for rank, steps in zip(told["ranks"], ranks, strict=True):
        assert rank["peak_gib"] == max(line["allocated_gib"] for line in steps)
        waited = sum(line["wait_seconds"] for line in steps) / sum(line["seconds"] for line in steps)
        assert rank["wait_share"] == pytest.approx(waited, abs=1e-4)
    assert figures(read(directory)).tokens_per_second == told["tokens_per_second"]


def test_a_failed_attempt_counts_its_own_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run that went on at step 41 an hour later, where ranks don't know their wait."""
    directory = made.resumed(tmp_path)
    (directory / "logs" / "summary.json").unlink()
    for path in (directory / "logs").glob("rank-*.jsonl"):
        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub(r'"wait_seconds": [0-9.e-]+', '"wait_seconds": null', text), encoding="utf-8")
    told = failed(directory, made.START + 3000, monkeypatch)
    assert told["steps"] == 40
    assert {rank["wait_share"] for rank in told["ranks"]} == {None}
    assert all(0 < rank["compute_share"] < 1 for rank in told["ranks"])


def test_a_run_that_fails_after_training_keeps_its_summary(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = json.loads((two / "logs" / "summary.json").read_text(encoding="utf-8"))
    assert failed(two, made.START, monkeypatch) == before | {"status": "failed", "message": KILLED}


def test_an_earlier_attempts_summary_is_left_alone(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished run, started again, that fails before it trains."""
    before = json.loads((two / "logs" / "summary.json").read_text(encoding="utf-8"))
    assert failed(two, time.time() + 10, monkeypatch) == before


def test_where_nothing_was_logged_there_is_no_summary(tmp_path: Path) -> None:
    with pytest.raises(LaunchError), reported(tmp_path):
        raise LaunchError("rank 0 failed: it could not load the model", 1)
    assert not (tmp_path / "logs").exists()
