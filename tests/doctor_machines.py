"""Machines for the doctor to look at: their packages, their GPUs, and what a check complains of."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from unsloth_accel.doctor import (
    Machine,
    Result,
)
from unsloth_accel.doctor.machine import Nvml, Packages, torch_build
from unsloth_accel.hardware.device import Device
from unsloth_accel.hardware.hardware import Hardware

Check = Callable[[Machine], Iterator[Result]]
H100 = {"name": "NVIDIA H100 80GB HBM3", "memory_gib": 80.0, "compute_capability": (9, 0)}
UNSLOTH = ("transformers<=5.17.0,!=5.0.0", "trl<=1.15.0", "torch<2.15", "bitsandbytes!=0.46.0", "xformers", "einops")
OWN = """[metadata]
name = unsloth_accel
[options]
install_requires =
    accelerate>=1.15
    torch>=2.4,<2.15
    # a comment
    transformers
    trl>=0.18.2
[options.extras_require]
gpu =
    unsloth>=2026.10.7
cpu =
    regex
"""
GOOD = {
    "accelerate": "1.15.0",
    "einops": "0.8.0",
    "regex": "2026.1",
    "transformers": "5.17.0",
    "trl": "1.15.0",
    "unsloth": "2026.10.9",
    "unsloth_zoo": "2026.10.9",
    "bitsandbytes": "0.50.2",
    "xformers": "0.0.33",
}


class Place:
    """Packages in a directory, installed as far as their metadata and a few files go."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.own = directory / "setup.cfg"
        self.own.write_text(OWN, encoding="utf-8")

    def add(self, name: str, version: str, requires: tuple[str, ...] = (), python: str = ">=3.10") -> None:
        info = self.directory / f"{name.replace('-', '_')}-0.dist-info"
        info.mkdir(exist_ok=True)
        said = [f"Name: {name}", f"Version: {version}", f"Requires-Python: {python}"]
        said += [f"Requires-Dist: {one}" for one in requires]
        (info / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", *said, "", ""]), encoding="utf-8")

    def remove(self, name: str) -> None:
        shutil.rmtree(self.directory / f"{name}-0.dist-info")

    def file(self, path: str, text: str) -> None:
        (self.directory / path).parent.mkdir(exist_ok=True)
        (self.directory / path).write_text(text, encoding="utf-8")

    def torch(self, version: str, cuda: str | None = None, requires: tuple[str, ...] = (), more: str = "") -> None:
        self.add("torch", version.split("+")[0], requires)
        said = f"from typing import Optional\n__version__ = '{version}'\ncuda: Optional[str] = {cuda!r}\n{more}"
        self.file("torch/version.py", said)

    @property
    def packages(self) -> Packages:
        return Packages([str(self.directory)], own=self.own)


def device(index: int, **changes: Any) -> Device:
    return Device(**{"index": index, "uuid": f"GPU-{index}", **H100, **changes})


def machine(place: Place, *devices: Device, environ: Mapping[str, str] | None = None, **nvml: Any) -> Machine:
    """A machine with these GPUs, the packages of `place`, and what the driver says of it."""
    driver: dict[str, Any] = {}
    if devices:
        driver = {"driver": "580.159", "driver_cuda": (13, 0), "uuids": tuple(one.uuid for one in devices)}
    return Machine(
        packages=place.packages,
        torch=torch_build(place.packages),
        hardware=Hardware(devices=devices, cpu_cores=4, host_memory_gib=16, reason="a test"),
        nvml=Nvml(**{**driver, **nvml}),
        environ=environ or {},
        python="3.11.7",
        system="Linux",
        architecture="x86_64",
    )


def bad(check: Check, subject: Machine) -> list[Result]:
    """What a check complains of; each complaint has a fix."""
    found = [result for result in check(subject) if result.status != "ok"]
    assert all(result.fix for result in found), found
    return found


def only(check: Check, subject: Machine) -> Result:
    found = bad(check, subject)
    assert len(found) == 1, found
    return found[0]
