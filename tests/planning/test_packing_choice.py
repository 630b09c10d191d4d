from pathlib import Path
from typing import Any

import pytest
from conftest import chat_rows

from unsloth_accel.config.read_run import from_dict
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.planning.plan import Plan
from unsloth_accel.planning.planner import plan

GPUS = Hardware.parse("2xH100-80GB")


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


def test_nothing_is_packed_on_a_cpu(description: dict[str, Any], rows: Path) -> None:
    made = planned(
        description,
        rows,
        Hardware(cpu_cores=4, host_memory_gib=16, cpu_bf16=True, reason="no driver"),
        batch={"global_tokens": 16_000},
    )
    assert "packing" not in made.run.training
