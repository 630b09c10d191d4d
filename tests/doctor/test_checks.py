"""unsloth-accel doctor: each check finds what it is for, and is silent about a machine where all is well."""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
import types
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import ROOT, Run

from unsloth_accel.cli.doctor import lines
from unsloth_accel.doctor import (
    CHECKS,
    Machine,
    Result,
    examine,
    exit_status,
    gpus,
    host,
    installed,
    known_bad,
    processes,
    shell_variables,
)
from unsloth_accel.doctor import machine as machine_module
from unsloth_accel.doctor.machine import Nvml, Packages, read_nvml, this_machine, torch_build
from unsloth_accel.doctor.result import collect
from unsloth_accel.hardware.hardware import Device, Hardware

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


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A CPU installation where all is well."""
    directory = tmp_path / "site"
    directory.mkdir()
    made = Place(directory)
    for name, version in GOOD.items():
        made.add(name, version, UNSLOTH if name == "unsloth" else ())
    made.file("unsloth/_cpu_init.py", "")
    made.torch("2.13.0+cpu")
    return made


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


# The whole.


def test_a_healthy_machine_has_no_complaint(place: Place) -> None:
    quiet = [
        name for name, _ in CHECKS if name not in ("disk", "/dev/shm", "open files", "memory", "accelerate config")
    ]
    results = [result for name, check in CHECKS if name in quiet for result in check(machine(place))]
    assert [result for result in results if result.status != "ok"] == []
    assert {"torch", "unsloth", "GPUs"} <= {result.name for result in results}


def test_healthy_gpus_have_no_complaint(place: Place) -> None:
    place.torch("2.13.0+cu130", "13.0", ("nvidia-nccl-cu13==2.29.3",))
    place.add("nvidia-nccl-cu13", "2.29.3")
    joined = {frozenset(("GPU-0", "GPU-1")): "NVLink"}
    subject = machine(place, device(0), device(1), links=joined, environ={"CUDA_VISIBLE_DEVICES": "0,1"})
    names = ("disk", "/dev/shm", "open files", "memory", "accelerate config")
    results = [result for name, check in CHECKS if name not in names for result in check(subject)]
    assert [result for result in results if result.status != "ok"] == []
    assert "NVLink: every pair" in {result.name: result.detail for result in results}["GPU links"]


def test_a_crashing_check_is_an_error_and_stops_no_other() -> None:
    def crash(_: None) -> Iterator[Result]:
        yield Result(name="half", detail="seen")
        raise RuntimeError("first line\nsecond line")

    def fine(_: None) -> Iterator[Result]:
        yield Result(name="fine", detail="")

    def absent(_: None) -> Iterator[Result]:
        raise ModuleNotFoundError("No module named 'yaml'", name="yaml")

    results = collect([("crash", crash), ("absent", absent), ("fine", fine)], None)
    assert [(result.name, result.status) for result in results][-3:] == [
        ("crash", "error"),
        ("absent", "error"),
        ("fine", "ok"),
    ]
    crashed, missing = results[-3:-1]
    assert "RuntimeError: first line" in crashed.detail
    assert "second" not in crashed.detail
    assert missing.fix == "pip install yaml"


def test_a_machine_that_cannot_be_read_is_an_error_beside_the_other_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Hardware:
        raise RuntimeError("NVML answered nonsense")

    monkeypatch.setattr(machine_module, "detect", broken)
    results = examine(quick=True)
    assert results[0].status == "error"
    assert "NVML answered nonsense" in results[0].detail
    assert {"python", "torch", "memory"} <= {result.name for result in results}
    assert exit_status(results) == 1


def test_warnings_alone_leave_with_0() -> None:
    warned = Result(name="a", status="warning", detail="b", fix="c")
    assert exit_status([warned, Result(name="a", detail="b")]) == 0
    assert exit_status([warned, replace(warned, status="error")]) == 1


def test_the_report_is_aligned_and_counts() -> None:
    results = [
        Result(name="torch", detail="2.13.0"),
        Result(name="known-bad pair", status="error", detail="it breaks", fix="pip install", reference="accelerate#1"),
    ]
    assert lines(results) == [
        "ok       torch           2.13.0",
        "error    known-bad pair  it breaks",
        "                         fix: pip install  [accelerate#1]",
        "",
        "1 error, 0 warnings in 2 results",
    ]


# The installation.


def test_a_python_out_of_bounds_is_an_error(place: Place) -> None:
    place.add("unsloth", "2026.10.9", UNSLOTH, python="<3.15,>=3.9")
    found = only(installed.python, replace(machine(place), python="3.15.0"))
    assert found.status == "error"
    assert "unsloth wants <3.15,>=3.9" in found.detail
    assert "torch" not in found.detail


@pytest.mark.parametrize("system", ["Windows", "Darwin"])
def test_other_systems_are_told_of_nccl(place: Place, system: str) -> None:
    assert "Linux machine" in only(installed.platform, replace(machine(place), system=system)).fix


@pytest.mark.parametrize(
    ("name", "version", "clause"),
    [
        ("transformers", "5.18.0", "unsloth: <=5.17.0"),
        ("transformers", "5.0.0", "unsloth: !=5.0.0"),
        ("trl", "1.16.0", "unsloth: <=1.15.0"),
        ("trl", "0.17.0", "unsloth_accel: >=0.18.2"),
        ("accelerate", "1.14.0", "unsloth_accel: >=1.15"),
    ],
)
def test_a_version_out_of_bounds_names_the_clause_and_whose_it_is(
    place: Place, name: str, version: str, clause: str
) -> None:
    place.add(name, version)
    found = only(installed.versions, machine(place))
    assert (found.name, found.status) == (name, "error")
    assert f"({clause})" in found.detail


def test_the_fix_is_the_pip_command_with_both_bounds(place: Place) -> None:
    place.add("trl", "1.16.0")
    assert only(installed.versions, machine(place)).fix == 'pip install "trl<=1.15.0,>=0.18.2"'


def test_bounds_follow_the_installed_unsloth(place: Place) -> None:
    place.add("trl", "1.16.0")
    place.add("unsloth", "2026.11.1", ("trl<=1.16.0",))
    assert bad(installed.versions, machine(place)) == []


def test_torch_out_of_bounds_keeps_its_build_in_the_report(place: Place) -> None:
    place.torch("2.15.0+cpu")
    found = only(installed.versions, machine(place))
    assert "2.15.0+cpu" in found.detail
    assert "unsloth and unsloth_accel: <2.15" in found.detail


def test_on_a_cpu_only_what_the_cpu_extra_names_is_needed(place: Place) -> None:
    for name in ("einops", "xformers", "bitsandbytes"):
        place.remove(name)
    assert bad(installed.versions, machine(place)) == []
    found = {result.name: result.status for result in bad(installed.versions, machine(place, device(0)))}
    assert found == {"einops": "warning", "xformers": "warning", "bitsandbytes": "warning"}


def test_a_package_of_our_own_bounds_that_is_missing_is_an_error(place: Place) -> None:
    place.remove("accelerate")
    found = only(installed.versions, machine(place))
    assert (found.status, found.fix) == ("error", 'pip install "accelerate>=1.15"')


def test_missing_unsloth_gets_the_recipe_of_this_machine(place: Place) -> None:
    place.remove("unsloth_zoo")
    found = only(installed.unsloth, machine(place))
    assert found.detail == "unsloth_zoo not installed"
    assert f"--no-deps unsloth=={installed.UNSLOTH_ON_A_CPU}" in found.fix
    assert "[gpu]" in only(installed.unsloth, machine(place, device(0))).fix


def test_the_cpu_recipe_is_the_makefiles() -> None:
    assert f"unsloth=={installed.UNSLOTH_ON_A_CPU}" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_unsloth_and_its_zoo_of_two_releases_are_told(place: Place) -> None:
    place.add("unsloth_zoo", "2026.10.10")
    found = only(installed.unsloth, machine(place))
    assert found.status == "warning"
    assert found.fix == 'pip install --no-deps "unsloth==2026.10.10" "unsloth_zoo==2026.10.10"'


def test_unsloth_without_a_cpu_backend_is_an_error_only_without_gpus(place: Place) -> None:
    (place.directory / "unsloth" / "_cpu_init.py").unlink()
    assert "no CPU backend" in only(installed.unsloth, machine(place)).detail
    assert bad(installed.unsloth, machine(place, device(0))) == []


# Known-bad pairs and builds.


@pytest.mark.parametrize(
    ("name", "version", "status", "reference"),
    [
        ("accelerate", "1.14.0", "error", "accelerate#4206"),
        ("torch", "2.11.0", "warning", "Automodel#3513"),
        ("torch", "2.12.1", "warning", "Automodel#3513"),
        ("torch", "2.7.1", "warning", "fsdp2.py"),
    ],
)
def test_known_bad_pairs_carry_their_reference(
    place: Place, name: str, version: str, status: str, reference: str
) -> None:
    place.add(name, version)
    found = only(known_bad.pairs, machine(place))
    assert found.status == status
    assert reference in found.reference
    assert f"{name} {version}" in found.detail


@pytest.mark.parametrize("version", ["2.8.0", "2.10.0", "2.13.0"])
def test_torch_releases_between_are_fine(place: Place, version: str) -> None:
    place.add("torch", version)
    assert bad(known_bad.pairs, machine(place)) == []


def test_a_cpu_torch_beside_gpus_is_an_error(place: Place) -> None:
    found = only(known_bad.torch_for_device, machine(place, device(0)))
    assert "CPU build" in found.detail
    assert '"torch==2.13.0"' in found.fix


def test_a_driver_older_than_torchs_cuda_is_an_error(place: Place) -> None:
    place.torch("2.13.0+cu130", "13.0")
    found = only(known_bad.torch_for_device, machine(place, device(0), driver="550.54", driver_cuda=(12, 4)))
    assert "550.54 runs CUDA 12.4" in found.detail
    assert found.fix == "install driver 580 or newer, or a torch built for CUDA 12"
    assert "minor-version-compatibility" in found.reference


def test_a_driver_of_the_same_major_release_is_enough(place: Place) -> None:
    place.torch("2.13.0+cu132", "13.2")
    assert bad(known_bad.torch_for_device, machine(place, device(0))) == []


def test_other_accelerators_are_told_apart(place: Place) -> None:
    place.torch("2.13.0+rocm6.4", more="hip: Optional[str] = '6.4'\n")
    assert "rocm build" in only(known_bad.torch_for_device, machine(place)).detail


@pytest.mark.parametrize(
    ("torch", "cuda", "capability", "fine"),
    [
        ("2.6.0+cu124", "12.4", (10, 0), False),  # B200
        ("2.8.0+cu126", "12.6", (12, 0), False),  # RTX 5090
        ("2.8.0+cu128", "12.8", (12, 0), True),
        ("2.8.0+cu128", "12.8", (6, 1), False),  # GTX 1080
        ("2.10.0+cu128", "12.8", (7, 0), True),  # V100
        ("2.11.0+cu128", "12.8", (7, 0), False),
        ("2.9.0+cu130", "13.0", (7, 0), False),
        ("2.13.0+cu130", "13.0", (7, 5), True),  # T4
        ("2.13.0+cu126", "12.6", (6, 1), True),
        ("2.13.0+cu130", "13.0", (9, 0), True),
    ],
)
def test_kernels_for_a_gpu(place: Place, torch: str, cuda: str, capability: tuple[int, int], fine: bool) -> None:
    place.torch(torch, cuda)
    found = bad(known_bad.kernels, machine(place, device(0), device(1, compute_capability=capability)))
    assert [result.name for result in found] == ([] if fine else ["GPU 1"])


@pytest.mark.parametrize(
    ("cuda", "capability", "fix"), [("12.6", (10, 0), "CUDA 12.8 or newer"), ("13.0", (6, 1), "CUDA 12.6")]
)
def test_the_fix_for_missing_kernels_names_the_build(
    place: Place, cuda: str, capability: tuple[int, int], fix: str
) -> None:
    place.torch("2.13.0", cuda)
    assert fix in only(known_bad.kernels, machine(place, device(0, compute_capability=capability))).fix


@pytest.mark.parametrize("said", ["version.py", "metadata", "operators"])
def test_a_cuda_torchvision_beside_a_cpu_torch_is_an_error(place: Place, said: str) -> None:
    place.add("torchvision", "0.28.0+cu130" if said == "metadata" else "0.28.0")
    place.file("torchvision/__init__.py", "")
    if said == "version.py":
        place.file("torchvision/version.py", "__version__ = '0.28.0+cu130'\ngit_version = 'f'\n")
    if said == "operators":
        place.file("torchvision/_C.so", "… libtorch_cpu.so libtorch_cuda.so …")
    found = only(known_bad.built_for_another_torch, machine(place))
    assert found.name == "torchvision"
    assert "operators don't load" in found.detail
    assert "pip uninstall torchvision" in found.fix


def test_a_cpu_torchvision_is_fine(place: Place) -> None:
    place.add("torchvision", "0.28.0")
    place.file("torchvision/__init__.py", "")
    place.file("torchvision/_C.so", "… libtorch_cpu.so …")
    assert bad(known_bad.built_for_another_torch, machine(place)) == []
    place.file("torchvision/version.py", "__version__ = '0.28.0+cpu'\n")
    assert bad(known_bad.built_for_another_torch, machine(place)) == []


def test_xformers_built_for_another_torch(place: Place) -> None:
    place.torch("2.13.0+cu130", "13.0")
    place.add("xformers", "0.0.32", ("torch==2.8.0",))
    assert "wants torch==2.8.0" in only(known_bad.built_for_another_torch, machine(place, device(0))).detail
    place.add("xformers", "0.0.33", ("torch==2.13.0",))
    assert bad(known_bad.built_for_another_torch, machine(place, device(0))) == []


def test_flash_attn_built_for_another_torch(place: Place) -> None:
    place.torch("2.13.0+cu130", "13.0")
    place.add("flash_attn", "2.8.3+cu12torch2.8cxx11abiTRUE")
    assert "built for torch 2.8" in only(known_bad.built_for_another_torch, machine(place, device(0))).detail
    place.add("flash_attn", "2.8.3+cu13torch2.13cxx11abiTRUE")
    assert bad(known_bad.built_for_another_torch, machine(place, device(0))) == []


def test_nccl_missing_or_of_another_build(place: Place) -> None:
    place.torch("2.13.0+cu130", "13.0", ("nvidia-nccl-cu13==2.29.3; platform_system == 'Linux'",))
    found = only(known_bad.nccl, machine(place, device(0)))
    assert (found.status, found.fix) == ("error", 'pip install "nvidia-nccl-cu13==2.29.3"')
    place.add("nvidia-nccl-cu13", "2.27.5")
    assert only(known_bad.nccl, machine(place, device(0))).status == "warning"


# GPUs.


def test_memory_that_others_hold_is_told_with_their_ids(place: Place) -> None:
    subject = machine(
        place, device(0, memory_free_gib=79.5), device(1, memory_free_gib=47.0), processes={"GPU-1": (4242,)}
    )
    found = only(gpus.gpus, subject)
    assert found.name == "GPU 1"
    assert "47 free" in found.detail
    assert "33.0 GiB held by process 4242" in found.detail


def test_gpus_of_two_kinds(place: Place) -> None:
    other = device(1, name="NVIDIA A100-SXM4-40GB", memory_gib=40.0)
    assert "PCI_BUS_ID" in only(gpus.kinds, machine(place, device(0), other)).fix
    assert bad(gpus.kinds, machine(place, device(0), device(1))) == []


def test_pairs_without_peer_access(place: Place) -> None:
    joined = {frozenset(("GPU-0", "GPU-1")): "host memory"}
    found = only(gpus.links, machine(place, device(0), device(1), links=joined))
    assert "ddp" in found.fix
    assert "RTX 40" not in found.detail
    cards = [device(i, name="NVIDIA GeForce RTX 4090") for i in range(2)]
    assert "no peer access" in only(gpus.links, machine(place, *cards, links=joined)).detail


def test_mixed_links_are_listed(place: Place) -> None:
    joined = {
        frozenset(("GPU-0", "GPU-1")): "NVLink",
        frozenset(("GPU-0", "GPU-2")): "PCIe",
        frozenset(("GPU-1", "GPU-2")): "PCIe",
    }
    found = only(gpus.links, machine(place, device(0), device(1), device(2), links=joined))
    assert "NVLink: 0-1; PCIe: 0-2, 1-2" in found.detail


def test_one_gpu_has_no_links(place: Place) -> None:
    assert list(gpus.links(machine(place, device(0)))) == []


def fake_nvml(**changes: Any) -> Any:
    """A driver with two GPUs that NVLink joins; `changes` replace its answers."""

    class NVMLError(Exception):
        pass

    def refuse(*_: Any) -> None:
        raise NVMLError("Not Supported")

    answers: dict[str, Any] = {
        "NVMLError": NVMLError,
        "NVML_P2P_STATUS_OK": 0,
        "NVML_P2P_CAPS_INDEX_NVLINK": 2,
        "NVML_P2P_CAPS_INDEX_READ": (0,),
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetUUID": lambda handle: f"GPU-{handle}".encode(),
        "nvmlSystemGetDriverVersion": lambda: "580.159.04",
        "nvmlSystemGetCudaDriverVersion_v2": lambda: 12080,
        "nvmlDeviceGetComputeRunningProcesses": lambda handle: [types.SimpleNamespace(pid=7)] if handle else [],
        "nvmlDeviceGetP2PStatus": lambda one, other, way: 0,
    }
    changes = {name: refuse if change is None else change for name, change in changes.items()}
    return types.SimpleNamespace(**(answers | changes))


def nvml(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Nvml:
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(**changes))
    return read_nvml()


def test_what_the_driver_says(monkeypatch: pytest.MonkeyPatch) -> None:
    said = nvml(monkeypatch)
    assert (said.driver, said.driver_cuda, said.uuids) == ("580.159.04", (12, 8), ("GPU-0", "GPU-1"))
    assert said.processes == {"GPU-0": (), "GPU-1": (7,)}
    assert said.links == {frozenset(("GPU-0", "GPU-1")): "NVLink"}


@pytest.mark.parametrize(
    ("working", "link"), [((0, 2), "NVLink"), ((2,), "NVLink"), ((0,), "PCIe"), ((), "host memory")]
)
def test_links_as_the_driver_tells_them(monkeypatch: pytest.MonkeyPatch, working: tuple[int, ...], link: str) -> None:
    said = nvml(monkeypatch, nvmlDeviceGetP2PStatus=lambda one, other, way: 0 if way in working else 3)
    assert list(said.links.values()) == [link]


def test_an_answer_that_a_container_withholds_costs_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    said = nvml(
        monkeypatch,
        nvmlDeviceGetP2PStatus=None,
        nvmlDeviceGetComputeRunningProcesses=None,
    )
    assert list(said.links.values()) == ["unknown"]
    assert said.processes == {"GPU-0": (), "GPU-1": ()}
    assert said.driver_cuda == (12, 8)


def test_no_driver_is_a_reason_and_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    assert nvml(monkeypatch, nvmlInit=None).reason == "Not Supported"


# Variables.


@pytest.mark.parametrize(
    ("environ", "said", "fix"),
    [
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1"}, "wait", "unset WORLD_SIZE MASTER_ADDR"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "takes", "unset ACCELERATE_USE_FSDP FSDP_VERSION"),
        ({"PARALLELISM_CONFIG_TP_SIZE": "2"}, "takes", "unset PARALLELISM_CONFIG_TP_SIZE"),
        ({"UNSLOTH_FSDP2": "1"}, "shards", "unset UNSLOTH_FSDP2"),
        ({"UNSLOTH_TP_SIZE": "2"}, "tensor parallelism", "unset UNSLOTH_TP_SIZE"),
        ({"UNSLOTH_ALLOW_CPU": "1"}, "pretends", "unset UNSLOTH_ALLOW_CPU"),
        ({"HF_HUB_OFFLINE": "1"}, "cache", "unset HF_HUB_OFFLINE"),
        ({"CUDA_LAUNCH_BLOCKING": "1"}, "waits", "unset CUDA_LAUNCH_BLOCKING"),
        ({"TORCH_DISTRIBUTED_DEBUG": "detail"}, "collective", "unset TORCH_DISTRIBUTED_DEBUG"),
    ],
)
def test_variables_that_hurt(place: Place, environ: dict[str, str], said: str, fix: str) -> None:
    found = only(shell_variables.variables, machine(place, environ=environ))
    assert said in found.detail
    assert found.fix.startswith(fix)


@pytest.mark.parametrize(
    "environ",
    [
        {"UNSLOTH_FSDP2": "0", "UNSLOTH_TP_SIZE": "1", "CUDA_LAUNCH_BLOCKING": "0", "HF_HUB_OFFLINE": ""},
        {"TORCH_DISTRIBUTED_DEBUG": "INFO", "ACCELERATE_LOG_LEVEL": "INFO", "NCCL_P2P_DISABLE": "1"},
        {"UNSLOTH_FORCE_CPU": "1"},
    ],
)
def test_variables_that_do_not(place: Place, environ: dict[str, str]) -> None:
    assert bad(shell_variables.variables, machine(place, environ=environ)) == []


def test_gpus_that_a_variable_slows_or_hides(place: Place) -> None:
    joined = {frozenset(("GPU-0", "GPU-1")): "NVLink"}
    slowed = machine(place, device(0), device(1), links=joined, environ={"NCCL_P2P_DISABLE": "1"})
    assert "NVLink" in only(shell_variables.variables, slowed).detail
    forced = machine(place, device(0), environ={"UNSLOTH_FORCE_CPU": "1"})
    assert only(shell_variables.variables, forced).name == "UNSLOTH_FORCE_CPU"


@pytest.mark.parametrize(
    ("said", "visible", "status"),
    [("", 0, "warning"), ("-1", 0, "warning"), ("7", 0, "error"), ("0,7,1", 1, "warning"), ("0,1", 2, None)],
)
def test_cuda_visible_devices(place: Place, said: str, visible: int, status: str | None) -> None:
    devices = [device(i) for i in range(visible)]
    subject = machine(place, *devices, environ={"CUDA_VISIBLE_DEVICES": said}, uuids=("GPU-0", "GPU-1"))
    found = bad(shell_variables.visible_devices, subject)
    assert [result.status for result in found] == ([] if status is None else [status])


def test_a_machine_without_gpus_may_hide_them(place: Place) -> None:
    assert list(shell_variables.visible_devices(machine(place, environ={"CUDA_VISIBLE_DEVICES": ""}))) == []


@pytest.mark.parametrize("home", ["HF_HOME", "XDG_CACHE_HOME"])
def test_a_default_accelerate_config_is_told(place: Place, tmp_path: Path, home: str) -> None:
    subject = machine(place, environ={home: str(tmp_path)})
    assert bad(shell_variables.default_config, subject) == []
    directory = tmp_path / ("accelerate" if home == "HF_HOME" else "huggingface/accelerate")
    directory.mkdir(parents=True)
    (directory / "default_config.yaml").write_text("distributed_type: FSDP\nnum_processes: 8\n", encoding="utf-8")
    found = only(shell_variables.default_config, subject)
    assert "distributed_type: FSDP, num_processes: 8" in found.detail
    assert "--config_file" in found.fix


@pytest.mark.slow
def test_the_default_config_is_where_accelerate_looks(tmp_path: Path) -> None:
    code = "from accelerate.commands.config.config_args import cache_dir; print(cache_dir)"
    for name in ("HF_HOME", "XDG_CACHE_HOME"):
        environ = {k: v for k, v in os.environ.items() if k not in ("HF_HOME", "XDG_CACHE_HOME")} | {
            name: str(tmp_path)
        }
        said = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
        assert Path(said.stdout.strip()) == shell_variables._hugging_face_home(environ) / "accelerate"


# Host.

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(("free_gib", "statuses"), [(500, []), (5, ["warning", "warning"]), (0.5, ["error"] * 3)])
def test_disk_space(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free_gib: float, statuses: list[str]
) -> None:
    monkeypatch.setattr(host.shutil, "disk_usage", lambda _: Usage(2**40, 0, int(free_gib * 2**30)))
    subject = machine(place, environ={"HF_HOME": str(tmp_path / "not" / "there")})
    assert [result.status for result in bad(host.disk, subject)] == statuses


def test_a_cache_that_cannot_be_written(place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr(host.os, "access", lambda path, _: Path(path) != cache)
    found = only(host.disk, machine(place, environ={"HF_HUB_CACHE": str(cache)}))
    assert (found.name, found.status) == ("disk, models", "error")
    assert "HF_HOME" in found.fix


def test_dockers_shared_memory_is_too_small(place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(host, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(host.shutil, "disk_usage", lambda _: Usage(64 * 2**20, 0, 0))
    assert "--shm-size" in only(host.shared_memory, machine(place)).fix


def test_few_open_files(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    assert only(host.open_files, machine(place)).fix.startswith("ulimit -n")


@pytest.mark.parametrize(("limit", "statuses"), [(2.0, ["warning"]), (1e6, [])])
def test_memory_is_what_the_containers_limit_leaves(
    place: Place, monkeypatch: pytest.MonkeyPatch, limit: float, statuses: list[str]
) -> None:
    monkeypatch.setattr(host, "memory_gib", lambda: (limit, "the cgroup's memory limit"))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=64 * 2**30))
    assert [result.status for result in bad(host.memory, machine(place))] == statuses
    assert f"{min(limit, 64):.0f} GiB available" in next(host.memory(machine(place))).detail


# Processes.


def script(tmp_path: Path, body: str) -> Path:
    """A stand-in for all_reduce.py: `say(**values)` leaves a word as it does."""
    path = tmp_path / "stand_in.py"
    path.write_text(
        "import json, os, sys, time\n"
        "rank = int(os.environ['RANK'])\n"
        "values = {'rank': rank}\n"
        "def say(**more):\n"
        "    values.update(more)\n"
        "    with open(f'{sys.argv[1]}/rank-{rank}.json', 'w') as file:\n"
        "        json.dump(values, file)\n" + body,
        encoding="utf-8",
    )
    return path


def ran(*ranks: dict[str, Any], status: int | None = 0, output: str = "") -> processes.Outcome:
    return processes.Outcome(status=status, output=output, ranks=ranks)


def judged(monkeypatch: pytest.MonkeyPatch, outcome: processes.Outcome, device: Any = "cuda") -> Result:
    monkeypatch.setattr(processes, "_launch", lambda *_: outcome)
    return processes.check(device, 2, {}, 30)


RIGHT = {"stage": "done", "world": 2, "right": True, "bus_gb_s": 329.4}


def test_a_right_sum_is_told_with_its_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    found = judged(monkeypatch, ran({**RIGHT, "rank": 0}, {**RIGHT, "rank": 1, "bus_gb_s": 328.0}))
    assert (found.status, found.detail) == ("ok", "2 processes, exact sum, 328 GB/s bus bandwidth")


def test_a_wrong_sum_names_the_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    found = judged(monkeypatch, ran({**RIGHT, "rank": 0}, {**RIGHT, "rank": 1, "right": False}))
    assert found.status == "error"
    assert "rank 1 got a wrong sum" in found.detail


@pytest.mark.parametrize("ranks", [[{"rank": 0, "world": 1}], [{"rank": 0, "world": 1}, {"rank": 1, "world": 1}]])
def test_processes_that_form_no_group_are_an_error(monkeypatch: pytest.MonkeyPatch, ranks: list[Any]) -> None:
    found = judged(monkeypatch, ran(*ranks))
    assert found.status == "error"
    assert "train alone" in found.detail


@pytest.mark.parametrize(
    ("device", "stages", "said", "fix"),
    [
        ("cuda", ["formed", "formed"], "never ended", "NCCL_P2P_DISABLE=1"),
        ("cuda", ["formed", "done"], "never ended", "NCCL_P2P_DISABLE=1"),
        ("cuda", ["imported", "formed"], "no way to each other", "NCCL_SOCKET_IFNAME=lo"),
        ("cpu", ["imported", "imported"], "no way to each other", "GLOO_SOCKET_IFNAME=lo"),
        ("cpu", ["started", "imported"], "importing torch", "--timeout"),
        ("cpu", ["started"], "no process", "--timeout"),
    ],
)
def test_a_hang_is_told_by_its_place(
    monkeypatch: pytest.MonkeyPatch, device: str, stages: list[str], said: str, fix: str
) -> None:
    ranks = [{"rank": rank, "stage": stage} for rank, stage in enumerate(stages)]
    found = judged(monkeypatch, ran(*ranks, status=None), device)
    assert found.status == "error"
    assert f"stopped after 30 s: {found.detail.split(': ')[1]}" == found.detail
    assert said in found.detail
    assert fix in found.fix


def test_a_failure_is_told_in_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    output = (
        "[rank0]: Traceback (most recent call last):\n"
        "[rank0]: torch.distributed.DistBackendError: NCCL error, unhandled system error\n"
        "W1122 torch/elastic: Sending process 7 closing signal SIGTERM\n"
        "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n"
    )
    found = judged(monkeypatch, ran(status=1, output=output))
    assert "status 1: torch.distributed.DistBackendError: NCCL error" in found.detail
    assert "NCCL_DEBUG=INFO" in found.fix


def test_gloo_always_and_nccl_only_between_gpus(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def check(*words: Any) -> Result:
        asked.append(words[:2])
        return Result(name="", detail="")

    monkeypatch.setattr(processes, "check", check)
    list(processes.all_reduce(machine(place)))
    place.torch("2.13.0+cu130", "13.0")
    list(processes.all_reduce(machine(place, device(0))))
    assert asked == [("cpu", 2)] * 2
    list(processes.all_reduce(machine(place, *(device(i) for i in range(4)))))
    assert asked[2:] == [("cpu", 2), ("cuda", 4)]


@pytest.mark.slow
def test_a_hang_is_ended_with_all_its_processes(tmp_path: Path) -> None:
    ids = tmp_path / "ids"
    ids.mkdir()
    body = f"say(stage='imported')\nopen(f'{ids}/{{os.getpid()}}', 'w').close()\ntime.sleep(600)\n"
    start = time.monotonic()
    found = processes.check("cpu", 2, os.environ, 20, script(tmp_path, body))
    assert time.monotonic() - start < 30
    assert "stopped after 20 s: the processes started and found no way to each other" in found.detail
    assert "GLOO_SOCKET_IFNAME" in found.fix
    started = [int(path.name) for path in ids.iterdir()]
    assert len(started) == 2
    _, alive = psutil.wait_procs([psutil.Process(one) for one in started if psutil.pid_exists(one)], timeout=5)
    assert alive == []


@pytest.mark.slow
def test_a_failing_process_is_told(tmp_path: Path) -> None:
    body = "say(stage='imported')\nif rank == 1:\n    raise RuntimeError('no route to host')\ntime.sleep(600)\n"
    found = processes.check("cpu", 2, os.environ, 100, script(tmp_path, body))
    assert found.status == "error"
    assert "RuntimeError: no route to host" in found.detail
    assert found.fix


# As a user runs it.


def test_quick_reads_this_machine_without_torch() -> None:
    code = (
        "import sys; from unsloth_accel.cli.main import main; status = main(['doctor', '--quick', '--json'])\n"
        "assert not {'torch', 'unsloth', 'accelerate', 'transformers'} & set(sys.modules), 'heavy imports'\n"
        "sys.exit(status)"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert said.stderr == ""
    report = json.loads(said.stdout)
    results = report["results"]
    assert said.returncode == report["exit_status"] == int(any(one["status"] == "error" for one in results))
    by_name = {one["name"]: one for one in results}
    assert by_name["python"]["detail"] == platform.python_version()
    assert set(by_name["python"]) == {"name", "status", "detail", "fix", "reference"}
    assert not any(name.startswith("all-reduce") for name in by_name)


def test_help_has_an_example(cli: Run) -> None:
    said = cli("doctor", "--help")
    assert said.returncode == 0
    assert "unsloth-accel doctor --quick" in said.stdout


@pytest.mark.slow
def test_doctor_on_this_machine(cli: Run) -> None:
    said = cli("doctor", "--json")
    report = json.loads(said.stdout)
    assert said.returncode == report["exit_status"]
    by_name = {one["name"]: one for one in report["results"]}
    assert by_name["all-reduce, gloo"]["status"] == "ok", by_name["all-reduce, gloo"]
    assert by_name["all-reduce, gloo"]["detail"] == "2 processes, exact sum"
    # The GPU recipe's Unsloth has no CPU backend, and tests hide the GPUs.
    assert {one["name"] for one in report["results"] if one["status"] == "error"} <= {"unsloth"}


@pytest.mark.slow
def test_a_machine_with_a_stray_variable_still_sums() -> None:
    """WORLD_SIZE and MASTER_PORT of another launch don't reach the test's processes."""
    stray = {**os.environ, "WORLD_SIZE": "8", "RANK": "5", "MASTER_ADDR": "192.0.2.1", "MASTER_PORT": "1"}
    found = processes.check("cpu", 2, stray, 100)
    assert (found.status, found.detail) == ("ok", "2 processes, exact sum")


def test_this_machine_is_read_whole() -> None:
    assert this_machine().faults == ()
