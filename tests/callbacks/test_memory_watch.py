"""Micro-batches in parts, and warnings before memory is out; runs that go on are in training/test_training.py."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unsloth_accel.config.run_config import from_dict
from unsloth_accel.training.memory_advice import advice

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


def test_the_watch_warns_once_of_each_shortage() -> None:
    from unsloth_accel.callbacks import MemoryWatch
    from unsloth_accel.callbacks.memory_watch import Memory

    seen = iter(
        [
            Memory(gpu=0.5, retries=1, host=0.5),  # loading had to free its cache; no matter
            Memory(gpu=0.9, retries=1, host=0.5),
            Memory(gpu=0.96, retries=1, host=0.5),
            Memory(gpu=0.97, retries=2, host=0.96),
            Memory(gpu=0.99, retries=3, host=0.99),
        ]
    )
    told: list[str] = []
    watch = MemoryWatch(advice="less", listener=told.append, read=lambda: next(seen))
    args: Any = SimpleNamespace(process_index=1)
    watch.on_train_begin(args, SimpleNamespace(global_step=0), None)  # type: ignore[arg-type]
    counts = []
    for step in range(1, 5):
        watch.on_step_end(args, SimpleNamespace(global_step=step), None)  # type: ignore[arg-type]
        counts.append(len(told))
    assert counts == [0, 1, 3, 3]
    assert told[0].startswith("rank 1, step 2: 96% of the GPU's memory was in use")
    assert told == watch.warnings
    assert all("What would help: less." in line for line in told)


def test_this_machines_memory() -> None:
    from unsloth_accel.callbacks.memory_watch import memory

    now = memory()
    assert now.gpu is None
    assert 0 < now.host < 1


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, "distributed.strategy=fsdp2 (the GPUs divide the base model); or model.load_in_4bit=true; or model.max"),
        ({"training": {"per_device_train_batch_size": 8}}, "training.per_device_train_batch_size=4 (the global"),
        ({"distributed": {"strategy": "fsdp2"}}, "model.load_in_4bit=true; or model.max_seq_length below 2048"),
    ],
)
def test_what_would_help(description: dict[str, Any], overrides: dict[str, Any], expected: str) -> None:
    run = from_dict({**description, "distributed": {"strategy": "ddp"}, **overrides})
    assert advice(run).startswith(expected)
    assert "per_device" not in advice(run, batch=False)


def test_buffers_that_were_about_to_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch notes the new size first; the next use would read beyond what there is."""
    import sys
    from types import SimpleNamespace

    import torch

    from unsloth_accel.adapters import out_of_memory

    good, bad = torch.zeros(4), torch.zeros(4)
    bad.untyped_storage().resize_(8)
    module = SimpleNamespace(GPU_BUFFERS=[None, good, bad], GPU_BUFFERS_B=None)
    monkeypatch.setitem(sys.modules, "unsloth_zoo.gradient_checkpointing", module)
    out_of_memory._empty_half_grown()
    assert good.numel() == 4
    assert bad.numel() == 0
