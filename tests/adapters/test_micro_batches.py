"""Micro-batches in parts; runs that take them so are in tests/training/test_training.py."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def collated(lengths: list[int], flat: bool) -> dict[str, Any]:
    """Rows 1 1 1 …, 2 2 …, by TRL's own collator and, laid end to end, with what Unsloth adds."""
    import torch
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    rows = [{"input_ids": [row + 1] * length} for row, length in enumerate(lengths)]
    inputs: dict[str, Any] = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=flat)(rows)
    if flat:
        inputs["packed_seq_lengths"] = torch.tensor(lengths, dtype=torch.int32)
    return {**inputs, "use_cache": False}


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 6), st.booleans())
def test_parts_hold_every_row_once(lengths: list[int], parts: int, flat: bool) -> None:
    from unsloth_accel.adapters.micro_batches import rows_and_tokens, split

    inputs = collated(lengths, flat)
    assert rows_and_tokens(inputs) == (len(lengths), sum(lengths) if flat else len(lengths) * max(lengths))
    found = split(inputs, parts)
    assert len(found) == min(parts, len(lengths))
    rows: dict[int, int] = {}
    labels = 0
    for part in found:
        assert part["use_cache"] is False
        shapes = {
            tuple(part[name].shape)
            for name in ("input_ids", "labels", "position_ids", "attention_mask")
            if name in part
        }
        assert len(shapes) == 1
        assert rows_and_tokens(part)[1] == part["input_ids"].numel()
        ids, counts = part["input_ids"].unique(return_counts=True)
        rows |= {int(row): int(count) for row, count in zip(ids, counts, strict=True) if row}
        labels += int((part["labels"] >= 0).sum())
        if flat:
            assert sum(part["packed_seq_lengths"].tolist()) == part["input_ids"].shape[1]
            starts = (part["position_ids"][0] == 0).sum()
            assert int(starts) == len(part["packed_seq_lengths"])
        else:
            assert part["attention_mask"].any(0).all(), "columns of nothing but padding are left"
    assert rows == {row + 1: length for row, length in enumerate(lengths)}
    assert labels == int((inputs["labels"] >= 0).sum())
