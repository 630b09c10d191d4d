from pathlib import Path
from typing import Any

import pytest
from conftest import chat_rows
from plans import SMALL

from unsloth_accel.config.read_run import from_dict
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.planning.plan import Plan
from unsloth_accel.planning.planner import plan

GPUS, GEFORCE = Hardware.parse("2xH100-80GB"), Hardware.parse("2x4090")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return chat_rows(tmp_path / "chats.jsonl")


def planned(description: dict[str, Any], rows: Path, hardware: Hardware = GPUS, **sections: Any) -> Plan:
    values = {**description, "data": {"path": str(rows)}, "model": {**description["model"], "max_seq_length": 1000}}
    return plan(from_dict(values | sections), hardware)


def test_a_batch_in_tokens_is_packed(description: dict[str, Any], rows: Path) -> None:
    made = planned(description, rows, batch={"global_tokens": 16_000})
    assert made.resolved()["training"]["packing"] is True
    (reason,) = [reason for reason in made.reasons if "packing" in reason]
    assert "about 200 tokens at the mean (estimated from 4 characters per token in 40 rows), 20% of" in reason
    assert "16 of them make a step of 3,200 tokens; packed it has the 16,000" in reason
    assert "1/5.0 of the steps" in reason


def test_preferences_are_not_packed(description: dict[str, Any], tmp_path: Path) -> None:
    """Their configs have no such field, and every process failed."""
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "How many?", "chosen": "Four.", "rejected": "Five."}\n' * 9, encoding="utf-8")
    made = planned(description, pairs, method="dpo", batch={"global_tokens": 16_000})
    assert "packing" not in made.resolved()["training"]
    assert not any("packed" in reason for reason in made.reasons)


def test_short_pairs_are_taken_many_at_once(description: dict[str, Any], tmp_path: Path) -> None:
    """They aren't shared out by tokens, so that small micro-batches stay small: one pair at once was planned."""
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "How many?", "chosen": "Four.", "rejected": "Five."}\n' * 9, encoding="utf-8")
    model = {"model": {"name": SMALL, "load_in_4bit": True}, "data": {"path": str(pairs)}}
    made = plan(from_dict({**description, **model, "method": "dpo", "batch": {"global_size": 16}}), GEFORCE)
    assert (made.batch.per_device, made.batch.accumulation) == (8, 1)


def test_a_batch_in_rows_is_a_promise(description: dict[str, Any], rows: Path) -> None:
    made = planned(description, rows)
    assert "packing" not in made.resolved()["training"]
    assert any("not packed: batch.global_size promises rows" in reason for reason in made.reasons)


@pytest.mark.parametrize(
    ("sections", "packing"),
    [
        ({"training": {"packing": False}, "batch": {"global_tokens": 16_000}}, False),  # the user's word
        ({"training": {"packing": True}}, True),
        ({"data": {"streaming": True}, "training": {"max_steps": 4}, "batch": {"global_tokens": 16_000}}, None),
        ({"model": {"max_seq_length": 400}, "batch": {"global_tokens": 16_000}}, None),  # rows are not short
        ({"data": {"path": ""}, "batch": {"global_tokens": 16_000}}, None),
    ],
)
def test_nothing_is_decided(description: dict[str, Any], rows: Path, sections: dict[str, Any], packing: Any) -> None:
    if "model" in sections:
        sections["model"] = {**description["model"], **sections["model"]}
    sections["data"] = {"path": str(rows), **sections.get("data", {})}
    values = {**description, "model": {**description["model"], "max_seq_length": 1000}}
    made = plan(from_dict(values | sections, to_plan=True), GPUS)
    if made.run.data.path:
        assert from_dict(made.resolved()).training.get("packing") is packing, "the launched processes read it again"
    assert made.run.training.get("packing") is packing
    assert not any("pack" in reason for reason in made.reasons)


@pytest.mark.parametrize("batch", [{"global_tokens": 16_000}, {"global_size": 16}], ids=str)
def test_pairs_are_never_packed(description: dict[str, Any], tmp_path: Path, batch: dict[str, int]) -> None:
    pair = '{"prompt": "Is it short?", "chosen": "Yes.", "rejected": "No, not at all."}\n'
    (tmp_path / "pairs.jsonl").write_text(pair * 8, encoding="utf-8")
    made = planned({**description, "method": "dpo"}, tmp_path / "pairs.jsonl", batch=batch)
    assert from_dict(made.resolved()).training.get("packing") is None, "the launched processes read it again"
    assert made.batch.global_size == 16
    assert not any("pack" in reason for reason in made.reasons)


def test_nothing_is_packed_on_a_cpu(description: dict[str, Any], rows: Path) -> None:
    made = planned(
        description,
        rows,
        Hardware(cpu_cores=4, host_memory_gib=16, cpu_bf16=True, reason="no driver"),
        batch={"global_tokens": 16_000},
    )
    assert "packing" not in made.run.training
