"""All checks of unsloth-accel doctor together: silent about a machine where all is well."""

import subprocess
import sys
from dataclasses import replace

import pytest
from conftest import ROOT
from doctor_machines import Place, device, machine

from unsloth_accel.doctor import (
    CHECKS,
    Result,
    examine,
    exit_status,
)
from unsloth_accel.doctor import machine as machine_module
from unsloth_accel.hardware.hardware import Hardware


def test_a_healthy_machine_has_no_complaint(place: Place) -> None:
    quiet = [
        name
        for name, _ in CHECKS
        if name not in ("disk", "/dev/shm", "open files", "memory", "accelerate config", "hub")
    ]
    results = [result for name, check in CHECKS if name in quiet for result in check(machine(place))]
    assert [result for result in results if result.status != "ok"] == []
    assert {"torch", "unsloth", "GPUs"} <= {result.name for result in results}


def test_healthy_gpus_have_no_complaint(place: Place) -> None:
    place.torch("2.13.0+cu130", "13.0", ("nvidia-nccl-cu13==2.29.3",))
    place.add("nvidia-nccl-cu13", "2.29.3")
    joined = {frozenset(("GPU-0", "GPU-1")): "NVLink"}
    subject = machine(place, device(0), device(1), links=joined, environ={"CUDA_VISIBLE_DEVICES": "0,1"})
    names = ("disk", "/dev/shm", "open files", "memory", "accelerate config", "hub")
    results = [result for name, check in CHECKS if name not in names for result in check(subject)]
    assert [result for result in results if result.status != "ok"] == []
    assert "NVLink: every pair" in {result.name: result.detail for result in results}["GPU links"]


def test_a_machine_that_cannot_be_read_is_an_error_beside_the_other_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Hardware:
        raise RuntimeError("NVML answered nonsense")

    monkeypatch.setattr(machine_module.Hardware, "detect", broken)
    results = examine(quick=True)
    assert results[0].status == "error"
    assert "NVML answered nonsense" in results[0].detail
    assert {"python", "torch", "memory"} <= {result.name for result in results}
    assert exit_status(results) == 1


def test_warnings_alone_leave_with_0() -> None:
    warned = Result(name="a", status="warning", detail="b", fix="c")
    assert exit_status([warned, Result(name="a", detail="b")]) == 0
    assert exit_status([warned, replace(warned, status="error")]) == 1


def test_it_needs_no_omegaconf() -> None:
    """A machine whose packages are broken is what it is run on."""
    code = "import sys; sys.modules['omegaconf'] = None; import unsloth_accel.cli.doctor"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
