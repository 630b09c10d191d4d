"""Rows of every source and format; what is wrong with them, said with row numbers; lengths; preview."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import SMOLLM2, Run, write_yaml
from hypothesis import given
from hypothesis import strategies as st

from unsloth_accel.cli.main import main
from unsloth_accel.config.run_config import DataConfig, from_dict
from unsloth_accel.data.formats import canonical, roles
from unsloth_accel.data.length_statistics import best_fit, lengths_of
from unsloth_accel.data.rows import MOST_SHOWN, Rows, read, read_rows
from unsloth_accel.data.sources import fingerprint, locate
from unsloth_accel.data.streaming import _shuffled
from unsloth_accel.errors import ConfigError
from unsloth_accel.validation.inputs import input_problems

ALPACA = [{"instruction": f"Name number {i}", "input": "é" * (i % 2), "output": str(i)} for i in range(7)]
CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows in the form that the file's name asks for."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".arrow":
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    elif path.suffix == ".feather":
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            made = csv.DictWriter(file, list(rows[0]))
            made.writeheader()
            made.writerows(rows)
    else:
        text = json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
        path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("end", ["jsonl", "json", "csv", "parquet", "arrow"])
def test_every_kind_of_file_holds_the_same_rows(tmp_path: Path, end: str) -> None:
    expected = [canonical(row) for row in ALPACA]
    assert read_rows(write(tmp_path / f"rows.{end}", ALPACA)) == expected
    for part, rows in enumerate((ALPACA[:3], ALPACA[3:])):
        write(tmp_path / "parts" / f"{part}.{end}", rows)
    for path in (tmp_path / "parts", tmp_path / "parts" / f"*.{end}", tmp_path / "par*" / "**"):
        found = read(path)
        assert found.rows == expected
        assert re.fullmatch(rf"row .*/1\.{end}:\d", found.places([3]))
    assert fingerprint(tmp_path / "parts") != fingerprint(tmp_path / f"rows.{end}")


def test_arrows_other_form_and_what_datasets_saves(tmp_path: Path) -> None:
    from datasets import Dataset

    write(tmp_path / "rows.feather", ALPACA).rename(tmp_path / "rows.arrow")
    Dataset.from_list(ALPACA).save_to_disk(str(tmp_path / "saved"))
    expected = [canonical(row) for row in ALPACA]
    assert read_rows(tmp_path / "rows.arrow") == expected
    assert read_rows(tmp_path / "saved") == expected


def test_messages_in_a_csv_are_json(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", [{"messages": json.dumps(CHAT["messages"])}])
    assert read_rows(path) == [CHAT]


def test_a_hub_id_is_left_to_the_launch(description: dict[str, Any]) -> None:
    assert locate("trl-lib/Capybara").hub == "trl-lib/Capybara"
    assert input_problems(from_dict({**description, "data": {"path": "trl-lib/Capybara"}})) == []


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("broken.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n{"text": "b"}\n{"text": "\xe9"}\n', "broken.jsonl:4"),
        ("broken.csv", b"text\na\n\xff\n", "broken.csv:3: is not UTF-8 text (byte 1 of the line)."),
        ("more.csv", b"text\na,b\n", "more.csv:2: has more fields than the first line names."),
        ("quote.csv", b'text\n"a"b\n', "malformed CSV"),
        ("cut.json", b'[{"text": "a"},\n{"text"]', "cut.json:2: malformed JSON"),
        ("bad.parquet", b"PAR1 not", "can't be read as Parquet"),
        ("bad.arrow", b"not arrow at all", "can't be read as Arrow"),
        ("empty.csv", b"text\n", "the file has no rows."),
        ("roles.jsonl", b'{"conversations": [{"from": "cat", "value": "miaow"}]}', "a message is from 'cat'"),
        ("half.jsonl", b'{"instruction": "a"}', "has no field 'output'"),
        ("dumb.jsonl", b'{"instruction": "a", "output": " "}', "field 'output' is empty"),
        ("mute.jsonl", b'{"messages": [{"role": "user", "content": ""}]}', "there is nothing to learn"),
        ("mixed.jsonl", b'{"text": "a"}\n{"instruction": "a", "output": "b"}', ":2: is a messages row and the first"),
    ],
)
def test_bad_files_are_told_by_the_command(
    tmp_path: Path, description: dict[str, Any], cli: Run, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    done = cli("launch", write_yaml(tmp_path / "run.yaml", description), f"data.path={tmp_path / name}")
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert all("Fix: " in line for line in done.stderr.strip().splitlines())
    assert not (tmp_path / "out").exists()


def test_a_directory_of_several_kinds_and_one_of_none(tmp_path: Path) -> None:
    write(tmp_path / "a" / "x.csv", ALPACA)
    write(tmp_path / "a" / "x.jsonl", ALPACA)
    (tmp_path / "b").mkdir()
    for path, words in (("a", "several kinds (csv, jsonl)"), ("b", "no file of rows"), ("b/*.csv", "no file matches")):
        with pytest.raises(ConfigError, match=re.escape(words)):
            locate(tmp_path / path)


TEXT = st.text(min_size=1).filter(str.strip)


@given(TEXT, st.text(), TEXT)
def test_alpaca_becomes_a_chat(instruction: str, more: str, output: str) -> None:
    made = canonical({"instruction": instruction, "input": more, "output": output, "id": 5})
    assert roles(made) == ["user", "assistant"]
    asked, answered = (message["content"] for message in made["messages"])
    assert answered == output
    assert asked == (f"{instruction}\n\n{more}" if more else instruction)


@given(st.lists(st.tuples(st.sampled_from(["human", "gpt", "system", "tool"]), TEXT), min_size=1))
def test_sharegpt_becomes_the_same_chat(turns: list[tuple[str, str]]) -> None:
    made = canonical({"conversations": [{"from": speaker, "value": said} for speaker, said in turns]})
    words = {"human": "user", "gpt": "assistant"}
    expected = [{"role": words.get(speaker, speaker), "content": said} for speaker, said in turns]
    assert made == canonical({"messages": expected}) == {"messages": expected}


def test_columns_of_other_names(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"question": "a", "answer": "b"}])
    data = DataConfig(path=str(path), columns={"prompt": "question", "completion": "answer"})
    assert read_rows(path, data=data) == [{"prompt": "a", "completion": "b"}]
    with pytest.raises(ConfigError, match=r"no field 'nothing', which data\.columns\.text names"):
        read_rows(path, data=DataConfig(path=str(path), columns={"text": "nothing"}))


def test_a_named_format_is_not_guessed(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{**CHAT, "text": "t"}])
    assert read_rows(path) == [CHAT]
    assert read_rows(path, data=DataConfig(path=str(path), format="text")) == [{"text": "t"}]


@pytest.mark.parametrize(
    ("data", "training", "words"),
    [
        ({"streaming": True}, {}, "a stream has no known end"),
        ({"streaming": True}, {"max_steps": 2, "packing": True}, "packing needs to know all rows"),
        ({"columns": {"mesages": "x"}}, {}, "did you mean messages?"),
        ({"format": "alpacca"}, {}, "use one of: auto, chat"),
        ({"too_long": "keep"}, {}, "use one of: cut, drop"),
        ({}, {"completion_only_loss": True}, "set data.train_on instead"),
        ({}, {"dataset_kwargs": {}}, "set data.format"),
        ({}, {"chat_template_path": "none.jinja"}, "name a .jinja file"),
    ],
)
def test_settings_that_mean_nothing(
    description: dict[str, Any], data: dict[str, Any], training: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        from_dict({**description, "data": description["data"] | data, "training": training})


def test_rows_that_responses_leave_nothing_of(tmp_path: Path, description: dict[str, Any]) -> None:
    question = {"messages": [{"role": "user", "content": "?"}]}
    late = {"messages": [*CHAT["messages"], {"role": "user", "content": "?"}]}
    path = write(tmp_path / "rows.jsonl", [CHAT, *[question] * 25, late])
    run = from_dict({**description, "data": {"path": str(path), "train_on": "responses"}})
    (error, *_) = input_problems(run)
    assert error.severity == "error"
    assert "25 rows without an assistant's message" in str(error)
    assert "rows 2, 3, 4" in str(error)
    assert f"and {25 - MOST_SHOWN} more" in str(error)
    write(path, [CHAT, late])
    warning = input_problems(run)[0]
    assert (warning.severity, warning.key) == ("warning", "data.train_on")
    assert "(row 2)" in str(warning)


def test_fewer_rows_than_a_batch(description: dict[str, Any]) -> None:
    small = {**description, "batch": {"global_size": 16}}
    (only,) = input_problems(from_dict(small))
    assert only.severity == "warning"
    assert "8 rows in all: every step is an epoch of 8, and never 16" in str(only)
    (only,) = input_problems(from_dict({**small, "training": {"dataloader_drop_last": True}}))
    assert only.severity == "error"
    assert "no step" in str(only)


def test_a_place_names_its_file_where_there_are_several() -> None:
    rows = Rows(numbers=[1, 3, 1], files=[(0, "a.jsonl"), (2, "b.jsonl")])
    assert rows.places([0, 1, 2]) == "rows a.jsonl:1, a.jsonl:3, b.jsonl:1"


@given(st.lists(st.integers(1, 64), min_size=1), st.integers(1, 9))
def test_packing_keeps_every_token_within_the_limit(lengths: list[int], batch: int) -> None:
    packed = best_fit(lengths, 64)
    assert sum(packed) == sum(lengths)
    assert max(packed) <= 64
    assert sum(2 * tokens <= 64 for tokens in packed) <= 1, "two that would fit into one"
    figures = lengths_of(lengths, 64, batch)
    assert sum(number for *_, number in figures.histogram) == len(lengths) == figures.rows
    assert 0 <= figures.padding < 1


def test_packing_as_trl_counts_it() -> None:
    from datasets import Dataset
    from trl import pack_dataset

    lengths = [(37 * i) % 90 + 5 for i in range(200)]
    packed = pack_dataset(Dataset.from_list([{"input_ids": [1] * n} for n in lengths]), 128, "bfd")
    assert len(best_fit(lengths, 128)) == len(packed)


@given(st.integers(0, 2500), st.integers())
def test_a_stream_is_shuffled_and_whole(count: int, seed: int) -> None:
    import random

    rows = [{"text": i} for i in range(count)]
    drawn = [row["text"] for row in _shuffled(iter(rows), random.Random(seed))]
    assert sorted(drawn) == list(range(count))
    assert count < 20 or drawn != list(range(count))


def test_preview_marks_what_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of rows that need no Unsloth; chats are compared with the trainer's own labels in tests/data/test_prepare.py."""
    rows = [{"prompt": "The sky is", "completion": " blue" * n} for n in range(1, 31)]
    path = write(tmp_path / "rows.csv", rows)
    words = [f"model.name={SMOLLM2}", f"data.path={path}", "model.max_seq_length=20", "--rows", "2"]
    assert main(["preview", *words]) == 0
    told = capsys.readouterr().out
    assert "The sky is⟦ blue<|im_end|>⟧" in told
    assert "row 3: 6 tokens, 3 trained" in told
    assert "14 rows are longer" in told
    assert main(["preview", *words, "--most", "10", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["whole"] is False
    assert found["lengths"]["rows"] == 10
    assert found["rows"][0]["labels"][:3] == [-100] * 3
    assert main(["preview", *words, "data.train_on=responses", f"data.path={tmp_path / 'no.csv'}"]) == 2
