import json
from pathlib import Path

import pytest
from conftest import chat_rows

from unsloth_accel.config.run_config import DataConfig
from unsloth_accel.data.length_estimate import RowLengths, row_lengths


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return chat_rows(tmp_path / "chats.jsonl")


def test_counted_where_the_tokenizer_is(rows: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    vocabulary = {letter: number for number, letter in enumerate("xy\n")}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = row_lengths(DataConfig(path=str(rows)), tmp_path, 1000)
    assert found is not None
    assert found.counted
    assert found.mean == (400 + 1000) / 2  # the longer one is cut
    assert "counted in 40 rows" in str(found)
    assert row_lengths(DataConfig(path="none.jsonl"), tmp_path, 1000) is None


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "arrow"])
def test_rows_are_counted_in_files_of_every_kind(kind: str, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    texts = [f"row {number}" for number in range(1200)]
    path = tmp_path / f"rows.{kind}"
    table = pyarrow.table({"text": texts})
    if kind == "parquet":
        pyarrow.parquet.write_table(table, path)
    elif kind == "arrow":
        with pyarrow.ipc.new_stream(path, table.schema) as file:
            file.write_table(table)
    elif kind == "csv":
        path.write_text("\n".join(["text", *texts]) + "\n", encoding="utf-8")
    else:
        lines = [json.dumps({"text": text}) for text in texts]
        path.write_text(f"[{','.join(lines)}]" if kind == "json" else "\n\n".join(lines), encoding="utf-8")
    found = row_lengths(DataConfig(path=str(path)), tmp_path, 1000)
    assert found is not None
    assert (found.total, found.total_known, found.rows) == (1200, True, 500)


def test_rows_that_are_dropped_are_not_counted(rows: Path, tmp_path: Path) -> None:
    found = row_lengths(DataConfig(path=str(rows), too_long="drop"), tmp_path, 200)
    assert found is not None
    assert (found.total, found.total_known, found.mean) == (20, False, 100.0)


def test_the_longest_of_so_many_rows() -> None:
    rows = RowLengths(mean=2.0, rows=4, counted=True, ordered=(1.0, 1.0, 2.0, 4.0))
    assert rows.longest_of(1) == 2.0
    # Of two draws the longest is 1 with 4/16, at most 2 with 9/16.
    assert rows.longest_of(2) == pytest.approx((4 * 1 + 5 * 2 + 7 * 4) / 16)
    assert rows.longest_of(1000) == pytest.approx(4.0)
    assert RowLengths(mean=3.0, rows=1, counted=True).longest_of(8) == 3.0
