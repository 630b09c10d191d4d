"""Hardware as a run sees it: which of the GPUs, and what joins them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from made_gpus import GIB, Gpu, Look, pairs, several, split_gpus
from plans import gpus

from unsloth_accel.config.read_run import from_dict
from unsloth_accel.hardware.detect import _visible
from unsloth_accel.hardware.device import Device
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.planning.planner import plan


def test_it_reads_well_and_is_json() -> None:
    parsed = Hardware.parse("2x8xH100-SXM")
    assert str(parsed) == "2 machines of 8 × H100-SXM-80GB, 80 GiB each (hardware=2x8xH100-SXM)"
    values = parsed.to_dict()
    assert json.loads(json.dumps(values)) == values
    assert (values["num_machines"], values["link"], values["devices"][7]["bf16_tflops"]) == (2, "nvlink", 989.5)


def test_unknown_cards_have_no_rates() -> None:
    device = Device(name="GPU", index=0, memory_gib=80, compute_capability=(9, 0))
    assert (device.card, device.bf16_tflops, device.fp16_tflops, device.bandwidth_gbs) == (None, None, None, None)
    assert device.has_bf16


@pytest.mark.parametrize(
    ("chosen", "indices"),
    [
        (None, [0, 1, 2]),
        ("2,0", [2, 0]),
        (" 1 , 2", [1, 2]),
        ("GPU-11-abc,0", [1, 0]),
        ("GPU-2", [2]),
        ("GPU-", []),
        ("0,7,1", [0]),
        ("1,-1,0", [1]),
        ("1,1", [1]),
        ("", []),
        ("-1", []),
        ("MIG-11", []),
        ("NoDevFiles", []),
    ],
)
def test_cuda_visible_devices(look: Look, chosen: str | None, indices: list[int]) -> None:
    found = look(several(3), environ={} if chosen is None else {"CUDA_VISIBLE_DEVICES": chosen})
    assert [device.index for device in found.devices] == indices
    assert found.reasons[0].startswith(f"{len(indices)} of 3 GPUs: NVML")
    assert chosen is None or f"CUDA_VISIBLE_DEVICES={chosen}" in found.reason


def test_different_cards_are_kept_apart_and_their_order_is_doubted(look: Look) -> None:
    gpus = [
        Gpu(name="NVIDIA GeForce RTX 3060", memory=12, capability=(8, 6), uuid="GPU-00"),
        Gpu(name="NVIDIA GeForce RTX 4090", memory=24, capability=(8, 9), uuid="GPU-11"),
    ]
    assert (
        str(look(gpus)) == "1 × NVIDIA GeForce RTX 3060, 12 GiB each + 1 × NVIDIA GeForce RTX 4090, 24 GiB each (NVML)"
    )
    numbered = {"CUDA_VISIBLE_DEVICES": "0"}
    assert "fastest first" in "\n".join(look(gpus, environ=numbered).reasons)
    for environ in ({}, {"CUDA_VISIBLE_DEVICES": "GPU-00"}, {**numbered, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}):
        assert "fastest first" not in "\n".join(look(gpus, environ=environ).reasons)
    assert "fastest first" not in "\n".join(look(several(2), environ=numbered).reasons)


def test_nvlink_counts_where_it_joins_every_visible_pair(look: Look) -> None:
    gpus = several(3, nvlinks=12)
    everyone = pairs((0, 1), (0, 2), (1, 2))
    found = look(gpus, everyone)
    assert (found.link, found.link_gbs) == ("nvlink", 300)
    part = look(gpus, pairs((0, 1)))
    assert (part.link, part.link_gbs) == ("pcie", 32)
    assert "NVLink joins only 1 of 3 pairs" in "\n".join(part.reasons)
    chosen = look(gpus, pairs((0, 1)), {"CUDA_VISIBLE_DEVICES": "1,0"})
    assert (chosen.link, chosen.link_gbs) == ("nvlink", 300)
    assert look(gpus).link == "pcie"
    assert look(gpus, everyone, {"CUDA_VISIBLE_DEVICES": "1"}).link is None


def test_the_slowest_gpu_sets_the_pace(look: Look) -> None:
    gpus = [Gpu(uuid="GPU-00", nvlinks=12), Gpu(uuid="GPU-11", nvlinks=4)]
    assert look(gpus, pairs((0, 1))).link_gbs == 100
    assert look([Gpu(uuid="GPU-00"), Gpu(uuid="GPU-11", pcie=(3, 8))]).link_gbs == 8


@pytest.mark.parametrize(
    ("chosen", "uuid"),
    [
        (None, "MIG-aa"),
        ("MIG-bb", "MIG-bb"),
        ("MIG-bb,MIG-aa", "MIG-bb"),
        ("MIG-GPU-11/7/0", "MIG-bb"),
        ("1", "MIG-aa"),
        ("GPU-11", "MIG-aa"),
        ("0,1", "MIG-aa"),
        ("0", "GPU-00"),
        ("MIG-b", None),
        ("MIG-GPU-11/7/1", None),
        ("2", None),
        ("MIG-", None),
    ],
)
def test_one_mig_instance_is_used(look: Look, chosen: str | None, uuid: str | None) -> None:
    found = look(split_gpus(), environ={} if chosen is None else {"CUDA_VISIBLE_DEVICES": chosen})
    assert [device.uuid for device in found.devices] == ([] if uuid is None else [uuid])


def test_a_run_sees_only_its_instance(look: Look, description: dict[str, Any]) -> None:
    """Newer drivers show a process every instance, and the Trainer would use them with DataParallel."""
    decided = plan(from_dict(description), look(split_gpus()))
    assert decided.num_processes == 1
    assert decided.environment["CUDA_VISIBLE_DEVICES"] == "MIG-aa"


def test_detection_tells_the_containers_limits(groups: Any, look: Look) -> None:
    groups("0::/\n", {"memory.max": str(8 * GIB), "cpu.max": "400000 100000\n"})
    found = look([])
    assert (found.cpu_cores, found.host_memory_gib) == (4, 8)
    assert "4 cores: the cgroup's CPU quota of 4, below the 16 of the CPU affinity of this process." in found.reasons
    assert "8 GiB of host memory: the cgroup's memory limit, below the machine's 64 GiB." in found.reasons


def test_visible_devices_are_chosen_as_cuda_does() -> None:
    found = list(gpus(3).devices)

    def chosen(value: str | None) -> list[int]:
        return [device.index for device in _visible(found, "", value)[0]]

    assert chosen(None) == [0, 1, 2]
    assert chosen("2,0") == [2, 0]
    assert chosen("GPU-11") == [1]
    assert chosen("0,7,1") == [0]
    assert chosen("") == chosen("-1") == chosen("NoDevFiles") == []
