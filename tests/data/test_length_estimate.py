from pathlib import Path

import pytest
from conftest import chat_rows

from unsloth_accel.config.run_config import DataConfig
from unsloth_accel.data.length_estimate import row_lengths


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
