import sys
import types
from typing import Any

import pytest

from unsloth_accel.doctor.machine import Nvml, read_nvml, this_machine


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
    assert nvml(monkeypatch, nvmlInit=None).reason == "NVML: Not Supported"


def test_this_machine_is_read_whole() -> None:
    assert this_machine().faults == ()
