"""benchmarks/: what their cells train, how they wait for each other, and the pages made from their figures."""

import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from conftest import CONFIG, write_weights

from benchmarks import family_checks, fault_checks, gpu_checks, pauses, strategies, streams, worker
from benchmarks.checks import SEVERAL, CheckError, Place, apart
from benchmarks.family_checks import FAMILY_CHECKS
from benchmarks.fault_checks import FAULTS
from benchmarks.strategies import CELLS, Cell, planned
from benchmarks.strategies_page import page, ratios
from unsloth_accel.hardware.device import Device
from unsloth_accel.hardware.hardware import Hardware

GPU = Device(name="GPU", index=0, memory_gib=80, compute_capability=(9, 0), uuid="GPU-0")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    write_weights(tmp_path / "tiny")
    monkeypatch.setattr(strategies, "LENGTH", 64)
    return tmp_path


def test_the_cells_are_those_of_the_evidence() -> None:
    assert len({cell.name for cell in CELLS}) == len(CELLS) == 2 * 2 * 6
    assert {cell.strategy: cell.device for cell in CELLS if cell.runs_alone} == {"single": 0, "alone_0": 0, "alone": 1}
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
        "steps": {"parity": 8, "warm_up": 3, "timed": 5},
        "settings": {"length": 2048},
        "cells": {
            "8B-4bit-single": figures(1000),
            "8B-4bit-alone": figures(1050),
            "8B-4bit-ddp": figures(2000, difference=apart),
            "8B-4bit-fsdp2": {"error": "out of\nmemory"},
        },
    }
    text, cells = page(report), report["cells"]
    cells["8B-4bit-alone_0"] = figures(950)  # type: ignore[index]
    assert "| 2.00 | 1.000 |" in page(report), "linear is what both GPUs do alone"
    assert "2 × H100, torch 1" in text
    assert "8 steps on rows of 256 to\n2048 tokens, then 8 on full ones, of which the last 5" in text
    assert "## 8B in 4 bit, 4 rows at once on each GPU" in text
    assert "1.5B" not in text
    assert "| ddp | 1.000 | 2,000 | 2.00 | 0.952 | 0.002 % | 0.05 % | 3 % | 10.00 | 12.50 |" in text
    assert "| alone | 1.000 | 1,050 |  |  |" in text
    assert "| fsdp2 | out of memory |" in text
    columns = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(columns) == 1


def test_a_worker_waits_at_its_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[str, ...]] = []
    stand_in = SimpleNamespace(main=lambda *words: trained.append(words) or 0)
    monkeypatch.setitem(sys.modules, "unsloth", SimpleNamespace())  # the real ones take half a minute
    monkeypatch.setitem(sys.modules, "trl", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "unsloth_accel.training.process", stand_in)
    monkeypatch.setattr("unsloth_accel.training.process", stand_in, raising=False)
    gate = tmp_path / "gate"
    monkeypatch.setenv(pauses.GATE, str(gate))
    thread = threading.Thread(target=worker.main, args=("run.yaml",))
    thread.start()
    while not (tmp_path / "gate.ready-0").is_file():
        time.sleep(0.05)
    time.sleep(0.3)
    assert not trained
    gate.touch()
    thread.join(timeout=60)
    assert trained == [("run.yaml",)]
    assert (tmp_path / "gate.ready-0").is_file()


def tensors(b: list[float]) -> dict[str, Any]:
    import torch

    return {"x.lora_A.weight": torch.ones(2), "x.lora_B.weight": torch.tensor(b)}


def test_adapters_are_compared_by_what_they_have_learned() -> None:
    assert apart(tensors([3, 4]), tensors([3, 4])) == 0
    assert apart(tensors([3, 4]), tensors([3, 3])) == pytest.approx(0.2)
    with pytest.raises(CheckError, match="same tensors"):
        apart(tensors([3, 4]), {})


def test_every_fault_is_checked_by_every_strategy() -> None:
    named = {f"{fault}-{strategy}" for fault in FAULTS for strategy in SEVERAL}
    assert len(named) == 15
    assert named <= {*gpu_checks.CHECKS}


def test_what_a_check_started_is_found_and_ended(tmp_path: Path) -> None:
    """By its own mark, also what is stopped, and nothing else."""
    sleeping = [sys.executable, "-c", "import time; time.sleep(100)"]
    marks = {rank: {"RANK": str(rank), fault_checks.MARK: str(tmp_path / "out")} for rank in (0, 1)}
    started = [subprocess.Popen(sleeping, env=variables) for variables in marks.values()]
    other = subprocess.Popen(sleeping, env={"RANK": "0", fault_checks.MARK: str(tmp_path / "out-2")})
    (tmp_path / "out" / "logs").mkdir(parents=True)
    (tmp_path / "out" / "logs" / "steps.jsonl").write_text("{}\n" * fault_checks.STRUCK, encoding="utf-8")
    try:
        when = fault_checks.strike(tmp_path / "out", 1, signal.SIGSTOP)
        stopped = psutil.Process(started[1].pid)
        until = time.monotonic() + 60
        while stopped.status() != psutil.STATUS_STOPPED and time.monotonic() < until:
            time.sleep(0.01)
        assert stopped.status() == psutil.STATUS_STOPPED
        assert abs(when() - time.time()) < 60
        assert len(fault_checks.end(tmp_path / "out")) == 2
        assert [one.wait(60) for one in started] == [-signal.SIGKILL] * 2
        assert fault_checks.end(tmp_path / "out") == []
        assert other.poll() is None
    finally:
        for one in (*started, other):
            one.kill()
            one.wait()


def test_a_run_that_was_not_struck_passes_no_check(tmp_path: Path) -> None:
    when = fault_checks.strike(tmp_path / "out", 1, signal.SIGKILL)
    with pytest.raises(CheckError, match="ended before rank 1 got SIGKILL"):
        when()
    with pytest.raises(CheckError, match="nothing stood in its way"):
        next(fault_checks.when_planned(tmp_path / "out", []))


def test_the_page_of_checks() -> None:
    h100 = {"gpu": "NVIDIA H100 80GB HBM3", "date": "2026-11-25"}
    h200 = {"gpu": "NVIDIA H200", "date": "2026-11-28"}
    report = {
        "versions": dict.fromkeys(("torch", "unsloth", "accelerate", "trl"), "1"),
        "checks": {
            "older-1": {"ok": True, "figures": {"ddp": {"loss": 0.00012}, "said": ["x|y", 3]}, **h100},
            "gone": {"ok": True, "figures": {}, **h100},
            "loop": {"ok": False, "error": "CheckError: broke\nin two lines", **h200},
        },
    }
    lines = gpu_checks.page(report).splitlines()
    assert lines[-2] == "| loop | NO | H200, 2026-11-28 | CheckError: broke in two lines |"
    assert not any("gone" in line for line in lines)  # a check that is no more
    assert lines[-1] == "| older-1 | yes | H100, 2026-11-25 | ddp: loss: 0.00012; said: x\\|y, 3 |"


def test_what_streams_did() -> None:
    kernels = [
        ("7", "matmul", 0.0, 3000.0),
        ("7", "matmul", 2000.0, 4000.0),  # beside the first: counted once as work
        ("7", "norm", 10_000.0, 11_000.0),
        ("20", "copy", 0.0, 9000.0),
    ]
    found = streams.summary(kernels, steps=1)
    assert list(found) == ["20", "7"]
    assert (found["7"]["busy_ms"], found["7"]["idle_ms"]) == (5.0, 6.0)
    assert found["7"]["kernels"] == {"matmul": {"ms": 5.0, "calls": 2.0}, "norm": {"ms": 1.0, "calls": 1.0}}
    assert not found["20"]["gaps"]


def test_what_gaps_ended_with() -> None:
    kernels = [
        ("7", "matmul", 0.0, 3000.0),
        ("7", "matmul", 4000.0, 9000.0),  # waited for a copy
        ("7", "norm", 10_000.0, 11_000.0),  # for the processor
        ("7", "norm", 11_010.0, 11_020.0),
        ("20", "copy", 2500.0, 3990.0),
        ("20", "copy", 5000.0, 5500.0),
    ]
    gaps = streams.summary(kernels, steps=1)["7"]["gaps"]
    assert gaps == {
        "copy, from matmul to matmul": {"ms": 1.0, "calls": 1.0},
        "nothing, from matmul to norm": {"ms": 1.0, "calls": 1.0},
    }


@pytest.mark.parametrize(
    ("name", "short"),
    [
        (
            "void at::native::vectorized_elementwise_kernel<8, at::native::CUDAFunctor_add<c10::BFloat16>, std::array>",
            "vectorized_elementwise_kernel CUDAFunctor_add",
        ),
        ("void at::native::reduce_kernel<512, 1, at::native::ReduceOp<bool, c10::and_ops>>", "reduce_kernel ReduceOp"),
        ("ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)", "ncclDevKernel_AllGather_RING_LL"),
        ("Memcpy PtoP (Device -> Device)", "Memcpy PtoP"),
        ("_rms_layernorm_forward", "_rms_layernorm_forward"),
    ],
)
def test_short_names_of_kernels(name: str, short: str) -> None:
    assert streams._short(name) == short


def test_lines_that_wait_for_the_gpu_are_counted_and_other_warnings_shown() -> None:
    waits, shown = streams.Waits(), []
    waits._plain = lambda *words: shown.append(words)
    for line in (7, 7, 9):
        waits._show(f"{streams.SYNCHRONIZING} (Triggered internally)", UserWarning, "/a/b/c/d.py", line)
    waits._show("another", UserWarning, "/a/b/c/d.py", 1)
    assert waits.lines == {"b/c/d.py:7": 2, "b/c/d.py:9": 1}
    assert shown == [("another", UserWarning, "/a/b/c/d.py", 1)]


def test_variants_are_no_cells_of_the_tables() -> None:
    names = [cell.name for cell in strategies.varied(CELLS)]
    assert {"8B-16bit-fsdp2-kept", "8B-4bit-fsdp2-copied"} < set(names)
    assert not set(names) & {cell.name for cell in CELLS}


def test_four_gpus(work: Path) -> None:
    """`single` takes the rows of all four, `alone` runs on the first and on the last; the plan is one for four."""
    cells = {cell.name: cell for cell in strategies.cells_on(4)}
    assert cells.keys() == {cell.name for cell in CELLS}
    assert {name: cells[f"8B-4bit-{name}"].device for name in ("single", "alone_0", "alone")} == {
        "single": 0,
        "alone_0": 0,
        "alone": 3,
    }
    tiny = Cell("tiny", 16, "single", 2, 4)
    assert strategies.gate_of(tiny, work).is_reached() is False
    four = Hardware(devices=(GPU,) * 4, cpu_cores=8, host_memory_gib=64)
    single = planned(tiny, work, Hardware(devices=(GPU,), cpu_cores=8, host_memory_gib=64))
    ddp = planned(Cell("tiny", 16, "ddp", 2, 4), work, four)
    chosen = planned(Cell("tiny", 16, "alone", 2, 4), work, four, "auto")
    assert single.batch.global_size == ddp.batch.global_size == chosen.batch.global_size == 8
    assert (single.batch.accumulation, ddp.batch.accumulation) == (4, 1)
    assert (chosen.strategy, chosen.num_processes) == ("ddp", 4)


def test_the_page_of_several_numbers_of_gpus() -> None:
    def figures(speed: int) -> dict[str, Any]:
        memory = {"loading": [9.0], "training": [11.0]}
        return {"step_seconds": 1.0, "tokens_per_second": speed, "memory_gib": memory}

    def report(gpus: int, fsdp2: int) -> dict[str, Any]:
        return {
            "gpu": ["H100"] * gpus,
            "versions": dict.fromkeys(("torch", "unsloth", "accelerate", "trl"), "1"),
            "date": "2026-11-26",
            "steps": {"parity": 8, "warm_up": 3, "timed": 5},
            "settings": {"length": 2048},
            "chosen": {"8B-4bit": "ddp"},
            "cells": {
                "8B-4bit-alone": figures(1000),
                "8B-4bit-ddp": figures(980 * gpus),
                "8B-4bit-fsdp2": figures(fsdp2),
            },
        }

    text = page(report(4, 4000), report(2, 1900))
    assert "2 × H100; 4 × H100, torch 1" in text
    assert "| of linear, on GPUs: | 2 | 4 |" in text
    assert "| 8B, 4 bit, ddp | 0.980 | 0.980 |" in text
    assert "| 8B, 4 bit, fsdp2 | 0.950 | 1.000 |" in text
    assert text.index("## 2 GPUs: 8B in 4 bit") < text.index("## 4 GPUs: 8B in 4 bit")
    assert "`plan` chooses `ddp` here: the fastest that was measured." in text
    assert "`plan` chooses `ddp` here: 0.980 of the speed of `fsdp2`." in text


def figures_of(speed: int, kept: int = 0, loss: float = 2.0) -> dict[str, Any]:
    memory = {"loading": [9.0], "training": [11.0]}
    own = {"step_seconds": 1.0, "tokens_per_second": speed, "memory_gib": memory, "cell": {"kept": kept}}
    return own | {"loss": [loss], "grad_norm": [1.0]}


@pytest.fixture
def with_kept() -> dict[str, Any]:
    """A report in which ddp and fsdp2 ran with no kept blocks and with 24."""
    return {
        "gpu": ["H200", "H200"],
        "versions": dict.fromkeys(("torch", "unsloth", "accelerate", "trl"), "1"),
        "date": "2026-11-29",
        "steps": {"parity": 5, "warm_up": 3, "timed": 6},
        "settings": {"length": 2048},
        "chosen": {"8B-16bit": "ddp"},
        "chosen_kept": {"8B-16bit": 24},
        "cells": {
            "8B-16bit-single": figures_of(990),
            "8B-16bit-alone_0": figures_of(995),
            "8B-16bit-alone": figures_of(1005),
            "8B-16bit-ddp": figures_of(1980),
            "8B-16bit-fsdp2": figures_of(1950),
            "8B-16bit-ddp-k24": figures_of(2800, 24, 2.002),
            "8B-16bit-fsdp2-k24": figures_of(2700, 24),
        },
    }


def test_ratios_are_over_one_gpu_of_the_default_and_ddp_with_as_many_kept_blocks(with_kept: dict[str, Any]) -> None:
    found = ratios(with_kept)
    assert "8B-16bit-alone" not in found
    own = found["8B-16bit-ddp-k24"]
    assert (own["of_one_gpu"], own["per_gpu"], own["of_ddp"]) == (2.8, 1.4, 1.0)
    assert own["loss_from_0"] == pytest.approx(0.001, rel=0.01)
    assert found["8B-16bit-fsdp2-k24"]["of_ddp"] == pytest.approx(0.964)
    assert found["8B-16bit-fsdp2"] == {"of_one_gpu": 1.95, "per_gpu": 0.975, "of_ddp": 0.985}


def test_the_page_tells_kept_blocks_where_there_are_any(with_kept: dict[str, Any]) -> None:
    text = page(with_kept)
    assert "| strategy | blocks kept | of ddp | s/step |" in text
    assert "| fsdp2 | 24 | 0.964 | 1.000 | 2,700 | 2.73 | 1.350 |" in text
    assert "| alone | 0 |  | 1.000 | 1,005 |" in text
    assert "`plan` chooses `ddp` with 24 blocks kept here: the fastest that was measured." in text
    with_kept["cells"] = {name: one for name, one in with_kept["cells"].items() if not name.endswith("-k24")}
    assert "blocks kept" not in page(with_kept)


def test_the_kept_blocks_that_are_asked_for() -> None:
    assert strategies.kept_counts("0,24,plan", 32) == [0, 24, 32]
    assert strategies.kept_counts("0, plan", 0) == [0]
    with_24 = {replace(cell, kept=24).name for cell in CELLS if not cell.runs_alone}
    assert not with_24 & {cell.name for cell in CELLS}


@pytest.mark.parametrize(("by_chance", "passes"), [(0.07, True), (0.05, False)])
def test_a_mixture_may_end_twice_as_far_apart_as_by_chance(
    by_chance: float, passes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "verified.json").write_text("{}", encoding="utf-8")
    words: list[Any] = []
    plan = SimpleNamespace(
        batch=SimpleNamespace(per_device=4, accumulation=2),
        run=SimpleNamespace(output_dir=str(tmp_path / "chance" / "single")),
        write=words.append,
    )
    chosen = SimpleNamespace(single=plan, write_rows=lambda: words.append("rows"))
    apart = SimpleNamespace(loss=0.0, grad_norm=0.0, moved=0.0, adapter=by_chance, same_rows=True)
    monkeypatch.setattr(family_checks, "verified", lambda *given: words.append(given[4:]) or {"ddp": {"adapter": 0.12}})
    monkeypatch.setattr(family_checks, "settings", lambda *_, **__: chosen)
    monkeypatch.setattr(family_checks, "read_trained", lambda _, directory: directory)
    monkeypatch.setattr(family_checks, "compare", lambda alone, other, _: words.append((alone, other)) or apart)
    monkeypatch.setattr(Place, "run", lambda *given, **_: words.append(given[-2:]))
    place = Place(tmp_path, "", device="cpu")
    if passes:
        figures = FAMILY_CHECKS["family-gpt_oss-ddp"](place)
        assert figures["ddp"]["adapter"] == 0.12
        assert figures["chance"]["adapter"] == by_chance
    else:
        with pytest.raises(CheckError, match="more than twice what chance does"):
            FAMILY_CHECKS["family-gpt_oss-ddp"](place)
    assert ("--tolerance", "adapter=1") in words
    assert (
        "training.per_device_train_batch_size=2",
        "training.gradient_accumulation_steps=4",
    ) in words, "as many rows in a step"
    assert words[-1] == (tmp_path / "kept" / "single", tmp_path / "chance" / "single")


def test_without_compiling_only_the_numbers_are_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory, more than is planned for compiled models, failed checks of runs that were the same."""
    (tmp_path / "verified.json").write_text(json.dumps({"runs": {}}), encoding="utf-8")
    monkeypatch.setattr(family_checks, "verified", lambda *_: {"ddp": {"loss": 0.0}})
    place = Place(tmp_path, "")
    assert FAMILY_CHECKS["family-lfm2-ddp-eager"](place) == {"ddp": {"loss": 0.0}}
    monkeypatch.setattr(Place, "planned", lambda *_, **__: (_ for _ in ()).throw(ValueError("asked for the plan")))
    with pytest.raises(ValueError, match="asked for the plan"):
        FAMILY_CHECKS["family-lfm2-ddp"](place)
