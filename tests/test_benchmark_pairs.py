"""benchmarks/pairs.py: what its cells train, and how a round is compared. benchmarks/gate.py: jobs in turns, in
waves. benchmarks/pauses.py: where a run waits."""

import json
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import CONFIG, write_weights

from benchmarks import gate, pairs, pauses
from benchmarks.gate import Gate, Job, Wave, in_turns, in_waves
from benchmarks.pair_rows import write_answers
from unsloth_accel.hardware.device import Device
from unsloth_accel.hardware.hardware import Hardware

GPU = Device(name="GPU", index=0, memory_gib=80, compute_capability=(9, 0), uuid="GPU-0")


def test_the_cells_are_eight_and_their_singles() -> None:
    cells = pairs.cells_of("1.5B", 1024, on_cpu=False)
    assert len({cell.name for cell in cells}) == len(cells) == 8 + 4
    assert {(cell.bits, cell.device) for cell in cells if cell.runs_alone} == {(16, 0), (4, 1)}
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


def test_a_yardstick_is_run_where_there_is_something_to_compare(tmp_path: Path) -> None:
    cells = pairs.cells_of("tiny", 64, on_cpu=False)[:3]
    assert [cell.strategy for cell in cells] == ["single", "ddp", "fsdp2"]
    # Its own single runs, or ran on this machine: no other is needed.
    assert [one.strategy for one in pairs.yardsticks_of(cells, cells, tmp_path)] == ["chance"]
    (again, chance) = pairs.yardsticks_of(cells, cells[1:], tmp_path)
    assert (again.strategy, again.directory, again.pauses) == ("again", cells[0].name, ())
    assert (chance.runs_alone, chance.directory) == (True, chance.name)
    (pairs.directory_of(again, tmp_path) / "adapter").mkdir(parents=True)
    assert [one.strategy for one in pairs.yardsticks_of(cells, cells[1:], tmp_path)] == ["chance"]


@pytest.mark.parametrize("method", pairs.PER_DEVICE)
def test_chance_has_the_rows_of_each_step_in_other_micro_batches(method: str, tmp_path: Path) -> None:
    size = pairs.PER_DEVICE[method]
    read = []
    for mixed in (0, size):
        write_answers(tmp_path / "rows.jsonl", method, [*range(20, 20 + 4 * size)], mixed=mixed)
        read.append((tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines())
    plain, mixed_rows = read
    for first in range(0, len(plain), 2 * size):
        assert {*plain[first : first + 2 * size]} == {*mixed_rows[first : first + 2 * size]}
    halves = [{*rows[:size]} for rows in read]
    assert len(halves[0] & halves[1]) == size // 2
    if method == "kto":
        assert [json.loads(row)["label"] for row in mixed_rows[:size]] == [True, False] * (size // 2)


def test_rounds_are_compared_one_by_one() -> None:
    def figures(rounds: list[float], loss: float) -> dict[str, Any]:
        return {"rounds": rounds, "loss": [0.69, loss], "grad_norm": [1.0, 2.0 + loss]}

    def compared(cells: dict[str, Any], **yardsticks: Any) -> dict[str, Any]:
        return pairs.compared({"cells": cells, "yardsticks": yardsticks})

    plain, ours = figures([1.0, 1.0, 0.9], 0.5), figures([0.8, 1.0, 1.0], 0.55)
    both = {"against-plain": plain, "against-ours": ours}
    found = compared(both)
    assert found["ratios"] == [1.25, 1.0, 0.9]
    assert found["ratio"] == 1.0
    assert found["loss_absolute"] == pytest.approx(0.05)
    assert found["first_grad_norm"] == 0.0
    assert found["grad_norm"] == pytest.approx(0.02)
    assert "by 0.050 at most, " in pairs.against_plain({"against_plain": found})[0]
    again = compared(both, **{pairs.OURS: figures([1.0, 1.0, 1.0], 0.53)})
    assert again["loss_absolute_again"] == pytest.approx(0.02)
    assert "by 0.050 at most (ours of two calls by 0.020), " in pairs.against_plain({"against_plain": again})[0]
    assert compared({}) == {}
    assert compared({"against-plain": plain, "against-ours": {"error": "ended"}}) == {}


def test_the_waves_begin_with_what_others_are_compared_with(tmp_path: Path) -> None:
    cells = pairs.cells_of("tiny", 64, on_cpu=False)[:3]
    cells += pairs.yardsticks_of(cells, cells, tmp_path)
    rounds = [pairs.Against(way, "tiny", 64) for way in pairs.WAYS]
    jobs = {one.name: Job(one.name, Gate(tmp_path / one.name, 1, ()), lambda _: {}) for one in [*cells, *rounds]}
    first, second = pairs.waves_of(cells, rounds, jobs)
    short = lambda legs: [" ".join(f"{job.name.rpartition('-')[2]}@{step}" for job, step in leg) for leg in legs]  # noqa: E731
    assert short(first.legs) == ["plain@3", "ours@3", "ours@13", "plain@13", "plain@23", "ours@23", "single@6", "ddp@6"]
    assert short(second.legs) == ["fsdp2@6"]
    assert [job.name.rpartition("-")[2] for job in second.jobs] == ["fsdp2", "chance"]
    assert pairs.waves_of([], [], {}) == []


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


def paused_job(name: str, directory: Path, events: list[str]) -> Job:
    """A job that pauses after steps 1 and 3, and at once tells of its end."""
    own = Gate(directory / name, 1, (1, 3))

    def measure(stopped: threading.Event) -> dict[str, Any]:
        for place, waits in ((own, True), (own.after(1), True), (own.after(3), False)):
            Path(f"{place.path}.ready-0").touch()
            while waits and not place.path.exists():
                if stopped.is_set() and place == own:
                    events.append(f"{name} stopped")
                    return {}
                time.sleep(0.01)
            events.append(f"{name} passed {place.path.name}")
        return {}

    return Job(name, own, measure)


def test_runs_of_a_wave_warm_up_together_and_go_on_alone(tmp_path: Path) -> None:
    events: list[str] = []
    a, b, late = (paused_job(name, tmp_path, events) for name in ("a", "b", "late"))
    free = job("free", tmp_path, events)
    waves = [Wave([a, b, free], [[(b, 1)], [(a, 1)]]), Wave([late], [[(late, 1)]])]
    done = [one.name for one, _ in in_waves(waves, lambda number: number == 0)]
    assert done == ["free", "b", "a"]
    order = ["free ran", "b passed b-after-1", "b passed b-after-3", "a passed a-after-1"]
    assert [event for event in events if event in order] == order
    assert {events.index("a passed a"), events.index("b passed b")} <= {0, 1, 2}
    assert events[-1] == "late stopped", "its wave did not begin"


def test_a_run_pauses_after_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import trainer

    monkeypatch.setattr(trainer, "DEFAULT_CALLBACKS", [])
    own = Gate(tmp_path / "run", 1, (2, 4))
    monkeypatch.setenv(pauses.GATE, str(own.path))
    pauses.pause_every_trainer()
    assert not trainer.DEFAULT_CALLBACKS, "no pauses were asked for"
    monkeypatch.setenv(pauses.PAUSES, "2,4")
    pauses.pause_every_trainer()
    (kind,) = trainer.DEFAULT_CALLBACKS
    pause, steps, ends = kind(), [], []

    def train() -> None:
        for step in range(1, 6):
            pause.on_step_end(SimpleNamespace(process_index=0), SimpleNamespace(global_step=step), None)
            steps.append(step)
            ends.append(time.perf_counter())
            time.sleep(0.1)

    thread = threading.Thread(target=train)
    thread.start()
    while not own.after(2).is_reached():
        time.sleep(0.01)
    time.sleep(0.3)
    assert steps == [1]
    opened = time.perf_counter()
    own.after(2).open()
    thread.join(60)
    assert steps == [1, 2, 3, 4, 5]
    assert own.after(4).is_reached()
    assert {*own.seconds()} == {2}
    assert 0.2 <= own.seconds()[2] <= ends[3] - opened + 1e-4, "two steps, and no waiting"


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
            "against-ours": {"rounds": [1.0]},
        },
        "against_plain": {"ratios": [0.99, 1.01, 1.0], "ratio": 1.0, "loss_absolute": 1e-3, "first_grad_norm": 0.01},
    }
    lines = pairs.tables(report)
    assert "| dpo-1.5B-16bit-ddp | 0.500 | 2e-05 | 0.5 % | 3 % | yes |" in lines
    assert "| kto-1.5B-4bit-fsdp2 | out of memory | | | | |" in lines
    assert "| dpo-1.5B-16bit-ddp | 8.80 | 8.00 | +10.0% | 0.450 | 0.500 | -10.0% |" in lines
    assert lines[-1].startswith("DPO by ours is 1.000 times as fast as the plain script (rounds: 0.990, 1.010, 1.000)")
    assert not any("against-" in line for line in lines)
