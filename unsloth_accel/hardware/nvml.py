"""NVML's answers about this machine's GPUs and the links between them, without a CUDA context.

Any query may be unsupported (virtual GPUs, MIG instances, GPUs that share the host's memory): each is asked for itself,
so that one refusal loses only its own answer.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .card import pcie_gbs
from .device import Device
from .gpu_table import card_of

Answers = TypeVar("Answers")
_NVLINK_GBS = {1: 20.0, 2: 25.0, 3: 25.0, 4: 25.0, 5: 25.0, 6: 25.0, 7: 50.0}
"""GB/s per link and direction by `nvmlNvlinkVersion_t` (1.0, 2.0, 2.2, 3.0, 3.1, 4.0, 5.0): NVIDIA states P100 4 × 20,
V100 6 × 25, A100 12 × 25, H100 18 × 25, B200 18 × 50. https://www.nvidia.com/en-us/data-center/nvlink/"""


@dataclass(frozen=True, kw_only=True)
class NvmlAnswers:
    """All GPUs and links that NVML reports, before CUDA_VISIBLE_DEVICES chooses."""

    devices: tuple[Device, ...] = ()
    """GPUs in PCI order; a GPU in MIG mode is represented by its instances."""
    joined: frozenset[tuple[int, int]] = frozenset()
    """Pairs of GPU indices, the lower first, that NVLink joins."""
    nvlink_gbs: Mapping[int, float] = field(default_factory=dict)
    """NVLink bandwidth by GPU index: all its active links, one direction, 10^9 bytes/s."""
    pcie_gbs: Mapping[int, float] = field(default_factory=dict)
    """PCIe bandwidth by GPU index: one direction, 10^9 bytes/s."""
    reason: str
    notes: tuple[str, ...] = ()
    """Sentences on what could not be found out, and what was assumed instead."""


def ask_nvml(host_memory_gib: float) -> NvmlAnswers:
    """Ask NVML; without it, no devices and the reason. GPUs without memory of their own get `host_memory_gib`."""
    answers = opened(lambda pynvml: _machine(pynvml, host_memory_gib))
    return NvmlAnswers(reason=answers) if isinstance(answers, str) else answers


def utilization() -> dict[int, float]:
    """Return the share of NVML's last sample period (at most a second) in which something ran on each GPU, from 0 to
    1, by index; a GPU of which NVML doesn't say it, as one in MIG mode, is left out."""

    def asked(pynvml: Any) -> dict[int, float]:
        rates = {index: ask(pynvml, "nvmlDeviceGetUtilizationRates", one) for index, one in opened_gpus(pynvml)}
        return {index: rate.gpu / 100 for index, rate in rates.items() if rate is not None}

    answers = opened(asked)
    return {} if isinstance(answers, str) else answers


def process_names() -> dict[str, list[str]]:
    """Return the names of the processes that compute on each GPU, by its UUID, as nvidia-smi shows them; a container
    may hide them."""

    def names(pynvml: Any, handle: Any) -> list[str]:
        found = ask(pynvml, "nvmlDeviceGetComputeRunningProcesses", handle) or ()
        return [as_text(ask(pynvml, "nvmlSystemGetProcessName", one.pid)) for one in found]

    def asked(pynvml: Any) -> dict[str, list[str]]:
        return {as_text(ask(pynvml, "nvmlDeviceGetUUID", one)): names(pynvml, one) for _, one in opened_gpus(pynvml)}

    answers = opened(asked)
    return {} if isinstance(answers, str) else answers


def opened_gpus(pynvml: Any) -> Iterator[tuple[int, Any]]:
    """Yield the index and the handle of each GPU that NVML can open."""
    for index in range(pynvml.nvmlDeviceGetCount()):
        if (handle := ask(pynvml, "nvmlDeviceGetHandleByIndex", index)) is not None:
            yield index, handle


def opened(asked: Callable[[Any], Answers]) -> Answers | str:
    """Return what `asked` has of NVML, or in a sentence why nothing can be had."""
    try:
        import pynvml
    except ImportError:
        return "nvidia-ml-py is not installed, so no GPU can be seen"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return f"NVML: {error}"
    try:
        return asked(pynvml)
    except pynvml.NVMLError as error:
        return f"NVML: {error}"
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _machine(pynvml: Any, host_memory_gib: float) -> NvmlAnswers:
    handles: dict[int, Any] = {}
    devices: list[Device] = []
    notes: list[str] = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = ask(pynvml, "nvmlDeviceGetHandleByIndex", index)
        if handle is None:
            notes.append(f"GPU {index} is left out: NVML can't open it.")
            continue
        handles[index] = handle
        whole = _device(pynvml, handle, index, host_memory_gib, notes)
        if not _in_mig_mode(pynvml, handle):
            devices.append(whole)
            continue
        instances = _instances(pynvml, handle, whole)
        if not instances:
            notes.append(f"GPU {index} is left out: it is in MIG mode without an instance, so CUDA can't use it.")
        devices += instances
    found = {index: _links(pynvml, handle) for index, handle in handles.items()}
    return NvmlAnswers(
        devices=tuple(devices),
        joined=frozenset(
            (one, other)
            for one, other in itertools.combinations(sorted(handles), 2)
            if _joined(pynvml, handles[one], handles[other])
        ),
        nvlink_gbs={index: gbs for index, gbs in found.items() if gbs},
        pcie_gbs={index: gbs for index, handle in handles.items() if (gbs := _pcie(pynvml, handle))},
        reason="NVML",
        notes=tuple(notes),
    )


def _device(pynvml: Any, handle: Any, index: int, host_memory_gib: float, notes: list[str]) -> Device:
    name = as_text(ask(pynvml, "nvmlDeviceGetName", handle)) or "unknown GPU"
    memory = ask(pynvml, "nvmlDeviceGetMemoryInfo", handle)
    card = card_of(name, memory.total / 2**30 if memory else 0)
    own = card.memory_gib if card and not card.shared else None
    if memory is None:
        where = "the card table's" if own else "the host's, which GPUs without memory of their own share"
        notes.append(f"GPU {index}: NVML states no memory; it is {where}.")
    capability = ask(pynvml, "nvmlDeviceGetCudaComputeCapability", handle)
    if capability is None:
        capability = card.capability if card else (0, 0)
        notes.append(f"GPU {index}: NVML states no compute capability; {'.'.join(map(str, capability))} is assumed.")
    return Device(
        name=name,
        index=index,
        memory_gib=memory.total / 2**30 if memory else own or host_memory_gib,
        memory_free_gib=memory.free / 2**30 if memory else None,
        compute_capability=(capability[0], capability[1]),
        uuid=as_text(ask(pynvml, "nvmlDeviceGetUUID", handle)),
    )


def _in_mig_mode(pynvml: Any, handle: Any) -> bool:
    modes = ask(pynvml, "nvmlDeviceGetMigMode", handle)
    return modes is not None and modes[0] == pynvml.NVML_DEVICE_MIG_ENABLE


def _instances(pynvml: Any, parent: Any, whole: Device) -> list[Device]:
    """The MIG instances of one GPU, each with its own memory."""
    found = []
    for number in range(ask(pynvml, "nvmlDeviceGetMaxMigDeviceCount", parent) or 0):
        handle = ask(pynvml, "nvmlDeviceGetMigDeviceHandleByIndex", parent, number)
        memory = None if handle is None else ask(pynvml, "nvmlDeviceGetMemoryInfo", handle)
        if memory is None:
            continue
        ids = [ask(pynvml, f"nvmlDeviceGet{kind}InstanceId", handle) for kind in ("Gpu", "Compute")]
        device = Device(
            name=as_text(ask(pynvml, "nvmlDeviceGetName", handle)) or f"{whole.name} MIG",
            index=whole.index,
            memory_gib=memory.total / 2**30,
            memory_free_gib=memory.free / 2**30,
            compute_capability=whole.compute_capability,
            uuid=as_text(ask(pynvml, "nvmlDeviceGetUUID", handle)),
            parent=whole.uuid or f"GPU {whole.index}",
            instance=None if None in ids else (ids[0], ids[1]),
        )
        found.append(device)
    return found


def _links(pynvml: Any, handle: Any) -> float:
    """GB/s of one direction over all active NVLinks of a GPU; 0 when there are none or their version is unknown."""
    versions = [ask(pynvml, "nvmlDeviceGetNvLinkVersion", handle, link) for link in _active(pynvml, handle)]
    return sum(_NVLINK_GBS.get(version, 0.0) for version in versions)


def _active(pynvml: Any, handle: Any) -> list[int]:
    links = range(getattr(pynvml, "NVML_NVLINK_MAX_LINKS", 18))
    return [link for link in links if ask(pynvml, "nvmlDeviceGetNvLinkState", handle, link) == 1]


def _joined(pynvml: Any, one: Any, other: Any) -> bool:
    status = ask(pynvml, "nvmlDeviceGetP2PStatus", one, other, pynvml.NVML_P2P_CAPS_INDEX_NVLINK)
    if status is not None:
        return bool(status == pynvml.NVML_P2P_STATUS_OK)
    # Drivers before P2P status: a link to the other GPU itself, or of both to the same switch.
    ends = [_bus_id(ask(pynvml, "nvmlDeviceGetPciInfo", handle)) for handle in (one, other)]
    remote = [
        {_bus_id(ask(pynvml, "nvmlDeviceGetNvLinkRemotePciInfo", handle, link)) for link in _active(pynvml, handle)}
        for handle in (one, other)
    ]
    return bool((remote[0] & {*remote[1], ends[1]}) - {""})


def _pcie(pynvml: Any, handle: Any) -> float:
    """Return GB/s in one direction at the most that card and slot can do: an idle link reports less than it runs at."""
    generation = ask(pynvml, "nvmlDeviceGetMaxPcieLinkGeneration", handle)
    lanes = ask(pynvml, "nvmlDeviceGetMaxPcieLinkWidth", handle)
    return pcie_gbs(generation, lanes) if generation and lanes else 0.0


def ask(pynvml: Any, query: str, *arguments: Any) -> Any:
    """Return the answer, or None where the driver, the GPU or this nvidia-ml-py has none."""
    function = getattr(pynvml, query, None)
    if function is None:
        return None
    try:
        return function(*arguments)
    except pynvml.NVMLError:
        return None


def _bus_id(info: Any) -> str:
    return as_text(info.busId).lower() if info is not None else ""


def as_text(value: Any) -> str:
    if value is None:
        return ""
    return value.decode() if isinstance(value, bytes) else str(value)
