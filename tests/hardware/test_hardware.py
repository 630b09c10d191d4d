"""Hardware that is here (through a made-up NVML and cgroup files) and elsewhere (parsed from a text)."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unsloth_accel.config.run_config import from_dict
from unsloth_accel.errors import ConfigError
from unsloth_accel.hardware import cpu_and_memory
from unsloth_accel.hardware.gpu_table import CARDS, card_of, cards_named, pcie_gbs, similar
from unsloth_accel.hardware.hardware import Device, Hardware, detect
from unsloth_accel.planning.planner import plan

GIB = 2**30


# --- the card table ---------------------------------------------------------------------------------------------------


def test_the_table_is_large_and_each_card_is_one_row() -> None:
    assert len({card.model for card in CARDS}) >= 25
    names = [re.sub(r"[^a-z0-9]", "", card.name.lower()) for card in CARDS]
    assert len(set(names)) == len(names)
    owners: dict[str, str] = {}
    for card in CARDS:
        for alias in card.aliases:
            assert owners.setdefault(alias.lower(), card.model) == card.model


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_a_row_is_plausible(card: Any) -> None:
    assert re.fullmatch(r"https://[a-z0-9.]*(nvidia\.com|awsstatic\.com)/\S+", card.source)
    # Nominal GB are 2^30 bytes for most cards and 10^9 for B300; GDDR cards lose a sixteenth to ECC.
    assert 0.92 <= card.memory_gib / card.memory_gb <= 1.02
    assert 10 < card.tflops < 3000
    assert 150 < card.bandwidth_gbs < 10_000
    # Operations per byte of memory traffic: a sparse rate, or one with fp16 accumulation, would stand out.
    assert 20 < card.tflops * 1000 / card.bandwidth_gbs < 450
    assert (6, 0) <= card.capability <= (12, 1)
    assert (card.bf16_tflops is None) == (card.capability < (8, 0))
    assert card.nvlink_gbs in (0, 100, 112.5, 160, 200, 300, 600, 900, 1800)
    assert card.pcie[0] in (3, 4, 5, 6)
    assert card.pcie[1] in (8, 16)


def test_rates_are_dense_with_fp32_accumulation() -> None:
    """The advertised ones are twice (sparse) or four times (and fp16 accumulation) as high."""
    known = {"A100-SXM4-80GB": 312, "H100-SXM-80GB": 989.5, "RTX 4090-24GB": 165.2, "RTX 5090-32GB": 209.5}
    assert {card.name: card.tflops for card in CARDS if card.name in known} == known


@pytest.mark.parametrize(
    ("model", "cores", "ghz", "operations"),
    [
        ("RTX 2080 Ti", 4352, 1.545, 8),
        ("A10", 9216, 1.695, 8),
        ("A40", 10752, 1.74, 8),
        ("RTX A4000", 6144, 1.56, 8),
        ("RTX A5000", 8192, 1.695, 8),
        ("RTX A6000", 10752, 1.8, 8),
        ("RTX 3060", 3584, 1.777, 4),
        ("RTX 3070", 5888, 1.725, 4),
        ("RTX 3080", 8704, 1.71, 4),
        ("RTX 3090", 10496, 1.695, 4),
        ("RTX 3090 Ti", 10752, 1.86, 4),
        ("RTX 4060", 3072, 2.46, 4),
        ("RTX 4060 Ti", 4352, 2.535, 4),
        ("RTX 4070", 5888, 2.475, 4),
        ("RTX 4070 Ti", 7680, 2.61, 4),
        ("RTX 4080", 9728, 2.505, 4),
        ("RTX 4090", 16384, 2.52, 4),
        ("RTX 6000 Ada", 18176, 2.505, 8),
        ("L4", 7424, 2.04, 8),
        ("L40S", 18176, 2.49, 8),
        ("RTX 5070", 6144, 2.512, 4),
        ("RTX 5070 Ti", 8960, 2.452, 4),
        ("RTX 5080", 10752, 2.617, 4),
        ("RTX 5090", 21760, 2.407, 4),
        ("RTX PRO 6000 Blackwell", 24064, 2.617, 8),
    ],
)
def test_a_rate_is_cores_times_clock(model: str, cores: int, ghz: float, operations: int) -> None:
    """Operations per core and clock with fp32 accumulation; GeForce does half of them since Ampere."""
    card = next(card for card in CARDS if card.model == model)
    assert card.tflops == pytest.approx(cores * ghz * operations / 1000, rel=0.005)


@pytest.mark.parametrize(
    ("reported", "gib", "name"),
    [
        ("Tesla T4", 15, "T4-16GB"),
        ("Tesla V100-SXM2-32GB", 32, "V100-SXM2-32GB"),
        ("NVIDIA A100-SXM4-80GB", 80, "A100-SXM4-80GB"),
        ("NVIDIA A100 80GB PCIe", 80, "A100-PCIe-80GB"),
        ("NVIDIA A100-PCIE-40GB", 40, "A100-PCIe-40GB"),
        ("NVIDIA H100 80GB HBM3", 79.6, "H100-SXM-80GB"),
        ("NVIDIA H100 PCIe", 79.6, "H100-PCIe-80GB"),
        ("NVIDIA H100 NVL", 93.6, "H100-NVL-94GB"),
        ("NVIDIA GH200 480GB", 95.6, "GH200-96GB"),
        ("NVIDIA B300 SXM6 AC", 268.6, "B300-288GB"),
        ("NVIDIA GeForce RTX 4060 Ti", 15.996, "RTX 4060 Ti-16GB"),
        ("NVIDIA GeForce RTX 4060 Ti", 7.996, "RTX 4060 Ti-8GB"),
        ("NVIDIA RTX 6000 Ada Generation", 48, "RTX 6000 Ada-48GB"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 95.6, "RTX PRO 6000 Blackwell-Server-96GB"),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", 95.6, "RTX PRO 6000 Blackwell-Max-Q-96GB"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16, None),
        ("NVIDIA GeForce GTX 1080 Ti", 11, None),
        ("GPU", 80, None),
        ("", 80, None),
    ],
)
def test_a_card_is_known_by_the_name_nvml_reports(reported: str, gib: float, name: str | None) -> None:
    card = card_of(reported, gib)
    assert (card and card.name) == name


def test_pcie_rates() -> None:
    assert [pcie_gbs(generation, 16) for generation in (3, 4, 5, 6)] == [16, 32, 64, 128]
    with pytest.raises(ValueError, match="generation 0"):
        pcie_gbs(0, 16)


# --- hardware elsewhere -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "machines", "count", "name"),
    [
        ("2xT4", 1, 2, "T4-16GB"),
        ("8xH100-80GB", 1, 8, "H100-SXM-80GB"),
        ("4x4090", 1, 4, "RTX 4090-24GB"),
        ("2x8xH100-80GB", 2, 8, "H100-SXM-80GB"),
        ("H100", 1, 1, "H100-SXM-80GB"),
        (" 2 × rtx 4090 ", 1, 2, "RTX 4090-24GB"),
        ("2X8X rtx4090", 2, 8, "RTX 4090-24GB"),
        ("8xNVIDIA A100-SXM4-80GB", 1, 8, "A100-SXM4-80GB"),
        ("4x NVIDIA A100 80GB PCIe", 1, 4, "A100-PCIe-80GB"),
        ("A100", 1, 1, "A100-SXM4-40GB"),
        ("A100 80 GiB", 1, 1, "A100-SXM4-80GB"),
        ("V100-32G", 1, 1, "V100-SXM2-32GB"),
        ("h100-nvl", 1, 1, "H100-NVL-94GB"),
        ("16x2080ti", 1, 16, "RTX 2080 Ti-11GB"),
        ("6000 Ada", 1, 1, "RTX 6000 Ada-48GB"),
        ("NVIDIA GH200 480GB", 1, 1, "GH200-96GB"),
        ("A10G", 1, 1, "A10G-24GB"),
    ],
)
def test_texts_that_are_understood(text: str, machines: int, count: int, name: str) -> None:
    parsed = Hardware.parse(text)
    assert (parsed.num_machines, len(parsed.devices), {d.name for d in parsed.devices}) == (machines, count, {name})
    assert [device.index for device in parsed.devices] == list(range(count))
    assert parsed.reasons
    assert not parsed.host_known
    assert "\n" not in str(parsed)


named = st.sampled_from([(card, alias) for card in CARDS for alias in (*card.aliases, card.name)])


@given(machines=st.integers(1, 4096), count=st.integers(1, 64), named=named, sign=st.sampled_from("xX×"))
def test_every_count_and_name_is_read_back(machines: int, count: int, named: tuple[Any, str], sign: str) -> None:
    card, alias = named
    parsed = Hardware.parse(f"{machines}{sign}{count}{sign}{alias}")
    assert (parsed.num_machines, len(parsed.devices)) == (machines, count)
    device = parsed.devices[0]
    assert device.card is not None
    assert device.card.model == card.model
    if alias == card.name:
        assert device.card == card
        assert (device.memory_gib, device.compute_capability) == (card.memory_gib, card.capability)
        assert (device.bf16_tflops, device.fp16_tflops) == (card.bf16_tflops, card.fp16_tflops)
        assert device.has_bf16 == (device.bf16_tflops is not None)
    again = Hardware.parse(f"{machines}x{count}x{device.name}")
    assert replace(again, reason="", reasons=()) == replace(parsed, reason="", reasons=())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it names no card"),
        ("8x", "it names no card"),
        ("0xT4", "0 GPUs in one machine"),
        ("-1xT4", "-1 GPUs in one machine"),
        ("1.5xT4", "1.5 GPUs"),
        ("1000000xT4", "a whole number from 1 to 64"),
        ("99999999999999999999xT4", "a whole number from 1 to 64"),
        ("5000x8xT4", "5000 machines can't be planned for"),
        ("4090-48GB", "no RTX 4090 has 48 GB; it comes with 24 GB. Fix: hardware=RTX 4090-24GB"),
        ("A100-64GB", "it comes with 40 or 80 GB. Fix: hardware=A100-SXM4-80GB"),
        ("H101", "did you mean H100"),
        ("2xRTX4091", "did you mean RTX 4090"),
        ("Foo", "Fix: one of: P100, V100, T4,"),
        ("2x2x2xT4", "no card is known as '2xT4'"),
        ("80GB", "no card is known as '80GB'"),
        ("cpu:0", "0 cores can't be planned for"),
    ],
)
def test_texts_that_are_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        Hardware.parse(text)
    problem = caught.value.problems[0]
    assert (problem.key, problem.value) == ("hardware", text)
    assert problem.fix


@given(st.text(max_size=30))
def test_any_text_is_understood_or_refused(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert Hardware.parse(text).reasons


def test_a_fix_that_is_offered_works() -> None:
    with pytest.raises(ConfigError) as caught:
        Hardware.parse("2xA100-64GB")
    assert Hardware.parse(caught.value.problems[0].fix.removeprefix("hardware=")).devices


def test_links_of_hardware_elsewhere() -> None:
    def link(text: str) -> tuple[str | None, float | None, float | None]:
        parsed = Hardware.parse(text)
        return parsed.link, parsed.link_gbs, parsed.network_gbs

    assert link("8xH100-SXM") == ("nvlink", 450, None)
    assert link("2x8xA100") == ("nvlink", 300, 12.5)
    assert link("2xT4") == ("pcie", 16, None)
    assert link("2x4060ti") == ("pcie", 16, None)
    assert link("4xH100-PCIe") == ("pcie", 64, None)
    assert link("2xH100") == ("nvlink", 450, None)
    assert link("2x1xT4") == (None, None, 12.5)
    assert any("bridge" in reason for reason in Hardware.parse("2xRTX 3090").reasons)
    assert Hardware.parse("2x8xH100", network_gbs=50).network_gbs == 50


def test_what_is_assumed_is_said() -> None:
    parsed = Hardware.parse("2x4xV100")
    assert (parsed.cpu_cores, parsed.host_memory_gib) == (32, 2 * 4 * 16)
    said = "\n".join(parsed.reasons)
    assert "32 cores per machine: assumed" in said
    assert "128 GiB of host memory per machine: assumed" in said
    assert "V100 is taken as V100-SXM2-16GB; it could also be V100-PCIe-16GB" in said
    assert "12.5 GB/s between machines: assumed" in said
    assert "could also be" not in "\n".join(Hardware.parse("2xT4").reasons)


def test_a_cpu_is_hardware_too() -> None:
    assert Hardware.parse("CPU : 16").cpu_cores == 16
    parsed = Hardware.parse("cpu")
    assert (parsed.devices, parsed.cpu_cores, parsed.host_memory_gib, parsed.host_known) == ((), 8, 32, False)
    assert str(parsed) == "CPU, 8 cores, 32 GiB (hardware=cpu)"


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


def test_similar_names() -> None:
    assert similar("RTX 4091")[0] == "RTX 4090"
    assert similar("zzz") == ()
    assert cards_named("") == ((), None)


def test_parsing_is_light() -> None:
    code = (
        "import sys, time; start = time.perf_counter()\n"
        "from unsloth_accel.hardware.hardware import Hardware; Hardware.parse('2x8xH100-80GB')\n"
        "took = time.perf_counter() - start\n"
        "heavy = {'torch', 'unsloth', 'accelerate', 'transformers', 'numpy', 'pynvml'} & set(sys.modules)\n"
        "print(heavy or 'light', took < 2)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["light", "True"]


# --- this machine's GPUs ----------------------------------------------------------------------------------------------


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


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> Look:
    """Detect on a machine with these GPUs and these variables."""

    def look(gpus: list[Gpu], joined: Any = (), environ: dict[str, str] | None = None, **more: str) -> Hardware:
        monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(gpus, joined, **more))
        return Hardware.detect(environ or {})

    return look


def several(count: int, **more: Any) -> list[Gpu]:
    return [Gpu(uuid=f"GPU-{i}{i}-abc", bus=str(i), **more) for i in range(count)]


def pairs(*them: tuple[int, int]) -> list[frozenset[int]]:
    return [frozenset(pair) for pair in them]


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
    assert "nvidia-ml-py is not installed" in detect({}).reason


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


# --- links ------------------------------------------------------------------------------------------------------------


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


# --- MIG --------------------------------------------------------------------------------------------------------------


def split_gpus() -> list[Gpu]:
    """A whole GPU, one with two instances (and a gap between them), and one in MIG mode without instances."""
    instances = (
        Gpu(name="NVIDIA A100-SXM4-80GB MIG 3g.40gb", memory=39.5, capability=None, uuid="MIG-aa", ids=(1, 0)),
        None,
        Gpu(name="NVIDIA A100-SXM4-80GB MIG 1g.10gb", memory=9.5, capability=None, uuid="MIG-bb", ids=(7, 0)),
    )
    return [Gpu(uuid="GPU-00"), Gpu(uuid="GPU-11", instances=instances), Gpu(uuid="GPU-22", instances=())]


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


def test_a_run_sees_only_its_instance(look: Look, description: dict[str, Any]) -> None:
    """Newer drivers show a process every instance, and the Trainer would use them with DataParallel."""
    decided = plan(from_dict(description), look(split_gpus()))
    assert decided.num_processes == 1
    assert decided.environment["CUDA_VISIBLE_DEVICES"] == "MIG-aa"


# --- cores and memory -------------------------------------------------------------------------------------------------


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, dict[str, str]], None]:
    """A machine of 16 cores and 64 GiB with these cgroup files."""
    monkeypatch.setattr(cpu_and_memory, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(cpu_and_memory, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=64 * GIB))

    def write(own: str, files: dict[str, str]) -> None:
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


def test_without_cgroups_the_machine_is_the_limit(groups: Any) -> None:
    assert cpu_and_memory.cores() == (16, "the CPU affinity of this process")
    assert cpu_and_memory.memory_gib() == (64, "the machine's, from psutil")


@pytest.mark.parametrize(
    ("own", "files", "cores", "memory"),
    [
        ("0::/\n", {"memory.max": "max\n", "cpu.max": "max 100000\n"}, 16, 64),
        ("0::/\n", {"memory.max": str(8 * GIB), "cpu.max": "400000 100000\n"}, 4, 8),
        ("0::/\n", {"memory.max": str(99 * GIB), "cpu.max": "9900000 100000\n"}, 16, 64),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1, 64),
        ("0::/\n", {"cpu.max": "350000 100000\n"}, 3, 64),
        ("0::/job/step\n", {"job/memory.max": str(4 * GIB), "job/step/memory.max": "max"}, 16, 4),
        ("0::/job/step\n", {"job/memory.max": str(4 * GIB), "job/step/memory.max": str(8 * GIB)}, 16, 4),
        ("0::/job/step\n", {"job/memory.max": str(8 * GIB), "job/step/memory.max": str(4 * GIB)}, 16, 4),
        ("0::/job/step\n", {"job/cpu.max": "800000 100000", "job/step/cpu.max": "200000 100000"}, 2, 64),
        (
            "5:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n0::/\n",
            {
                "memory/memory.limit_in_bytes": str(2 * GIB),
                "cpu/docker/x/cpu.cfs_quota_us": "200000",
                "cpu/docker/x/cpu.cfs_period_us": "100000",
            },
            2,
            2,
        ),
        (
            "5:memory:/\n4:cpu,cpuacct:/\n",
            {
                "memory/memory.limit_in_bytes": "9223372036854771712",
                "cpu/cpu.cfs_quota_us": "-1",
                "cpu/cpu.cfs_period_us": "100000",
            },
            16,
            64,
        ),
    ],
)
def test_a_containers_limits_count(groups: Any, own: str, files: dict[str, str], cores: int, memory: float) -> None:
    groups(own, files)
    assert (cpu_and_memory.cores()[0], cpu_and_memory.memory_gib()[0]) == (cores, memory)
    assert ("quota" in cpu_and_memory.cores()[1]) == (cores < 16)
    assert ("limit" in cpu_and_memory.memory_gib()[1]) == (memory < 64)


def test_detection_tells_the_containers_limits(groups: Any, look: Look) -> None:
    groups("0::/\n", {"memory.max": str(8 * GIB), "cpu.max": "400000 100000\n"})
    found = look([])
    assert (found.cpu_cores, found.host_memory_gib) == (4, 8)
    assert "4 cores: the cgroup's CPU quota of 4, below the 16 of the CPU affinity of this process." in found.reasons
    assert "8 GiB of host memory: the cgroup's memory limit, below the machine's 64 GiB." in found.reasons


def test_bfloat16_of_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr(cpu_and_memory, "_CPU_INFO", info)
    assert cpu_and_memory.bf16.__wrapped__() == (False, "there is no /proc/cpuinfo")
    info.write_text("processor: 0\nflags\t\t: fpu avx512f amx_bf16\n")
    assert cpu_and_memory.bf16.__wrapped__() == (True, "amx_bf16")
    info.write_text("processor: 0\nflags\t\t: fpu avx2\n")
    assert not cpu_and_memory.bf16.__wrapped__()[0]
