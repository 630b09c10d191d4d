"""The page of a run, without a browser: tests/report/test_report_page.py looks at it in one."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import run_directories as made
from conftest import ROOT
from report_pages import Tags, html_of

from unsloth_accel import report
from unsloth_accel.report import compare_page
from unsloth_accel.report.figures import figures
from unsloth_accel.report.run_page import page_of_run
from unsloth_accel.report.run_record import read_run_record

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7 * 7 }}"


@pytest.mark.parametrize("kind", made.KINDS)
def test_every_kind_of_run_has_a_report(kind: str, tmp_path: Path) -> None:
    steps = {"steps": 150} if kind == "eight-gpus" else {}
    directory = made.KINDS[kind](tmp_path / kind, **steps)
    found = figures(read_run_record(directory))
    assert found.status == ("failed" if kind == "crashed" else "finished")
    html = html_of(directory)
    assert found.model in Tags(html).text
    assert "None" not in Tags(html).text.replace(json.dumps(made.VERSIONS), "")
    assert "nan" not in re.findall(r'points="([^"]*)"', html)


def test_what_a_method_learns_is_drawn(tmp_path: Path) -> None:
    directory = made.two_gpus(tmp_path / "run", steps=6)
    log, plan, results = (directory / name for name in ("logs/steps.jsonl", "plan.json", "results.json"))
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    noted = [line | {"rewards/margins": 0.1 * line["step"], "rewards/accuracies": 1.0} for line in lines]
    log.write_text("".join(json.dumps(line) + "\n" for line in noted), encoding="utf-8")
    assert "Reward margin" not in Tags(html_of(directory)).text
    plan.write_text(json.dumps(json.loads(plan.read_text(encoding="utf-8")) | {"method": "dpo"}), encoding="utf-8")
    pairs = {when: {"loss": 0.5, "pair_accuracy": share} for when, share in (("before", 0.5), ("after", 0.875))}
    results.write_text(json.dumps(json.loads(results.read_text(encoding="utf-8")) | pairs), encoding="utf-8")
    told = Tags(html_of(directory)).text
    assert "Reward margin" in told
    assert "Reward accuracy" in told
    assert "held-out pairs" in told
    assert "50\u00a0% → 88\u00a0%" in told


def test_what_was_rehearsed_is_told(tmp_path: Path) -> None:
    directory = made.two_gpus(tmp_path / "a", steps=12)
    results = json.loads((directory / "results.json").read_text(encoding="utf-8"))
    assert "Before the first step" not in Tags(html_of(directory)).text
    told = "rehearsed step 7, the longest, with 4 rows (8,192 tokens) at once: 58.3 GiB, 5% less than planned, in 1.9 s"
    (directory / "results.json").write_text(json.dumps(results | {"rehearsal": {"told": told}}), encoding="utf-8")
    assert f"Before the first step: {told}." in Tags(html_of(directory)).text


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
        run = read_run_record(directory)
        assert len(page_of_run(run)) > 9000, place
        assert len(compare_page.comparison_page(run, run)) > 9000, place
    for cut in (0, 1, len(text) // 2, len(text) - 3):
        path.write_text(text[:cut], encoding="utf-8")
        page_of_run(read_run_record(directory))
    path.write_bytes(b"\xff\xfe\x00{")
    page_of_run(read_run_record(directory))


@pytest.mark.parametrize("text", ["", "model: [", "5", "model: 5\nbatch: x\ndata: []\ntraining: null"])
def test_no_description_can_break_it(text: str, two: Path) -> None:
    (two / "run.planned.yaml").write_text(text, encoding="utf-8")
    run = read_run_record(two)
    assert len(page_of_run(run)) > 9000
    assert len(compare_page.comparison_page(run, run)) > 9000


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


def test_templates_are_installed_with_the_package() -> None:
    from setuptools import find_packages
    from setuptools.config.setupcfg import read_configuration

    data = read_configuration(str(ROOT / "setup.cfg"))["options"]["package_data"]["unsloth_accel"]
    installed = {path for pattern in data for path in (ROOT / "unsloth_accel").glob(pattern)}
    assert installed >= set((ROOT / "unsloth_accel" / "report" / "templates").iterdir())
    assert "unsloth_accel.report" in find_packages(str(ROOT), include=["unsloth_accel*"])


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
