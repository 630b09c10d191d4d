"""Micro-batches in parts; runs that take them so are in tests/training/test_training.py."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def boundaries(position_ids: Any) -> dict[str, Any]:
    """What TRL 1.16's collator adds where rows lie end to end."""
    import torch

    starts = (position_ids[0] == 0).nonzero().flatten()
    ends = torch.cat([starts, torch.tensor([position_ids.shape[1]])]).to(torch.int32)
    numbers = torch.repeat_interleave(torch.arange(len(starts), dtype=torch.int32), ends.diff())[None]
    longest = int(ends.diff().max())
    sides = {f"cu_seq_lens_{side}": ends for side in "qk"} | {f"max_length_{side}": longest for side in "qk"}
    return {**sides, "seq_idx": numbers}


def collated(lengths: list[int], flat: bool, said: str) -> dict[str, Any]:
    """Rows 1 1 1 …, 2 2 …, by TRL's own collator and, laid end to end, with boundaries as Unsloth says them, as TRL
    1.16 does, or both."""
    import torch
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    rows = [{"input_ids": [row + 1] * length} for row, length in enumerate(lengths)]
    inputs: dict[str, Any] = dict(DataCollatorForLanguageModeling(pad_token_id=0, padding_free=flat)(rows))
    if flat:
        theirs = boundaries(inputs["position_ids"])
        inputs = {name: value for name, value in inputs.items() if name not in theirs}
        if "Unsloth" in said:
            inputs["packed_seq_lengths"] = torch.tensor(lengths, dtype=torch.int32)
        if "TRL" in said:
            inputs |= theirs
    return {**inputs, "use_cache": False}


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 6), st.booleans(), st.sampled_from(["Unsloth", "TRL", "Unsloth and TRL"]))
def test_parts_hold_every_row_once(lengths: list[int], parts: int, flat: bool, said: str) -> None:
    import torch

    from unsloth_accel.adapters.micro_batches import rows_and_tokens, split

    inputs = collated(lengths, flat, said)
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
        assert part.keys() == inputs.keys()
        if flat:
            expected = boundaries(part["position_ids"])
            expected["packed_seq_lengths"] = expected["cu_seq_lens_q"].diff()
            for name in expected.keys() & part.keys():
                assert type(part[name]) is type(inputs[name])
                torch.testing.assert_close(part[name], expected[name], rtol=0, atol=0)
        else:
            assert part["attention_mask"].any(0).all(), "columns of nothing but padding are left"
    assert rows == {row + 1: length for row, length in enumerate(lengths)}
    assert labels == int((inputs["labels"] >= 0).sum())
