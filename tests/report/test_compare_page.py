import re
from pathlib import Path

import run_directories as made

from unsloth_accel import report
from unsloth_accel.report import compare_page
from unsloth_accel.report.figures import figures
from unsloth_accel.report.run_record import read_run_record


def test_a_comparison_says_what_it_may(tmp_path: Path) -> None:
    a = made.two_gpus(tmp_path / "a")
    b = made.two_gpus(tmp_path / "b", seed=9, speed=1.35, rate=3e-4)
    first, second = read_run_record(a), read_run_record(b)
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
    run = read_run_record(two)
    said = compare_page.verdict(run, run)
    assert "as many tokens/s as A, within 1\u00a0%" in said
    assert "the mean loss is the same; single steps differ by less than 0.01\u00a0%" in said
    assert compare_page.differing(run, run) == []
    assert {row.ratio for row in compare_page.rows_of(run, run, figures(run), figures(run))} == {"1.00 ×"}


def test_a_directory_has_more_than_one_spelling(two: Path, tmp_path: Path) -> None:
    """`./models/X` is `models/X`, and rows in `./data` those in `data`."""
    other = made.two_gpus(tmp_path / "other")
    for directory, before in ((two, ""), (other, "./")):
        text = (directory / "run.planned.yaml").read_text(encoding="utf-8")
        text = text.replace(made.MODEL, f"{before}models/X").replace("data/train.jsonl", f"{before}data/train.jsonl")
        (directory / "run.planned.yaml").write_text(text, encoding="utf-8")
    first, second = read_run_record(two), read_run_record(other)
    assert (first.run["model"]["name"], second.run["model"]["name"]) == ("models/X", "./models/X")
    assert compare_page.not_comparable(first, second) == []
    assert compare_page.differing(first, second) == []


def test_what_cannot_be_compared_is_said(two: Path, tmp_path: Path) -> None:
    other = made.crashed(tmp_path / "other")
    text = (other / "run.planned.yaml").read_text(encoding="utf-8").replace("data/train.jsonl", "data/more.jsonl")
    (other / "run.planned.yaml").write_text(text.replace("global_size: 64", "global_size: 128"), encoding="utf-8")
    (other / "plan.json").unlink()
    said = " ".join(compare_page.not_comparable(read_run_record(two), read_run_record(other)))
    assert "Other data: losses can't be compared." in said
    assert "64 rows per step against 128" in said
    assert "B failed: its last figures" in said
    verdict = compare_page.verdict(read_run_record(two), read_run_record(other))
    assert "not steps over the same rows" in verdict
    html = report.write_comparison(two, other).read_text(encoding="utf-8")
    assert 'data-x="epoch"' in html
