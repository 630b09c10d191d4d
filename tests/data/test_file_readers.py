import json
import re
from pathlib import Path

import pytest
from row_files import ALPACA, CHAT, write

from unsloth_accel.data.formats import canonical
from unsloth_accel.data.rows import read_checked_rows, read_rows
from unsloth_accel.data.sources import fingerprint
from unsloth_accel.errors import ConfigError


@pytest.mark.parametrize("end", ["jsonl", "json", "csv", "parquet", "arrow"])
def test_every_kind_of_file_holds_the_same_rows(tmp_path: Path, end: str) -> None:
    expected = [canonical(row) for row in ALPACA]
    assert read_rows(write(tmp_path / f"rows.{end}", ALPACA)) == expected
    for part, rows in enumerate((ALPACA[:3], ALPACA[3:])):
        write(tmp_path / "parts" / f"{part}.{end}", rows)
    for path in (tmp_path / "parts", tmp_path / "parts" / f"*.{end}", tmp_path / "par*" / "**"):
        found = read_checked_rows(path)
        assert list(found) == expected
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


def test_json_in_a_csv_that_is_an_answer_is_text(tmp_path: Path) -> None:
    answers = ['[{"name": "iron", "number": 26}]', '[["iron", 26]]', "[]", "[1]"]
    rows = [{"instruction": "a", "input": "", "output": answer} for answer in answers]
    assert [row["messages"][1]["content"] for row in read_rows(write(tmp_path / "rows.csv", rows))] == answers


def test_earlier_turns_in_a_csv(tmp_path: Path) -> None:
    rows = [{"instruction": "a", "output": "b", "history": text} for text in ("", "[]", '[["c", "d"]]')]
    none, empty, one = (row["messages"] for row in read_rows(write(tmp_path / "rows.csv", rows)))
    assert none == empty == CHAT["messages"]
    assert [message["content"] for message in one] == ["c", "d", "a", "b"]
    with pytest.raises(ConfigError, match="no list of pairs"):
        read_rows(write(tmp_path / "bad.csv", [{"instruction": "a", "output": "b", "history": "c"}]))


def test_text_in_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes('{"text": "caf\xe9"}\n'.encode("latin-1"))
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_rows(path)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.jsonl", '{"text": ' + "1" * 5000 + "}\n", "malformed JSON: Exceeds the limit"),
        ("a.json", '[{"text": ' + "1" * 5000 + "}]", "malformed JSON: Exceeds the limit"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.csv", "prompt,completion,completion\na,b,c\n", "names the column 'completion' twice"),
    ],
)
def test_what_python_or_a_reader_would_not_tell(name: str, text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=words):
        read_rows(tmp_path / name)
