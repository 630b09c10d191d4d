"""GPUs of a made-up NVML."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

from unsloth_accel.hardware.hardware import Hardware

GIB = 2**30


class NVMLError(Exception):
    """As pynvml's: any query may raise it."""


@dataclass
class Gpu:
    """A handle of the made-up NVML: what isn't given is not supported."""

    name: str | bytes | None = "NVIDIA A100-SXM4-80GB"
    memory: float | None = 80
    capability: tuple[int, int] | None = (8, 0)
    uuid: str | bytes = "GPU-0"
    instances: tuple[Gpu | None, ...] | None = None
    ids: tuple[int, int] | None = None
    nvlinks: int = 0
    nvlink_version: int | None = 4
    remotes: tuple[str, ...] | None = None
    bus: str = "0"
    pcie: tuple[int, int] | None = (4, 16)
    lost: bool = False
    busy: int | None = None


def fake_nvml(gpus: list[Gpu], joined: Iterable[frozenset[int]] | None = (), *, broken: str = "") -> ModuleType:
    """pynvml for `gpus`; `joined` are pairs with NVLink, None where P2P status is not supported."""
    pairs = None if joined is None else set(joined)

    def given(value: Any) -> Any:
        if value is None:
            raise NVMLError("Not Supported")
        return value

    def open_gpu(index: int) -> Gpu:
        return given(None if gpus[index].lost else gpus[index])

    def start() -> None:
        if broken:
            raise NVMLError(broken)

    def memory(gpu: Gpu) -> SimpleNamespace:
        total = int(given(gpu.memory) * GIB)
        return SimpleNamespace(total=total, free=total // 2)

    def p2p(one: Gpu, other: Gpu, index: int) -> int:
        assert index == 2
        return 0 if frozenset({gpus.index(one), gpus.index(other)}) in given(pairs) else 5

    def remote(gpu: Gpu, link: int) -> SimpleNamespace:
        return SimpleNamespace(busId=given(gpu.remotes)[link].encode())

    module = ModuleType("pynvml")
    functions: dict[str, Callable[..., Any]] = {
        "nvmlInit": start,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: len(gpus),
        "nvmlDeviceGetHandleByIndex": open_gpu,
        "nvmlDeviceGetName": lambda gpu: given(gpu.name),
        "nvmlDeviceGetMemoryInfo": memory,
        "nvmlDeviceGetCudaComputeCapability": lambda gpu: given(gpu.capability),
        "nvmlDeviceGetUUID": lambda gpu: gpu.uuid,
        "nvmlDeviceGetUtilizationRates": lambda gpu: SimpleNamespace(gpu=given(gpu.busy)),
        "nvmlDeviceGetMigMode": lambda gpu: given(None if gpu.instances is None else [1, 1]),
        "nvmlDeviceGetMaxMigDeviceCount": lambda gpu: len(gpu.instances or ()),
        "nvmlDeviceGetMigDeviceHandleByIndex": lambda gpu, number: given((gpu.instances or ())[number]),
        "nvmlDeviceGetGpuInstanceId": lambda gpu: given(gpu.ids)[0],
        "nvmlDeviceGetComputeInstanceId": lambda gpu: given(gpu.ids)[1],
        "nvmlDeviceGetNvLinkState": lambda gpu, link: given(1 if link < gpu.nvlinks else None),
        "nvmlDeviceGetNvLinkVersion": lambda gpu, link: given(gpu.nvlink_version),
        "nvmlDeviceGetNvLinkRemotePciInfo": remote,
        "nvmlDeviceGetPciInfo": lambda gpu: SimpleNamespace(busId=gpu.bus),
        "nvmlDeviceGetP2PStatus": p2p,
        "nvmlDeviceGetMaxPcieLinkGeneration": lambda gpu: given(gpu.pcie)[0],
        "nvmlDeviceGetMaxPcieLinkWidth": lambda gpu: given(gpu.pcie)[1],
    }
    constants = {
        "NVMLError": NVMLError,
        "NVML_NVLINK_MAX_LINKS": 18,
        "NVML_DEVICE_MIG_ENABLE": 1,
        "NVML_P2P_CAPS_INDEX_NVLINK": 2,
        "NVML_P2P_STATUS_OK": 0,
    }
    for name, value in {**functions, **constants}.items():
        setattr(module, name, value)
    return module


Look = Callable[..., Hardware]


def several(count: int, **more: Any) -> list[Gpu]:
    return [Gpu(uuid=f"GPU-{i}{i}-abc", bus=str(i), **more) for i in range(count)]


def pairs(*them: tuple[int, int]) -> list[frozenset[int]]:
    return [frozenset(pair) for pair in them]


def split_gpus() -> list[Gpu]:
    """A whole GPU, one with two instances (and a gap between them), and one in MIG mode without instances."""
    instances = (
        Gpu(name="NVIDIA A100-SXM4-80GB MIG 3g.40gb", memory=39.5, capability=None, uuid="MIG-aa", ids=(1, 0)),
        None,
        Gpu(name="NVIDIA A100-SXM4-80GB MIG 1g.10gb", memory=9.5, capability=None, uuid="MIG-bb", ids=(7, 0)),
    )
    return [Gpu(uuid="GPU-00"), Gpu(uuid="GPU-11", instances=instances), Gpu(uuid="GPU-22", instances=())]
