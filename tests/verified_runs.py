"""What verify would train, and runs as if it had."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from unsloth_accel.config.read_run import from_dict
from unsloth_accel.hardware.device import Device
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.verify.runs import Trained
from unsloth_accel.verify.settings import Settings, settings

CPU = Hardware(cpu_cores=2, host_memory_gib=8, reason="no driver")
GPU = Device(name="GPU", index=0, memory_gib=80, compute_capability=(9, 0), uuid="GPU-0")
TWO = Hardware(devices=(GPU, replace(GPU, index=1, uuid="GPU-1")), cpu_cores=8, host_memory_gib=64, reason="told")


def chosen(description: dict[str, Any], directory: Path, hardware: Hardware = CPU, **options: Any) -> Settings:
    return settings(from_dict(description), hardware, directory, **options)


def made(directory: Path, end: float = 1.0, **changes: Any) -> Trained:
    (directory / "record").mkdir(parents=True)
    (directory / "adapter").mkdir()
    start = {"a": np.full((2, 3), 4.0, "f4"), "b": np.zeros((5,), "f4")}
    save_file(start, directory / "record" / "start.safetensors")
    moved = {"a": start["a"] + np.float32(end), "b": start["b"] - np.float32(end)}
    save_file(moved, directory / "adapter" / "adapter_model.safetensors")
    values: dict[str, Any] = {"num_processes": 2, "loss": [3.0, 2.0, 1.0], "grad_norm": [1.0] * 3}
    values |= {"seconds": [9.0, 1.0, 1.0], "tokens": [10, 10, 10]}
    values["ranks"] = [{"rank": rank, "adapter": "x", "loading": 1.0 + rank} for rank in range(2)]
    return Trained(directory=directory, **values | changes)
