"""Rows of several sources, a share that is held out, and the first of them: the same ones everywhere."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from unsloth_accel.config.data_mix import read_mix, weights_of
from unsloth_accel.config.read_run import from_dict
from unsloth_accel.config.run_config import RunConfig
from unsloth_accel.data.length_estimate import row_lengths
from unsloth_accel.data.mix import HELD_OUT, TRAIN, mix_facts, mix_warnings, parts_of, run_rows, run_stream
from unsloth_accel.errors import ConfigError
from unsloth_accel.validation.inputs import _rows

COUNTS = {"a": 100, "b": 30}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    return {
        name: _write(tmp_path / f"{name}.jsonl", [{"text": f"{name} {i}"} for i in range(COUNTS[name])])
        for name in COUNTS
    }


def _write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def _run(training: dict[str, Any] | None = None, **data: Any) -> RunConfig:
    given = {"model": {"name": "m"}, "data": data, "output_dir": "runs/x", "training": training or {}}
    return from_dict(given)


def _problems(training: dict[str, Any] | None = None, **data: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        parts_of(_run(training, **data))
    return str(caught.value)


def test_without_weights_all_rows_of_all_sources_are_trained(files: dict[str, str]) -> None:
    rows = run_rows(_run(mix=[files["a"], {"path": files["b"], "max_rows": 10}]))
    assert [row["text"] for row in rows] == [f"a {i}" for i in range(100)] + [f"b {i}" for i in range(10)]
    assert rows.sources == {files["a"]: 100, files["b"]: 10}
    assert rows.places([99, 100]) == f"rows {files['a']}:100, {files['b']}:1"
    assert rows.notes == (f"mixed of {files['a']} 90.9% (100 rows), {files['b']} 9.1% (10 rows).",)


@pytest.mark.parametrize("until", ["first_exhausted", "all_exhausted"])
def test_weights_are_the_shares_in_which_datasets_draws(files: dict[str, str], until: str) -> None:
    from datasets import Dataset, interleave_datasets

    mix = [{"path": files["a"], "weight": 2}, {"path": files["b"], "weight": 6}]
    run = _run({"seed": 5}, mix=mix, stopping_strategy=until)
    sets = [Dataset.from_list([{"text": f"{name} {i}"} for i in range(count)]) for name, count in COUNTS.items()]
    theirs = interleave_datasets(sets, probabilities=[0.25, 0.75], seed=5, stopping_strategy=until)["text"]
    rows = run_rows(run)
    assert [row["text"] for row in rows] == list(theirs)
    assert sum(rows.sources.values()) == len(rows)
    # The first rows are the same ones where only they are read, and of a stream.
    assert run_rows(run, most=20).texts == rows.texts[:20]
    assert list(run_stream(run)) == rows.texts
    total = row_lengths(run.data, "no-tokenizer", 100)
    assert total is not None
    assert not total.total_known
    assert total.total
    assert 0.5 < total.total / len(rows) < 2
    other = _run({"seed": 6}, mix=mix, stopping_strategy=until)
    assert run_rows(other).texts != rows.texts


def test_held_out_rows_are_drawn_by_the_seed_and_trained_by_none(files: dict[str, str]) -> None:
    mix = [{"path": files["a"], "weight": 1}, {"path": files["b"], "weight": 1}]
    run = _run(mix=mix, stopping_strategy="all_exhausted", eval_fraction=0.1)
    parts = parts_of(run)
    held, trained = parts[HELD_OUT], parts[TRAIN]
    assert len(held) == 13, "a tenth of the different rows, although those of b are drawn several times"
    assert len(trained) > 150
    assert not {*held.texts} & {*trained.texts}
    assert {*held.texts} | {*trained.texts} == {*run_rows(_run(mix=mix, stopping_strategy="all_exhausted")).texts}
    assert parts_of(run)[HELD_OUT].texts == held.texts
    assert run_rows(run, most=5).texts == trained.texts[:5]
    assert parts_of(_run({"seed": 1}, mix=mix, eval_fraction=0.1))[HELD_OUT].texts != held.texts
    assert sum(trained.sources.values()) == len(trained)


def test_equal_rows_are_on_one_side(tmp_path: Path) -> None:
    path = _write(tmp_path / "rows.jsonl", [{"text": str(i % 5)} for i in range(50)])
    parts = parts_of(_run(path=path, eval_fraction=0.4))
    assert (len(parts[HELD_OUT]), len(parts[TRAIN])) == (2, 30)


def test_the_first_rows_are_read_and_no_others(tmp_path: Path) -> None:
    path = _write(tmp_path / "rows.jsonl", [{"text": str(i)} for i in range(5)] + [{"nothing": 1}])
    run = _run(path=path, max_rows=5, eval_fraction=0.2)
    assert {name: len(rows) for name, rows in parts_of(run).items()} == {TRAIN: 4, HELD_OUT: 1}
    assert len(run_rows(_run(path=path, max_rows=3))) == 3
    found = row_lengths(run.data, "no-tokenizer", 100)
    assert found is not None
    assert found.total == 4
    with pytest.raises(ConfigError, match=r"rows\.jsonl:6"):
        run_rows(_run(path=path))


def test_every_source_is_checked_and_named(
    tmp_path: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a long path is told in part
    broken = _write(tmp_path / "broken.jsonl", [{"text": "a"}, {"nothing": 1}])
    _write(tmp_path / "empty.jsonl", [])
    said = _problems(mix=[files["a"], broken, "empty.jsonl", "gone.jsonl"])
    for part in (
        f"{broken}:2: has none of the needed",
        "data.mix.2.path='empty.jsonl': the file has no rows",
        "data.mix.3.path='gone.jsonl': no such file",
    ):
        assert part in said
    problems = [str(one) for one in _rows(_run(mix=[files["a"], broken, "gone.jsonl"]))[1]]
    assert len(problems) == 2, "a file that isn't there keeps no other from being looked at"
    _write(tmp_path / "chats.jsonl", [{"prompt": "a", "completion": "b"}])
    said = _problems(mix=[files["a"], "chats.jsonl"])
    assert "data.mix.1.path='chats.jsonl': holds rows of prompt-completion, and data.mix.0.path rows of text" in said


def test_sources_may_be_of_other_formats_and_columns(tmp_path: Path) -> None:
    alpaca = _write(tmp_path / "alpaca.jsonl", [{"instruction": "a", "output": "b"}])
    talks = _write(
        tmp_path / "talks.jsonl", [{"talk": [{"from": "human", "value": "c"}, {"from": "gpt", "value": "d"}]}]
    )
    mix = [alpaca, {"path": talks, "format": "sharegpt", "columns": {"conversations": "talk"}}]
    rows = list(run_rows(_run(mix=mix)))
    assert [[message["content"] for message in row["messages"]] for row in rows] == [["a", "b"], ["c", "d"]]


@pytest.mark.parametrize("weight", [1e-320, 1e-13, 3_000_000_000_000, 1e308])
def test_weights_are_weighed_against_each_other_only(weight: float) -> None:
    mix, wrong = read_mix([{"path": "a", "weight": weight}, {"path": "b", "weight": weight}])
    assert (wrong, weights_of(mix)) == ([], [0.5, 0.5])
    assert weights_of([{"weight": 0.7}, {"weight": 0.1}]) == [0.7 / (0.7 + 0.1), 0.1 / (0.7 + 0.1)], "every digit"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"mix": [{"path": "a", "weight": -1}, "b"]}, "data.mix.0.weight=-1: must be more than 0"),
        ({"mix": [{"path": "a", "weight": 0}]}, "data.mix.0.weight=0: must be more than 0"),
        ({"mix": [{"path": "a", "weight": float("nan")}]}, "a finite number is needed"),
        ({"mix": [{"path": "a", "weight": 10**400}]}, "is beyond what could be weighed"),
        ({"mix": [{"path": "a", "weight": float("inf")}]}, "is beyond what could be weighed"),
        ({"mix": [{"path": "a", "weight": 1e-5}, {"path": "b", "weight": 1e12}]}, "=1e-05: is a share of 1e-17"),
        ({"mix": [{"path": "a", "weight": "much"}]}, "data.mix.0.weight='much': wrong type"),
        ({"mix": [{"path": "a", "weight": 1}, "b"]}, "data.mix.1='b': has no weight, and other sources have one"),
        ({"mix": [{"path": "a", "wieght": 1}]}, "data.mix.0.wieght: unknown key"),
        ({"mix": [{"weight": 1}]}, "data.mix.0.path: is missing"),
        ({"mix": "a.jsonl"}, "a list of sources is needed"),
        ({"mix": [{"path": "a", "max_rows": 0}]}, "data.mix.0.max_rows=0: must be a whole number of at least 1"),
        ({"mix": ["a"], "path": "b"}, "data.path='b': data.mix names the rows already"),
        ({"mix": ["a", "b"], "streaming": True}, "one source would be trained after another"),
        ({"path": "a", "columns": {"messages": {"a": "b"}}}, "dict[str, str] is needed"),
        ({"path": "a", "max_rows": 0}, "data.max_rows=0: must be at least 1"),
        ({"path": "a", "eval_fraction": 1}, "data.eval_fraction=1.0: is no share"),
        ({"path": "a", "eval_fraction": 0}, "data.eval_fraction=0.0: is no share"),
        ({"path": "a", "eval_fraction": 0.1, "eval_path": "b"}, "data.eval_path names the held-out rows already"),
        ({"path": "a", "eval_fraction": 0.1, "streaming": True}, "rows of a stream aren't known before"),
        ({"path": "a", "stopping_strategy": "none"}, "first_exhausted, all_exhausted"),
        ({}, "data.path: is missing"),
        ({"mix": []}, "data.path: is missing"),
    ],
)
def test_what_no_mix_can_be_is_told(data: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _run({"max_steps": 1}, **data)
    assert words in str(caught.value)


def test_a_share_that_leaves_no_row_is_told(files: dict[str, str]) -> None:
    said = _problems(path=files["b"], eval_fraction=0.01)
    assert "data.eval_fraction=0.01: of 30 different rows leaves none to evaluate on" in said
    assert "leaves no row to train on" in _problems(path=files["b"], eval_fraction=0.99)
    (least, most) = re.findall(r"from (\S+) to (\S+), or more rows", said)[0]
    for share in (least, most):
        parts_of(_run(path=files["b"], eval_fraction=float(share)))
    unending = [{"path": files["a"], "weight": 1e6}, {"path": files["b"], "weight": 1}]
    assert "would draw about 30,000,030 rows of 130" in _problems(mix=unending, stopping_strategy="all_exhausted")


def test_weights_that_look_like_shares_and_are_none_are_told() -> None:
    def told(*weights: float) -> list[str]:
        return [str(one) for one in mix_warnings(_run(mix=[{"path": str(w), "weight": w} for w in weights]).data)]

    assert told(0.5, 0.5) == told(3, 1) == []
    assert "add up to 0.9, not to 1: they are taken as ratios, 77.8%, 22.2%" in told(0.7, 0.2)[0]


def test_an_end_of_a_mix_without_weights_is_told() -> None:
    until = {"stopping_strategy": "all_exhausted"}
    assert not mix_warnings(_run(mix=[{"path": "a", "weight": 1}], **until).data)
    for data in ({"mix": ["a", "b"]}, {"path": "a"}):
        (warning,) = mix_warnings(_run(**data, **until).data)
        assert (warning.key, warning.severity) == ("data.stopping_strategy", "warning")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"format": "alpacca"}, "data.mix.1.format='alpacca': unknown value. Fix: use one of: auto, chat"),
        ({"columns": {"mesages": "chat"}}, "data.mix.1.columns.mesages='chat': unknown column. Fix: did you mean"),
    ],
)
def test_a_source_is_read_as_data_would_be(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        _run(mix=["a.jsonl", {"path": "b.jsonl", **wrong}])


def test_a_mix_goes_in_the_place_of_a_path() -> None:
    assert _run(mix=["a.jsonl"], path=None).data.path == ""
    with pytest.raises(ConfigError, match="or remove it"):
        _run(mix=["a.jsonl"], path="b.jsonl")
    with pytest.raises(ConfigError, match=r"data\.mix: Interpolation key 'nothing' not found") as caught:
        _run(mix="${nothing}")
    assert len(caught.value.problems) == 1


def test_a_mix_is_known_by_its_rows_and_not_by_their_place(tmp_path: Path, files: dict[str, str]) -> None:
    moved = tmp_path / "elsewhere.jsonl"
    moved.write_bytes(Path(files["a"]).read_bytes())
    facts = [mix_facts([{"path": path, "weight": 1}]) for path in (files["a"], str(moved), files["b"])]
    assert facts[0] == facts[1] != facts[2]
