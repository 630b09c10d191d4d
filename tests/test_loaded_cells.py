"""benchmarks.loaded, kept and regret: which cells share a loaded model, and what becomes of them when a launch ends."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import kept, loaded_jobs, memory_report, regret
from benchmarks.loaded import Cell
from unsloth_accel.errors import LaunchError
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.strategies import STRATEGIES

ON_TWO = [cell for cells in kept.ON_TWO for cell in cells]


def on_two(count: int) -> Cell:
    return Cell(shape="tiny", per_device=2, length=64, kept=count, strategy="ddp", processes=2)


def test_what_several_train_is_named_by_strategy_and_processes() -> None:
    alone = Cell(shape="8B", load_in_4bit=True, per_device=4, length=2048, kept=0)
    assert (alone.group, alone.name) == ("8B-4bit", "8B-4bit-4x2048-k0")
    assert (on_two(2).group, on_two(2).name) == ("tiny-ddp-2", "tiny-ddp-2-2x64-k2")
    measured = json.loads(Path("benchmarks/results/kept-1xH200.json").read_text(encoding="utf-8"))["cells"]
    assert measured.keys() == {cell.name for cell in kept.CELLS}


def test_a_run_on_several_has_the_rows_of_all(tmp_path: Path) -> None:
    run = Cell(shape="tiny", per_device=2, length=64, kept=1, accumulation=3, strategy="fsdp2", processes=2).run(
        tmp_path, 4
    )
    assert (run.batch.global_size, run.distributed.num_processes) == (12, 2)
    assert run.strategy is STRATEGIES["fsdp2"]


def test_half_of_the_cells_on_two_gpus_are_held_out() -> None:
    held, fitted = set(kept.HELD_OUT_ON_TWO), set(kept.CALIBRATION_ON_TWO)
    assert held | fitted == set(ON_TWO)
    assert not held & fitted
    assert len(held) * 9 >= len(ON_TWO) * 4
    assert {cell.strategy for cell in held} == {cell.strategy for cell in fitted} == {"ddp", "fsdp2"}
    assert {cell.kept for cell in ON_TWO} >= {0, 8, 16, 24, 32}


def test_rivals_on_two_gpus_are_other_strategies_too() -> None:
    hardware = Hardware.parse("2xH200")
    cells = {setting: setting.cells(hardware) for setting in regret.on_several(2)}
    for setting, own in cells.items():
        assert {cell.strategy for cell in own} == {"ddp", "fsdp2"}, setting.name
        assert {cell.per_device * cell.accumulation * 2 for cell in own} == {setting.rows}
    ordered = regret.in_order(cells)
    assert set(ordered) == {cell for own in cells.values() for cell in own}
    groups = [cell.group for cell in ordered]
    assert [group for i, group in enumerate(groups) if not i or groups[i - 1] != group] == list(dict.fromkeys(groups))


def test_pages_put_predictions_beside_what_two_gpus_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = json.loads(memory_report.KEPT[1].read_text(encoding="utf-8")) | {"gpu": ["NVIDIA H200"] * 2}
    figures = {"memory_gib": {"training": 20.0, "reserved": 22.0}, "median_step_seconds": 0.6}
    report["cells"] = {cell.name: figures for cell in ON_TWO}
    file = tmp_path / "kept-2xH200.json"
    monkeypatch.setitem(memory_report.KEPT, 2, file)
    assert "on 2 GPUs" not in memory_report.kept_section("GiB.", lambda found: (1.0, found.allocated))
    file.write_text(json.dumps(report), encoding="utf-8")
    text = memory_report.kept_section("GiB.", lambda found: (found.predicted.training, found.allocated))
    assert "## By blocks that keep their activations, on 2 GPUs" in text
    assert "| 8B, 4 × 2048, 24 blocks kept, fsdp2 | held out | " in text


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The kept blocks of each launch's cells; a launch that comes to 7 of them is out of memory and ends."""
    begun: list[list[int]] = []

    def run(job: loaded_jobs.Job, hardware: Hardware) -> None:
        begun.append([cell.kept for cell in job.cells])
        for cell in job.cells:
            if cell.kept == 7:
                raise LaunchError("rank 1 failed: out of memory", 1)
            with job.figures.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"kept": cell.kept}) + "\n")

    monkeypatch.setattr(loaded_jobs.Job, "run", run)
    return begun


def trained(work: Path, counts: list[int], may_go_on: Any = lambda: True) -> list[tuple[int, Any]]:
    cells = [on_two(count) for count in counts]
    found = loaded_jobs.of_several(cells, work, steps=3, warm_up=1, may_go_on=may_go_on)
    return [(cell.kept, figures.get("error") or figures["kept"]) for cell, figures in found]


def test_cells_after_one_that_ended_their_launch_get_another(tmp_path: Path, launches: list[list[int]]) -> None:
    assert trained(tmp_path, [0, 7, 1, 2]) == [(0, 0), (7, "rank 1 failed: out of memory"), (1, 1), (2, 2)]
    assert launches == [[0, 7, 1, 2], [1, 2]]


def test_a_launch_that_trains_nothing_is_not_tried_again(tmp_path: Path, launches: list[list[int]]) -> None:
    assert trained(tmp_path, [7, 1]) == [(7, "rank 1 failed: out of memory")]
    assert len(launches) == 1


def test_nothing_is_trained_when_time_is_over(tmp_path: Path, launches: list[list[int]]) -> None:
    assert trained(tmp_path, [0, 1], lambda: False) == []
