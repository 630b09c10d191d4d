"""benchmarks/pairs.py: what its cells train, and how a round is compared. benchmarks/gate.py: jobs in turns."""

import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import CONFIG, write_weights

from benchmarks import gate, pairs
from benchmarks.gate import Gate, Job, in_turns
from unsloth_accel.hardware.device import Device
from unsloth_accel.hardware.hardware import Hardware

GPU = Device(name="GPU", index=0, memory_gib=80, compute_capability=(9, 0), uuid="GPU-0")


def test_the_cells_are_eight_and_their_singles() -> None:
    cells = pairs.cells_of("1.5B", 1024, on_cpu=False)
    assert len({cell.name for cell in cells}) == len(cells) == 8 + 4
    assert {(cell.bits, cell.device) for cell in cells if cell.runs_alone} == {(16, 0), (4, 1)}
    assert [one.way for one in pairs.rounds_of("1.5B", 1024)] == ["plain", "ours", "ours", "plain", "plain", "ours"]
    assert {cell.strategy for cell in pairs.cells_of("tiny", 96, on_cpu=True)} == {"single", "ddp"}


@pytest.mark.parametrize("method", pairs.PER_DEVICE)
def test_every_cell_of_a_group_sees_the_same_rows(method: str, tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    write_weights(tmp_path / "tiny")
    one = Hardware(devices=(GPU,), cpu_cores=8, host_memory_gib=64)
    two = Hardware(devices=(GPU, GPU), cpu_cores=8, host_memory_gib=64)
    cells = [cell for cell in pairs.cells_of("tiny", 64, on_cpu=False) if cell.group == f"{method}-tiny-16bit"]
    plans = {cell.strategy: pairs.planned(cell, tmp_path, one if cell.runs_alone else two) for cell in cells}
    rows = pairs.PER_DEVICE[method]
    assert {name: str(plan.batch.accumulation) for name, plan in plans.items()} == {
        "single": "2",
        "ddp": "1",
        "fsdp2": "1",
    }
    assert {plan.batch.per_device for plan in plans.values()} == {rows}
    assert {plan.keep_activations for plan in plans.values()} == {0}, "the plain script keeps none"
    (path,) = {plan.run.data.path for plan in plans.values()}
    read = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    assert len(read) == 2 * rows * pairs.steps()
    answer = "completion" if method == "kto" else "chosen"
    sizes = [len(row["prompt"]) + len(row[answer]) + 1 for row in read]
    parity = 2 * rows * pairs.PARITY
    assert len(set(sizes[:parity])) > 8
    assert max(sizes[:parity]) < 64
    assert {*sizes[parity:]} == {64}
    if method == "dpo":
        assert all(len(row["chosen"]) == len(row["rejected"]) for row in read[parity:]), "full pairs hold no padding"
    else:
        assert [row["label"] for row in read[:4]] == [True, False, True, False]


def test_rounds_are_compared_one_by_one() -> None:
    def figures(seconds: float, loss: float) -> dict[str, Any]:
        return {"step_seconds": seconds, "loss": [0.69, loss], "grad_norm": [1.0, 2.0]}

    cells = {
        "against-plain-0-plain": figures(1.0, 0.5),
        "against-plain-0-ours": figures(0.8, 0.55),
        "against-plain-1-plain": figures(1.0, 0.5),
        "against-plain-1-ours": figures(1.0, 0.5),
        "against-plain-2-plain": {"error": "ended"},
        "against-plain-2-ours": figures(0.1, 0.5),
    }
    found = pairs.compared(cells)
    assert found["ratios"] == [1.25, 1.0]
    assert found["ratio"] == 1.125
    assert found["loss"] == [pytest.approx(0.1), 0.0]
    assert pairs.compared({})["ratio"] is None


def job(name: str, directory: Path, events: list[str]) -> Job:
    own = Gate(directory / name, 1)

    def measure(stopped: threading.Event) -> dict[str, Any]:
        Path(f"{own.path}.ready-0").touch()
        while not own.path.exists() and not stopped.is_set():
            stopped.wait(0.01)
        events.append(f"{name} {'stopped' if stopped.is_set() else 'ran'}")
        return {}

    return Job(name, own, measure)


def test_jobs_train_turn_by_turn(tmp_path: Path) -> None:
    events: list[str] = []
    turns = [[job("a", tmp_path, events), job("b", tmp_path, events)], [job("c", tmp_path, events)]]
    for done, _ in in_turns(turns, lambda: True, lambda: events.append("imported")):
        assert events[0] == "imported"
        assert done.name != "c" or {"a ran", "b ran"} <= {*events}
    assert events[-1] == "c ran"


def test_a_job_whose_turn_does_not_come_is_stopped(tmp_path: Path) -> None:
    events: list[str] = []
    turns = [[job("a", tmp_path, events)], [job("b", tmp_path, events)]]
    assert [done.name for done, _ in in_turns(turns, lambda: not events)] == ["a"]
    assert events == ["a ran", "b stopped"]


def test_a_script_at_a_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os, pathlib, sys; print(os.environ['BENCHMARK_GATE']); sys.exit(int(sys.argv[1]))"
    own, log, stopped = Gate(tmp_path / "gates" / "x", 1), tmp_path / "logs" / "x.log", threading.Event()
    own.run([sys.executable, "-c", code, "0"], log, {}, stopped)
    assert log.read_text(encoding="utf-8").strip() == str(own.path)
    with pytest.raises(RuntimeError, match="exit status 3"):
        own.run([sys.executable, "-c", code, "3"], log, {}, stopped)
    monkeypatch.setattr(gate, "TIMEOUT", 0.2)
    own.open()
    with pytest.raises(TimeoutError, match="not done after"):
        own.run([sys.executable, "-c", "import time; time.sleep(60)"], log, {}, stopped)


def test_the_tables() -> None:
    apart = {"loss": 2e-5, "grad_norm": 5e-3, "adapter": 0.03, "ranks_equal": True}
    measured = {
        "cell": {},
        "step_seconds": 0.5,
        "memory_gib": {"loading": [3.0, 3.5], "training": [8.0, 7.9]},
        "planned": {"allocated_gib": 8.8, "step_seconds": 0.45},
        "difference": apart,
    }
    report = {
        "cells": {
            "dpo-1.5B-16bit-ddp": measured,
            "kto-1.5B-4bit-fsdp2": {"cell": {}, "error": "out\nof memory"},
            "against-plain-0-ours": {"step_seconds": 1.0},
        },
        "against_plain": {"ratios": [0.99, 1.01, 1.0], "ratio": 1.0, "loss": [0.0, 1e-3], "grad_norm": [0.0, 0.01]},
    }
    lines = pairs.tables(report)
    assert "| dpo-1.5B-16bit-ddp | 0.500 | 2e-05 | 0.5 % | 3 % | yes |" in lines
    assert "| kto-1.5B-4bit-fsdp2 | out of memory | | | | |" in lines
    assert "| dpo-1.5B-16bit-ddp | 8.80 | 8.00 | +10.0% | 0.450 | 0.500 | -10.0% |" in lines
    assert lines[-1].startswith("DPO by ours is 1.000 times as fast as the plain script (0.990, 1.010, 1.000)")
    assert not any("against-plain" in line for line in lines)
