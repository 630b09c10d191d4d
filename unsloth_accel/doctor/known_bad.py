"""Known-bad pairs: versions within everybody's bounds that fail together, or on this machine's GPUs.

Each names its source, so that the entry can go when the cause is mended.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import counted
from ..strategies import usual
from .machine import Machine, TorchBuild
from .result import Result, Status, error, warning

if TYPE_CHECKING:
    from packaging.version import Version


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Versions of a package that fail with Unsloth or with what it trains."""

    versions: str
    """Requirement that an installed version of the pair meets."""
    status: Status
    consequence: str
    fix: str
    """Fix; {usual} in it is the strategy that works wherever the model fits."""
    reference: str


PAIRS = (
    Pair(
        versions="accelerate<1.15",
        status="error",
        consequence="FULL_STATE_DICT of a PEFT model loses adapter tensors when it is saved",
        fix='pip install "accelerate>=1.15"',
        reference="accelerate#4206",
    ),
    Pair(
        versions="torch>=2.11,<2.13",
        status="warning",
        consequence="FSDP2 with fsdp_activation_checkpointing stops with a CheckpointError, since recomputing skips "
        "FSDP2's cast of inputs",
        fix='pip install "torch>=2.13", or leave fsdp_activation_checkpointing false: Unsloth checkpoints itself',
        reference="NVIDIA-NeMo/Automodel#3513",
    ),
    Pair(
        versions="torch<2.8",
        status="warning",
        consequence="FSDP2 wants one dtype for all parameters of a unit, frozen ones too: no fp32 LoRA on a bf16 or "
        "4-bit base, so QLoRA is not sharded",
        fix='pip install "torch>=2.8", or use distributed.strategy={usual}',
        reference="torch, FSDPParamGroup._init_mp_dtypes; unsloth/models/fsdp2.py",
    ),
)
OLDEST_DRIVER = {11: "450", 12: "525", 13: "580"}
"""The driver that a CUDA major release needs (NVIDIA, CUDA Compatibility: Minor Version Compatibility)."""
COMPATIBILITY = "docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html"
MATRIX = "pytorch RELEASE.md, CUDA Support Matrix; pytorch#157517, #172352, #190385"
BUILT_FOR_TORCH = ("torchvision", "torchaudio", "xformers")
"""Packages with compiled operators whose metadata names the one torch they were built for."""


def pairs(machine: Machine) -> Iterator[Result]:
    """Versions that fail together."""
    from packaging.requirements import Requirement

    found = False
    for pair in PAIRS:
        bad = Requirement(pair.versions)
        version = machine.packages.version(bad.name)
        if version is not None and version in bad.specifier:
            found = True
            told = error if pair.status == "error" else warning
            fix = pair.fix.format(usual=usual(2).name)
            yield told("known-bad pair", f"{bad.name} {version}: {pair.consequence}", fix, pair.reference)
    if not found:
        yield Result(name="known-bad pairs", detail=f"none of {len(PAIRS)}")


def torch_for_device(machine: Machine) -> list[Result]:
    """torch's build against the driver."""
    build = machine.torch
    if build is None:
        return []  # already an error among the versions
    if build.other:
        detail = f"{build.version} is a {build.other} build; this package is tested with CUDA and on CPUs"
        return [warning("torch build", detail, "use a CUDA build on an NVIDIA GPU")]
    if build.cuda is None and machine.without_gpu:
        return [Result(name="torch build", detail="CPU")]
    if build.cuda is None:
        detail = f"{build.version} is a CPU build, so {counted(len(machine.hardware.devices), 'GPU')} here stay unused"
        fix = f'pip install --force-reinstall "torch=={build.version.public}" from an index with CUDA builds'
        return [error("torch build", detail, fix)]
    cuda = _dotted(build.cuda)
    if machine.nvml.driver_cuda is None:
        why = machine.nvml.reason or "it didn't say"
        return [Result(name="torch build", detail=f"CUDA {cuda}; the driver's CUDA is unknown ({why})")]
    driver = f"driver {machine.nvml.driver} runs CUDA {_dotted(machine.nvml.driver_cuda)}"
    if machine.nvml.driver_cuda[0] >= build.cuda[0]:
        return [Result(name="torch build", detail=f"CUDA {cuda}; {driver}")]
    oldest = OLDEST_DRIVER.get(build.cuda[0])
    newer = f"install driver {oldest} or newer" if oldest else "install a newer driver"
    fix = f"{newer}, or a torch built for CUDA {machine.nvml.driver_cuda[0]}"
    detail = f"CUDA {cuda}, but {driver} at most: torch sees no GPU"
    return [error("torch build", detail, fix, COMPATIBILITY)]


def kernels(machine: Machine) -> Iterator[Result]:
    """GPUs that this torch build has no kernels for."""
    build = machine.torch
    if build is None or build.cuda is None or machine.without_gpu:
        return
    oldest, newest = capabilities(build)
    for device in machine.hardware.devices:
        capability = device.compute_capability
        if oldest <= capability < (newest + 1, 0):
            continue
        detail = f"{device.name} is sm_{capability[0]}{capability[1]}; torch {build.version} has kernels for "
        detail += f"{_dotted(oldest)} to {newest}.x: no kernel image is available"
        fix = "install a torch built for CUDA 12.8 or newer"
        if capability < oldest:
            fix = "install a torch built for CUDA 12.6, which torch 2.14 is the last to have, or use a newer GPU"
        yield error(f"GPU {device.index}", detail, fix, MATRIX)


def capabilities(build: TorchBuild) -> tuple[tuple[int, int], int]:
    """The oldest compute capability that PyTorch's own CUDA build has kernels for, and the newest major one.

    From PyTorch's support matrix for x86_64. CUDA 12.8 brought Blackwell, and its builds left out Maxwell and Pascal
    from torch 2.8 on and Volta from 2.11 on; CUDA 13 begins with Turing.
    """
    assert build.cuda is not None
    newest = 12 if build.cuda >= (12, 8) else 9
    if build.cuda >= (13, 0) or (build.cuda >= (12, 8) and build.release >= (2, 11)):
        return (7, 5), newest
    if build.cuda >= (12, 8) and build.release >= (2, 8):
        return (7, 0), newest
    return (5, 0), newest


def built_for_another_torch(machine: Machine) -> Iterator[Result]:
    """Compiled packages whose operators don't load beside this torch."""
    build = machine.torch
    if build is None:
        return
    for name in BUILT_FOR_TORCH:
        version = machine.packages.version(name)
        for one in machine.packages.requirements(name) if version else ():
            if one.name == "torch" and not one.specifier.contains(build.version.public, prereleases=True):
                fix = f"pip install --upgrade {name} beside torch {build.version.public}, or pip uninstall {name}"
                yield _unloadable(name, f"{version} wants torch{one.specifier}", build, fix)
    yield from _torchvision_on_a_cpu(machine, build)
    yield from _flash_attn(machine, build)


def _torchvision_on_a_cpu(machine: Machine, build: TorchBuild) -> Iterator[Result]:
    version = machine.packages.version("torchvision")
    if version is None or build.cuda is not None or build.other or not _torchvision_has_cuda(machine, version):
        return
    fix = "pip uninstall torchvision (text training doesn't need it), or install its CPU build"
    reference = "pytorch/vision#9085: operator torchvision::nms does not exist"
    yield _unloadable("torchvision", f"{version} is a CUDA build", build, fix, reference)


def _torchvision_has_cuda(machine: Machine, version: Version) -> bool:
    """Return whether torchvision was built with CUDA: it says so in its version, or its operators link against it."""
    said = re.search(r"__version__ = '[^'+]+\+(\w+)'", machine.packages.text("torchvision", "torchvision/version.py"))
    label = said.group(1) if said else version.local
    if label:
        return label.startswith("cu")
    place = machine.packages.file("torchvision", "torchvision/__init__.py")
    operators = place.parent.glob("_C*.so") if place else ()
    return any(b"libtorch_cuda" in path.read_bytes() for path in operators)


def _flash_attn(machine: Machine, build: TorchBuild) -> Iterator[Result]:
    """flash-attn's wheels say which torch they were built for only in their version: 2.8.3+cu12torch2.8cxx11abiTRUE."""
    version = machine.packages.version("flash-attn")
    said = re.search(r"torch(\d+)\.(\d+)", str(version)) if version else None
    if said is None or (int(said[1]), int(said[2])) == build.release:
        return
    fix = "pip install --no-build-isolation --force-reinstall flash-attn, or pip uninstall flash-attn"
    yield _unloadable("flash-attn", f"{version} was built for torch {said[1]}.{said[2]}", build, fix)


def _unloadable(name: str, why: str, build: TorchBuild, fix: str, reference: str = "") -> Result:
    return error(name, f"{why}, and torch is {build.version}: its operators don't load", fix, reference)


def nccl(machine: Machine) -> Iterator[Result]:
    """NCCL, without which several GPUs can't train: torch's wheels take it from a package of its own."""
    if machine.torch is None or machine.torch.cuda is None:
        return
    named = [one for one in machine.packages.requirements("torch") if one.name.startswith("nvidia-nccl")]
    if not named:
        yield Result(name="NCCL", detail="torch names no NCCL package, so it brings its own")
        return
    for one in named:
        version = machine.packages.version(one.name)
        fix = f'pip install "{one.name}{one.specifier}"'
        if version is None:
            yield error("NCCL", f"{one.name} is not installed", fix)
        elif version not in one.specifier:
            yield warning("NCCL", f"{one.name} {version}; this torch was built with {one.specifier}", fix)
        else:
            yield Result(name="NCCL", detail=f"{version} ({one.name})")


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
