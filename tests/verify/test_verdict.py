"""verify: what it plans, what it measures, and that it sees runs that are broken."""

import io
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, SCRIPTS, write_yaml
from safetensors.numpy import save_file

from unsloth_accel.cli.main import main
from unsloth_accel.config.run_config import from_dict
from unsloth_accel.errors import ConfigError
from unsloth_accel.hardware.hardware import Device, Hardware
from unsloth_accel.planning.planner import plan
from unsloth_accel.verify import tensors
from unsloth_accel.verify.runs import Trained
from unsloth_accel.verify.settings import Settings, settings
from unsloth_accel.verify.table import as_table, as_text
from unsloth_accel.verify.verdict import TOLERANCES, Comparison, compare, precision_of, share, tolerance
from unsloth_accel.verify.verification import Outcome, Verification

CPU = Hardware(cpu_cores=2, host_memory_gib=8, reason="no driver")
GPU = Device(name="GPU", index=0, memory_gib=80, compute_capability=(9, 0), uuid="GPU-0")
TWO = Hardware(devices=(GPU, replace(GPU, index=1, uuid="GPU-1")), cpu_cores=8, host_memory_gib=64, reason="told")
FAULTS = SCRIPTS / "faults"


def chosen(description: dict[str, Any], directory: Path, hardware: Hardware = CPU, **options: Any) -> Settings:
    return settings(from_dict(description), hardware, directory, **options)


def test_the_same_rows_and_the_same_batch_everywhere(description: dict[str, Any], tmp_path: Path) -> None:
    description["training"] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    found = chosen(description, tmp_path / "v", strategies=["ddp"], steps=4)
    (ddp,) = found.others
    assert str(found.single.batch) == "8 rows per step = 2 × 4 × 1 (per device × accumulation × processes)"
    assert str(ddp.batch) == "8 rows per step = 2 × 2 × 2 (per device × accumulation × processes)"
    assert found.single.run.data.path == ddp.run.data.path
    assert found.threads == 1, "two processes on two cores have one each, and so has the one process"
    assert len(found.rows) == 32, "an epoch would end, with another last batch on several processes"
    assert not (tmp_path / "v").exists()
    found.write_rows()
    assert len(Path(ddp.run.data.path).read_text(encoding="utf-8").splitlines()) == 32


def test_a_large_batch_is_made_quick(description: dict[str, Any], tmp_path: Path) -> None:
    description["batch"]["global_size"] = 64
    description["training"] = {"per_device_train_batch_size": 4}
    found = chosen(description, tmp_path, strategies=["ddp"])
    assert (found.single.batch.global_size, found.others[0].batch.accumulation) == (16, 2)
    assert found.notes == ("16 rows per step instead of 64: it is quicker and shows the same",)


def test_one_optimizer_for_all_runs(description: dict[str, Any], tmp_path: Path) -> None:
    """fsdp2 can't step 8-bit Adam, and would be compared with another optimizer."""
    description["training"] = {"optim": "adamw_8bit"}
    both = chosen(description, tmp_path, TWO, strategies=["ddp", "fsdp2"])
    assert {plan.run.training["optim"] for plan in (both.single, *both.others)} == {"adamw_torch_fused"}
    assert any("fsdp2 can't step adamw_8bit" in note for note in both.notes)
    ddp = chosen(description, tmp_path, TWO, strategies=["ddp"])
    assert {plan.run.training["optim"] for plan in (ddp.single, *ddp.others)} == {"adamw_8bit"}


def test_what_a_short_run_leaves_out(description: dict[str, Any], tmp_path: Path) -> None:
    description["data"]["eval_path"] = description["data"]["path"]
    description["lora"] = {"dropout": 0.1}
    description["training"] = {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
        "warmup_steps": 100,
        "num_train_epochs": 3,
        "learning_rate": 1e-3,
        "resume": True,
        "lr_scheduler_type": "reduce_lr_on_plateau",
    }
    found = chosen(description, tmp_path, strategies=["ddp"], steps=3)
    run = found.others[0].run
    assert run.sft_fields().items() >= {"max_steps": 3, "save_strategy": "no", "learning_rate": 1e-3}.items()
    dropped = {"eval_strategy", "eval_steps", "save_steps", "warmup_steps", "num_train_epochs", "resume"}
    assert not dropped & run.training.keys()
    assert run.training["lr_scheduler_type"] == "constant"
    assert run.data.eval_path is None
    assert run.lora.dropout == 0
    assert found.notes == ("no dropout and no noise: each process would draw its own",)
    assert Path(run.output_dir) == tmp_path / "ddp"


def test_packed_rows_are_enough_rows(description: dict[str, Any], tmp_path: Path) -> None:
    description["training"] = {"packing": True}
    description["model"]["max_seq_length"] = 16
    found = chosen(description, tmp_path, strategies=["ddp"], steps=2)
    assert sum(len(row["text"]) for row in found.rows) >= 2 * 8 * 16


def test_what_runs_where_nothing_is_asked_for(description: dict[str, Any], tmp_path: Path) -> None:
    on_cpu = chosen(description, tmp_path)
    assert "ddp" in [plan.strategy for plan in on_cpu.others]
    assert "no FSDP on a CPU" in on_cpu.left_out["fsdp2"]
    on_gpus = chosen(description, tmp_path, TWO)
    assert [plan.strategy for plan in on_gpus.others] == ["ddp", "fsdp2", "fsdp2_native"]
    assert on_gpus.left_out == {}
    assert on_gpus.single.environment["CUDA_VISIBLE_DEVICES"] in ("GPU-0", "GPU-1")
    again = chosen(description, tmp_path, strategies=["single"])
    assert [(plan.num_processes, Path(plan.run.output_dir).name) for plan in again.others] == [(1, "again")]


@pytest.mark.parametrize(
    ("options", "hardware", "told"),
    [
        ({"strategies": ["dpp"]}, CPU, "--strategy='dpp': unknown strategy. Fix: did you mean ddp?"),
        ({"strategies": ["fsdp2"]}, CPU, "no FSDP on a CPU"),
        ({"num_processes": 3}, TWO, "3 processes need 3 GPUs and 2 are visible"),
        ({"num_processes": 3}, CPU, "batch.global_size=6 or batch.global_size=9"),
        ({"num_processes": 1}, CPU, "one process is what the others are compared with"),
        ({}, replace(TWO, devices=(GPU,)), "make more visible, or distributed.device=cpu"),
    ],
)
def test_what_can_not_be_verified(
    options: dict[str, Any], hardware: Hardware, told: str, description: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="Fix") as caught:
        chosen(description, tmp_path / "v", hardware, **options)
    assert told in str(caught.value)
    assert not (tmp_path / "v").exists()


def test_all_problems_at_once(description: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    description["data"]["path"] = "nowhere.jsonl"
    file = write_yaml(tmp_path / "run.yaml", description)
    assert main(["verify", str(file), "--strategy", "fsdp2"]) == 2
    told = capsys.readouterr().err
    assert "data.path='nowhere.jsonl': no such file." in told
    assert "no FSDP on a CPU" in told
    for words, said in (
        ([str(tmp_path / "none.yaml")], "no such file"),
        ([str(file), "other.yaml"], "give one RUN.yaml"),
        ([str(file), "lora.rr=2"], "did you mean lora.r?"),
        ([str(file), "--json", "/proc/no/x.json"], "--json"),
        ([str(file), "--keep", "/proc/no/x"], "--keep"),
    ):
        assert main(["verify", *words]) == 2
        told = capsys.readouterr().err
        assert said in told
        assert "Fix: " in told
    assert not (tmp_path / "out").exists()


def test_tolerances_can_be_given() -> None:
    assert tolerance("fp32", ["loss=0.5", "adapter=1"]).loss == 0.5
    assert tolerance("fp32").grad_norm == TOLERANCES["fp32"].grad_norm
    for bad in ("los=1", "loss", "loss=x", "loss=-1", "loss=nan", "reason=1"):
        with pytest.raises(ConfigError, match="no tolerance"):
            tolerance("bf16", [bad])
    assert all(allowed.reason for allowed in TOLERANCES.values())
    for precision in ("bf16", "fp16", "4-bit"):  # GPUs don't hide what a CPU's threads might
        assert tolerance(precision, device="cuda").loss < tolerance(precision).loss / 10


@pytest.mark.parametrize(
    ("model", "training", "hardware", "expected"),
    [
        ({}, {"bf16": False}, CPU, "fp32"),
        ({"dtype": "bfloat16"}, {}, CPU, "bf16"),
        ({}, {}, TWO, "bf16"),
        ({}, {"fp16": True}, TWO, "fp16"),
        ({"load_in_4bit": True}, {}, TWO, "4-bit"),
    ],
)
def test_each_precision_has_its_tolerance(
    model: Any, training: Any, hardware: Hardware, expected: str, description: dict[str, Any]
) -> None:
    description["model"] |= model
    description["training"] = training
    description["distributed"] = {"strategy": "single"}
    assert precision_of(plan(from_dict(description), hardware)) == expected


@pytest.fixture
def one(tmp_path: Path) -> Trained:
    """Three steps of one process, without training."""
    return made(tmp_path / "one")


def made(directory: Path, end: float = 1.0, **changes: Any) -> Trained:
    (directory / "record").mkdir(parents=True)
    (directory / "adapter").mkdir()
    start = {"a": np.full((2, 3), 4.0, "f4"), "b": np.zeros((5,), "f4")}
    save_file(start, directory / "record" / "start.safetensors")
    moved = {"a": start["a"] + np.float32(end), "b": start["b"] - np.float32(end)}
    save_file(moved, directory / "adapter" / "adapter_model.safetensors")
    values: dict[str, Any] = {"strategy": "ddp", "num_processes": 2, "loss": [3.0, 2.0, 1.0], "grad_norm": [1.0] * 3}
    values |= {"seconds": [9.0, 1.0, 1.0], "tokens": [10, 10, 10]}
    values["ranks"] = [{"rank": rank, "adapter": "x", "loading": 1.0 + rank} for rank in range(2)]
    return Trained(directory=directory, **values | changes)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"loss": [3.0, 2.001, 1.0]}, "the loss differs by 0.05 % (tolerated: 1e-05)"),
        ({"loss": [3.0, math.nan, 1.0]}, "the loss differs by ∞"),
        ({"loss": [3.0, 2.0]}, "it made 2 steps, one process 3"),
        ({"grad_norm": [2.0] * 3}, "2.00 times that of one process, as if gradients were summed over ranks"),
        ({"grad_norm": [0.5] * 3}, "as if gradients were averaged twice"),
        ({"grad_norm": [1.0, 1.1, 1.0]}, "the gradient norm differs by 10 % (tolerated: 0.01 %)"),
        ({"end": 1.01}, "the adapter moved 1 % further (tolerated: 0.01 %)"),
        ({"end": 0.99}, "the adapter moved 1 % less far"),
        ({"end": -1.0}, "the adapters end apart by 200 % of the way that one process went"),
        ({"tokens": [10, 11, 10]}, "did not see the same rows"),
        ({"ranks": [{"rank": 0, "adapter": "x"}, {"rank": 1, "adapter": "y"}]}, "the ranks ended with different"),
        ({"ranks": [{"rank": 0, "adapter": "x"}]}, "the ranks ended with different"),
    ],
)
def test_every_difference_is_told(one: Trained, tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    found = compare(one, made(tmp_path / "other", **changes), TOLERANCES["fp32"])
    assert not found.same
    assert any(told in fault for fault in found.faults), found.faults


def test_no_difference(one: Trained, tmp_path: Path) -> None:
    found = compare(one, made(tmp_path / "other", grad_norm=[1.0, 1.00005, 1.0]), TOLERANCES["fp32"])
    assert found.same
    assert found.ranks_equal
    assert found.distance == pytest.approx(math.sqrt(11 / (6 * 16)))
    # A strategy whose ranks can't be asked is not called unequal for it.
    asked = made(tmp_path / "fsdp1", ranks=[{"rank": 0}, {"rank": 1}])
    assert compare(one, asked, TOLERANCES["fp32"]).ranks_equal is None


def test_a_run_that_learns_nothing_does_not_pass(tmp_path: Path) -> None:
    still = made(tmp_path / "still", end=0.0)
    found = compare(still, still, TOLERANCES["fp32"])
    assert [fault.split(":")[0] for fault in found.faults] == ["nothing was learnt"]
    hardly = made(tmp_path / "hardly", end=1e-4)
    assert not compare(hardly, hardly, TOLERANCES["fp32"]).same


def test_steps_that_overflow_alike_are_alike(tmp_path: Path) -> None:
    """fp16's loss scaling starts too high; the steps until it fits are left out by every process."""
    one, other = (made(tmp_path / name, grad_norm=[math.inf, math.nan, 1.0]) for name in ("one", "other"))
    assert compare(one, other, TOLERANCES["fp16"]).same
    assert not compare(one, made(tmp_path / "finite"), TOLERANCES["fp16"]).same


def test_adapters_are_read_without_torch(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    values = torch.linspace(-3, 7, 12).reshape(3, 4)
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        save_torch({"w": values.to(dtype)}, str(tmp_path / "w.safetensors"), metadata={"format": "pt"})
        read = tensors.read(tmp_path / "w.safetensors")
        assert np.array_equal(read["w"], values.to(dtype).to(torch.float32).numpy())


def test_nothing_heavy_is_imported(tmp_path: Path) -> None:
    program = (
        "import sys; from unsloth_accel.cli import verify\n"
        "from unsloth_accel.verify import verification, table\n"
        "print([n for n in ('torch', 'transformers', 'accelerate', 'unsloth', 'numpy') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_report(description: dict[str, Any], one: Trained, tmp_path: Path) -> None:
    single = replace(one, num_processes=1, ranks=[{"rank": 0, "adapter": "x", "loading": 2.0}])
    plans = chosen(description, tmp_path / "v", strategies=["ddp"], num_processes=2)
    compared: Comparison = compare(single, one, TOLERANCES["fp32"])
    found = Verification(
        settings=replace(plans, left_out={"fsdp2": "no GPU."}, notes=("a note",)),
        precision="fp32",
        tolerance=TOLERANCES["fp32"],
        single=single,
        outcomes=[
            Outcome(plan=plans.others[0], name="ddp", trained=one, comparison=compared),
            Outcome(plan=plans.others[0], name="fsdp2_native", error="rank 1 failed."),
        ],
    )
    text = as_text(found)
    for words in ("the same", "not the same", "fsdp2_native: not the same: it failed: rank 1 failed.", "1.00 2.00"):
        assert words in text
    assert "fsdp2: left out: no GPU." in text
    assert "note: a note." in text
    assert not found.same
    values = json.loads(json.dumps(found.to_dict()))
    assert values["runs"]["ddp"]["same"]
    assert values["runs"]["ddp"]["difference"]["adapter"] == 0
    assert values["runs"]["fsdp2_native"]["error"] == "rank 1 failed."
    assert values["runs"]["single"]["tokens_per_second"] == 10.0, "the first step compiles kernels"
    from rich.console import Console

    console = Console(width=120, record=True, file=io.StringIO())
    console.print(as_table(found))
    assert "one process" in console.export_text()


def test_shares() -> None:
    assert [share(x) for x in (0.0, 3.4e-7, 1.2e-3, 1.0, math.inf)] == ["0", "3e-07", "0.12 %", "100 %", "∞"]
