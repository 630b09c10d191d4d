"""A batch over N, by rows or tokens, and results back in the original order."""

from typing import Any

import pytest
import torch

from unsloth_accel.errors import ConfigError
from unsloth_accel.multigpu.sharding import shard_batch

LENGTHS = [9, 1, 7, 2, 5]
MASK = torch.tensor([[1] * length + [0] * (9 - length) for length in LENGTHS])
BATCH = {"input_ids": torch.arange(45).reshape(5, 9), "attention_mask": MASK, "names": list("abcde"), "scale": 2.0}


@pytest.mark.parametrize("parts", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("by", ["rows", "tokens"])
def test_every_row_is_in_one_part_and_comes_back_in_its_place(parts: int, by: Any) -> None:
    shards = shard_batch(BATCH, parts, by=by)
    assert len(shards.parts) == parts
    assert sorted(row for rows in shards.rows for row in rows) == [0, 1, 2, 3, 4]
    assert all(part["scale"] == 2.0 for part in shards.parts)
    ids = shards.restore([part["input_ids"] for part in shards.parts])
    assert torch.equal(ids, BATCH["input_ids"])
    assert shards.restore([part["names"] for part in shards.parts]) == BATCH["names"]


def test_parts_are_even_by_what_they_are_divided_by() -> None:
    assert [len(rows) for rows in shard_batch(BATCH, 3).rows] == [2, 2, 1]
    tokens = [int(part["attention_mask"].sum()) for part in shard_batch(BATCH, 2, by="tokens").parts]
    assert sorted(tokens) == [12, 12], "of 24; by rows it is 17 and 7"


@pytest.mark.parametrize(
    ("batch", "parts", "by", "key"),
    [
        ({"a": [1], "b": [1, 2]}, 2, "rows", "batch"),
        ({"a": 1}, 2, "rows", "batch"),
        ({"a": [1]}, 0, "rows", "parts"),
        ({"a": [1]}, 2, "columns", "by"),
        ({"a": [1]}, 2, "tokens", "by"),
    ],
)
def test_what_is_no_batch_is_refused(batch: dict[str, Any], parts: int, by: Any, key: str) -> None:
    with pytest.raises(ConfigError) as error:
        shard_batch(batch, parts, by=by)
    assert error.value.problems[0].key == key


def test_results_of_other_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match="one result per row"):
        shard_batch(BATCH, 2).restore([[1], [2]])
