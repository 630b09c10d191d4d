"""Machine: everything that the checks look at, read once, without torch and without a CUDA context."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ..errors import first_line
from ..hardware.hardware import Hardware
from ..hardware.nvml import as_text, ask, opened

if TYPE_CHECKING:
    from packaging.requirements import Requirement
    from packaging.version import Version

Link = Literal["NVLink", "PCIe", "host memory", "unknown"]
"""Link of two GPUs: directly over NVLink or PCIe, or only through host memory."""

Read = TypeVar("Read")
SOURCE = Path(__file__).resolve().parents[2] / "setup.cfg"
"""This package's own bounds, in a source checkout."""


class Packages:
    """The installed packages, as their metadata says; nothing is imported."""

    def __init__(self, path: Sequence[str] | None = None, own: Path = SOURCE) -> None:
        self.search_path = path
        """Search path as given; None for that of this process."""
        self._path = list(sys.path if path is None else path)
        self._own = own

    def distribution(self, name: str) -> metadata.Distribution | None:
        return next(iter(metadata.distributions(name=name, path=self._path)), None)

    def version(self, name: str) -> Version | None:
        from packaging.version import Version

        found = self.distribution(name)
        return Version(found.version) if found else None

    def requirements(self, name: str, extra: str = "") -> list[Requirement]:
        """Return what `name` requires here: markers that don't apply are left out, and extras but `extra`."""
        from packaging.requirements import Requirement

        found = self.distribution(name)
        lines = [*(found.requires or [])] if found else []
        if name == "unsloth_accel" and self._own.is_file():
            lines = _setup_cfg_requirements(self._own)
        every = [Requirement(line) for line in lines]
        return [one for one in every if one.marker is None or one.marker.evaluate({"extra": extra})]

    def requires_python(self, name: str) -> str:
        found = self.distribution(name)
        return (found.metadata["Requires-Python"] or "") if found else ""

    def file(self, name: str, path: str) -> Path | None:
        """A file that package `name` installed, by its path beside the packages; None when it is not there."""
        found = self.distribution(name)
        if found is None:
            return None
        place = Path(str(found.locate_file(path)))
        return place if place.is_file() else None

    def text(self, name: str, path: str) -> str:
        """The text of an installed file; empty when it is not there."""
        place = self.file(name, path)
        return place.read_text(encoding="utf-8") if place else ""


def _setup_cfg_requirements(path: Path) -> list[str]:
    """The requirements in a setup.cfg, those of extras with the marker that built metadata gives them."""
    import configparser

    config = configparser.ConfigParser(interpolation=None)
    config.read(path, encoding="utf-8")
    if config.get("metadata", "name", fallback="") != "unsloth_accel":
        return []
    lines = config.get("options", "install_requires", fallback="").split("\n")
    for extra, listed in config.items("options.extras_require"):
        lines += [f'{line}; extra == "{extra}"' for line in listed.split("\n") if line]
    return [line for line in lines if line]


@dataclass(frozen=True, kw_only=True)
class TorchBuild:
    """Build of torch, read from torch/version.py."""

    version: Version
    cuda: tuple[int, int] | None = None
    other: str = ""
    """`rocm` or `xpu`, for builds for other accelerators."""

    @property
    def release(self) -> tuple[int, int]:
        return self.version.major, self.version.minor


def torch_build(packages: Packages) -> TorchBuild | None:
    """The installed torch; None when there is none."""
    import re

    from packaging.version import Version

    installed = packages.version("torch")
    if installed is None:
        return None
    text = packages.text("torch", "torch/version.py")
    said = dict(re.findall(r"^(__version__|cuda|hip|xpu)\b[^=\n]*=\s*['\"]([^'\"]+)['\"]", text, re.MULTILINE))
    cuda = tuple(int(part) for part in said["cuda"].split(".")[:2]) if "cuda" in said else None
    return TorchBuild(
        version=Version(said.get("__version__", str(installed))),
        cuda=(cuda[0], cuda[1] if len(cuda) > 1 else 0) if cuda else None,
        other="rocm" if "hip" in said else "xpu" if "xpu" in said else "",
    )


@dataclass(frozen=True, kw_only=True)
class Nvml:
    """Answers of the driver about this machine's GPUs, beyond what `Hardware` holds; GPUs are named by UUID."""

    driver: str = ""
    driver_cuda: tuple[int, int] | None = None
    """Newest CUDA that the driver runs."""
    uuids: tuple[str, ...] = ()
    """UUIDs of all GPUs of the machine, visible or not, in PCI order."""
    processes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Ids of the processes that compute on each GPU; a container may hide them."""
    links: Mapping[frozenset[str], Link] = field(default_factory=dict)
    """Links of each pair of GPUs."""
    reason: str = ""
    """Reason why nothing could be read; empty when it could."""


def read_nvml() -> Nvml:
    """Ask the driver; a machine without one gives an `Nvml` with only a reason."""
    answers = opened(_answers)
    return Nvml(reason=answers) if isinstance(answers, str) else answers


def _answers(pynvml: Any) -> Nvml:
    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    uuids = [as_text(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles]
    by_uuid = list(zip(uuids, handles, strict=True))
    cuda = ask(pynvml, "nvmlSystemGetCudaDriverVersion_v2")  # 1000 × major + 10 × minor
    return Nvml(
        driver=as_text(ask(pynvml, "nvmlSystemGetDriverVersion")),
        driver_cuda=(cuda // 1000, cuda % 1000 // 10) if cuda else None,
        uuids=tuple(uuids),
        processes={uuid: _processes(pynvml, handle) for uuid, handle in by_uuid},
        links={frozenset((a, b)): _link(pynvml, one, two) for (a, one), (b, two) in combinations(by_uuid, 2)},
    )


def _processes(pynvml: Any, handle: Any) -> tuple[int, ...]:
    return tuple(process.pid for process in ask(pynvml, "nvmlDeviceGetComputeRunningProcesses", handle) or ())


P2P_READ = 0
"""NVML_P2P_CAPS_INDEX_READ of nvml.h; nvidia-ml-py 13.615 has a tuple under that name, which NVML doesn't take."""


def _link(pynvml: Any, one: Any, other: Any) -> Link:
    """NVML tells of each way whether it works between two GPUs; NVLink through a switch counts as NVLink."""
    nvlink = ask(pynvml, "nvmlDeviceGetP2PStatus", one, other, pynvml.NVML_P2P_CAPS_INDEX_NVLINK)
    pcie = ask(pynvml, "nvmlDeviceGetP2PStatus", one, other, P2P_READ)
    if nvlink == pynvml.NVML_P2P_STATUS_OK:
        return "NVLink"
    if pcie == pynvml.NVML_P2P_STATUS_OK:
        return "PCIe"
    return "unknown" if pcie is None else "host memory"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Facts that the checks look at; tests make their own."""

    packages: Packages
    torch: TorchBuild | None
    hardware: Hardware
    nvml: Nvml
    environ: Mapping[str, str]
    python: str
    system: str
    architecture: str
    faults: tuple[str, ...] = ()
    """Parts that could not be read at all; their fields then say that nothing is there."""

    @property
    def without_gpu(self) -> bool:
        """Whether the driver knows no GPU, or every one is hidden from this process."""
        return not self.hardware.devices


def this_machine() -> Machine:
    """Read this machine; never raises."""
    packages = Packages()
    faults: list[str] = []

    def read(what: str, reader: Callable[[], Read], otherwise: Read) -> Read:
        try:
            return reader()
        except Exception as error:
            faults.append(f"{what}: {type(error).__name__}: {first_line(error)}")
            return otherwise

    unread = Hardware(cpu_cores=1, host_memory_gib=0, reason="they could not be read")
    return Machine(
        packages=packages,
        torch=read("torch's build", lambda: torch_build(packages), None),
        hardware=read("GPUs", Hardware.detect, unread),
        nvml=read("NVML", read_nvml, Nvml(reason="it could not be read")),
        environ=dict(os.environ),
        python=platform.python_version(),
        system=platform.system(),
        architecture=platform.machine(),
        faults=tuple(faults),
    )
