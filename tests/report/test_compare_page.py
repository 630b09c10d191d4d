import json
import re
import shutil
from pathlib import Path
from typing import Any

import run_directories as made
import yaml
from conftest import write_checkpoint

from unsloth_accel import report
from unsloth_accel.artifacts.checkpoints import RECORD, files_of
from unsloth_accel.config.run_config import RunConfig
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
    assert "Other rows or tokens, by data.path: losses can't be compared." in said
    assert "64 rows per step against 128" in said
    assert "B failed: its last figures" in said
    verdict = compare_page.verdict(read_run_record(two), read_run_record(other))
    assert "not steps over the same rows" in verdict
    html = report.write_comparison(two, other).read_text(encoding="utf-8")
    assert 'data-x="epoch"' in html


def test_whatever_makes_other_rows_or_tokens_is_named(planned: RunConfig, tmp_path: Path) -> None:
    """By the facts that resuming goes by: what is written, and, where both have a checkpoint, what it was made with."""

    def told(**changes: dict[str, Any]) -> tuple[list[str], list[str]]:
        path = other / "run.planned.yaml"
        values = yaml.safe_load((one / "run.planned.yaml").read_text(encoding="utf-8"))
        values |= {section: {**values[section], **given} for section, given in changes.items()}
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        a, b = read_run_record(one), read_run_record(other)
        reasons = [re.sub(r".* by (.*): losses.*", r"\1", reason) for reason in compare_page.not_comparable(a, b)]
        return reasons, [row.name for row in compare_page.differing(a, b)]

    one, other = made.two_gpus(tmp_path / "one"), made.two_gpus(tmp_path / "other")
    for key, value in {
        "model.chat_template": "chatml",
        "model.added_tokens": ["<call>"],
        "data.chat_template_kwargs": {"enable_thinking": False},
        "data.eval_fraction": 0.1,
        "training.packing": True,
    }.items():
        section, _, name = key.partition(".")
        reasons, rows = told(**{section: {name: value}})
        assert (reasons, len(rows)) == ([key], 1)
    assert told(training={"packing": False, "truncation_mode": "keep_start"})[0] == []
    assert told(data={"eval_path": "x"})[0] == []
    mix = [{"path": "./data/train.jsonl", "weight": 3}, {"path": "b.jsonl", "weight": 1}]
    reasons, rows = told(data={"mix": mix, "path": ""})
    assert reasons == ["data.mix, data.path"]
    assert {"data.mix.0.path", "data.mix.1.weight"} <= {*rows}
    shutil.copy(other / "run.planned.yaml", one)
    mix = [{"path": "data/train.jsonl", "weight": 0.75}, {"path": "b.jsonl", "weight": 0.25}]
    assert told(data={"mix": mix})[0] == []
    for directory, tokenizer in ((one, "1"), (other, "2")):
        checkpoint = write_checkpoint(directory / "checkpoint-240", planned, record=False)
        record = {"made_with": {"tokenizer": tokenizer}, "files": files_of(checkpoint)}
        (checkpoint / RECORD).write_text(json.dumps(record), encoding="utf-8")
    assert told()[0] == ["tokenizer"], "of one name, and with another template by now"
