"""benchmarks/strategies.py: what its cells train, and the page that it writes from their figures."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import CONFIG, write_weights

from benchmarks import strategies
from benchmarks.strategies import CELLS, Cell, page, planned
from unsloth_accel.hardware import Device, Hardware

GPU = Device(name="GPU", index=0, memory_gib=80, compute_capability=(9, 0), uuid="GPU-0")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    write_weights(tmp_path / "tiny")
    monkeypatch.setattr(strategies, "LENGTH", 64)
    return tmp_path


def test_the_cells_are_those_of_the_evidence() -> None:
    assert len({cell.name for cell in CELLS}) == len(CELLS) == 2 * 2 * 5
    assert {(cell.shape, cell.per_device) for cell in CELLS} == {("1.5B", 8), ("8B", 4)}


def test_every_strategy_sees_the_same_rows(work: Path) -> None:
    one = Hardware(devices=(GPU,), cpu_cores=8, host_memory_gib=64)
    two = Hardware(devices=(GPU, GPU), cpu_cores=8, host_memory_gib=64)
    single, ddp = planned(Cell("tiny", 16, "single", 2), work, one), planned(Cell("tiny", 16, "ddp", 2), work, two)
    alone = planned(Cell("tiny", 16, "alone", 2), work, one)
    assert (single.batch.accumulation, ddp.batch.accumulation, alone.batch.accumulation) == (2, 1, 1)
    assert single.batch.global_size == ddp.batch.global_size == 2 * alone.batch.global_size == 4
    assert single.run.data.path == ddp.run.data.path
    assert single.run.training["train_sampling_strategy"] == "sequential"
    rows = [json.loads(line)["text"] for line in Path(ddp.run.data.path).read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 4 * single.run.training["max_steps"], "an epoch would end and begin again with short rows"
    variable, full = rows[: 4 * strategies.PARITY], rows[4 * strategies.PARITY :]
    assert len({len(row) for row in variable}) > 8
    assert {len(row) for row in full} == {65}


def test_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    def figures(speed: int, **more: Any) -> dict[str, Any]:
        memory = {"loading": [9.0, 10.0], "training": [11.0, 12.5]}
        return {"step_seconds": 1.0, "tokens_per_second": speed, "memory_gib": memory, **more}

    apart = {"loss": 2e-5, "grad_norm": 5e-4, "adapter": 0.03}
    report = {
        "gpu": ["H100", "H100"],
        "versions": dict.fromkeys(("torch", "unsloth", "accelerate", "trl"), "1"),
        "date": "2026-11-22",
        "cells": {
            "8B-4bit-single": figures(1000),
            "8B-4bit-alone": figures(1050),
            "8B-4bit-ddp": figures(2000, difference=apart),
            "8B-4bit-fsdp2": {"error": "out of\nmemory"},
        },
    }
    text = page(report)
    assert "2 × H100, torch 1" in text
    assert "## 8B in 4 bit, 4 rows at once on each GPU" in text
    assert "1.5B" not in text
    assert "| ddp | 1.000 | 2,000 | 2.00 | 0.952 | 0.002 % | 0.05 % | 3 % | 10.00 | 12.50 |" in text
    assert "| alone | 1.000 | 1,050 |  |  |" in text
    assert "| fsdp2 | out of memory |" in text
    columns = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(columns) == 1
