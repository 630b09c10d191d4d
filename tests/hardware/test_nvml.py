"""Hardware that is here, through a made-up NVML."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from made_gpus import Gpu, Look, pairs, several, split_gpus

from unsloth_accel.hardware import cpu_and_memory, nvml
from unsloth_accel.hardware.hardware import Hardware


def test_gpus_are_found_with_their_memory_and_rates(look: Look) -> None:
    found = look([Gpu(name=b"NVIDIA A100-SXM4-80GB", uuid=b"GPU-00")])
    (device,) = found.devices
    assert (device.name, device.memory_gib, device.memory_free_gib) == ("NVIDIA A100-SXM4-80GB", 80, 40)
    assert (device.uuid, device.compute_capability, device.bf16_tflops, device.mig) == ("GPU-00", (8, 0), 312, False)
    assert (found.reason, found.num_machines, found.network_gbs, found.link) == ("NVML", 1, None, None)
    assert found.host_known
    assert found.reasons[0] == "1 of 1 GPUs: NVML."
    assert json.dumps(found.to_dict())


def test_without_nvml_there_is_a_cpu_and_a_reason(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    found = look([], broken="Driver Not Loaded")
    assert (found.devices, found.reason) == ((), "NVML: Driver Not Loaded")
    assert found.cpu_cores >= 1
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "nvidia-ml-py is not installed" in Hardware.detect({}).reason


def test_processes_are_named_where_nvml_shows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def named(pid: int) -> bytes:
        if pid == 8:
            raise RuntimeError("Not Found")
        return b"VLLM::EngineCore"

    computing = [SimpleNamespace(pid=7), SimpleNamespace(pid=8)]
    answers = {
        "NVMLError": RuntimeError,
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetUUID": lambda index: f"GPU-{index}",
        "nvmlDeviceGetComputeRunningProcesses": lambda index: computing if index else [],
        "nvmlSystemGetProcessName": named,
    }
    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(**answers))
    assert nvml.process_names() == {"GPU-0": [], "GPU-1": ["VLLM::EngineCore", ""]}
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvml.process_names() == {}


def test_one_refused_query_loses_only_its_answer(look: Look) -> None:
    bare = Gpu(name="Tesla T4", memory=None, capability=None, uuid="GPU-11", pcie=None)
    found = look([Gpu(uuid="GPU-00"), bare, Gpu(lost=True), Gpu(name=None, memory=24, uuid="GPU-33")])
    assert [device.index for device in found.devices] == [0, 1, 3]
    t4, unknown = found.devices[1:]
    assert (t4.memory_gib, t4.memory_free_gib, t4.compute_capability) == (15, None, (7, 5))
    assert (unknown.name, unknown.memory_gib, unknown.card) == ("unknown GPU", 24, None)
    assert (found.link, found.link_gbs) == ("pcie", None)
    said = "\n".join(found.reasons)
    assert "GPU 1: NVML states no memory; it is the card table's." in said
    assert "GPU 1: NVML states no compute capability; 7.5 is assumed." in said
    assert "GPU 2 is left out" in said


def test_a_gpu_without_memory_of_its_own_has_the_hosts(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_and_memory, "memory_gib", lambda: (128.0, "a test"))
    assert look([Gpu(name="NVIDIA GB10", memory=None, capability=(12, 1))]).devices[0].memory_gib == 128


def test_link_speeds_by_version_of_nvlink(look: Look) -> None:
    """NVIDIA's totals in both directions: P100 160, V100 300, A100 600, H100 900, B200 1800 GB/s."""
    for version, links, total in ((1, 4, 160), (2, 6, 300), (4, 12, 600), (6, 18, 900), (7, 18, 1800)):
        found = look(several(2, nvlinks=links, nvlink_version=version), pairs((0, 1)))
        assert found.link_gbs == total / 2
    from_table = look(several(2, nvlinks=12, nvlink_version=None), pairs((0, 1)))
    assert from_table.link_gbs == 300
    unknown = look(several(2, name="GPU", nvlinks=12, nvlink_version=99), pairs((0, 1)))
    assert (unknown.link, unknown.link_gbs) == ("nvlink", None)


def test_links_are_followed_where_p2p_status_is_not_supported(look: Look) -> None:
    def at(bus: str, *remotes: str) -> Gpu:
        return Gpu(uuid=f"GPU-{bus}", bus=bus, nvlinks=len(remotes), remotes=remotes)

    assert look([at("a", "b"), at("b", "a")], None).link == "nvlink"
    assert look([at("a", "switch"), at("b", "switch")], None).link == "nvlink"
    assert look([at("a", "c"), at("b", "d")], None).link == "pcie"
    assert look(several(2, nvlinks=2), None).link == "pcie"


def test_an_instance_has_its_own_memory_and_its_gpus_capability(look: Look) -> None:
    found = look(split_gpus())
    (device,) = found.devices
    assert (device.mig, device.parent, device.index, device.instance) == (True, "GPU-11", 1, (1, 0))
    assert (device.memory_gib, device.memory_free_gib, device.compute_capability) == (39.5, 19.75, (8, 0))
    # The table's rates are those of whole cards.
    assert (device.bf16_tflops, device.has_bf16, found.link) == (None, True, None)
    assert replace(device, name="NVIDIA A100-SXM4-80GB").card is None
    said = "\n".join(found.reasons)
    assert "a CUDA process uses only one, so 2 more visible devices are left for other runs." in said
    assert "GPU 2 is left out: it is in MIG mode without an instance" in said
    assert json.dumps(found.to_dict())
