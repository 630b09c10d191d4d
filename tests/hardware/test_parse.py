"""Hardware that is elsewhere: parsed from a text."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unsloth_accel.errors import ConfigError
from unsloth_accel.hardware.gpu_table import CARDS
from unsloth_accel.hardware.hardware import Hardware


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
        ("4090x2", 1, 2, "RTX 4090-24GB"),
        ("2x4090", 1, 2, "RTX 4090-24GB"),
        ("2*4090", 1, 2, "RTX 4090-24GB"),
        ("A100 40GB x4", 1, 4, "A100-SXM4-40GB"),
        ("A100-80 x 4", 1, 4, "A100-SXM4-80GB"),
        ("A100-80GB:8", 1, 8, "A100-SXM4-80GB"),
        ("A100 (80GB)", 1, 1, "A100-SXM4-80GB"),
        ("T4 x2", 1, 2, "T4-16GB"),
        ("T4x2", 1, 2, "T4-16GB"),
        ("T4 GPU x2", 1, 2, "T4-16GB"),
        ("H100:8", 1, 8, "H100-SXM-80GB"),
        ("8 H100s", 1, 8, "H100-SXM-80GB"),
        ("8 H100", 1, 8, "H100-SXM-80GB"),
        ("8H100", 1, 8, "H100-SXM-80GB"),
        ("2 4090s", 1, 2, "RTX 4090-24GB"),
        ("4x L40s", 1, 4, "L40S-48GB"),
        ("L40Sx4", 1, 4, "L40S-48GB"),
        ("2x8 H100", 2, 8, "H100-SXM-80GB"),
        ("2 nodes of 8xH100", 2, 8, "H100-SXM-80GB"),
        ("2 machines x 8 H100s", 2, 8, "H100-SXM-80GB"),
        ("2 nodes H100:8", 2, 8, "H100-SXM-80GB"),
        ("3 nodes of T4", 3, 1, "T4-16GB"),
        ("4090, 24GB", 1, 1, "RTX 4090-24GB"),
        ("kaggle", 1, 2, "T4-16GB"),
        ("Kaggle T4 x2", 1, 2, "T4-16GB"),
        ("kaggle P100 PCIe", 1, 1, "P100-PCIe-16GB"),
        ("colab", 1, 1, "T4-16GB"),
        ("Google Colab free", 1, 1, "T4-16GB"),
        ("colab pro+", 1, 1, "T4-16GB"),
        ("Colab L4", 1, 1, "L4-24GB"),
        ("8xH20", 1, 8, "H20-96GB"),
        ("H20 141GB", 1, 1, "H20-141GB"),
        ("8xH800", 1, 8, "H800-SXM-80GB"),
        ("A800", 1, 1, "A800-Active-40GB"),
        ("A800-80GB", 1, 1, "A800-SXM4-80GB"),
        ("L20", 1, 1, "L20-48GB"),
        ("3060", 1, 1, "RTX 3060-12GB"),
        ("3070", 1, 1, "RTX 3070-8GB"),
        ("3080 12 GB", 1, 1, "RTX 3080-12GB"),
        ("3080", 1, 1, "RTX 3080-10GB"),
        ("2x3080 Ti", 1, 2, "RTX 3080 Ti-12GB"),
        ("4070", 1, 1, "RTX 4070-12GB"),
        ("4070 super", 1, 1, "RTX 4070 Super-12GB"),
        ("4070 Ti SUPER", 1, 1, "RTX 4070 Ti Super-16GB"),
        ("4080super", 1, 1, "RTX 4080 Super-16GB"),
        ("RTX4090D", 1, 1, "RTX 4090 D-24GB"),
        ("5060 Ti 16GB", 1, 1, "RTX 5060 Ti-16GB"),
        ("5060 Ti 16", 1, 1, "RTX 5060 Ti-16GB"),
        ("RTX 4000 Ada", 1, 1, "RTX 4000 Ada-20GB"),
        ("2x RTX 5000 Ada Generation", 1, 2, "RTX 5000 Ada-32GB"),
        ("Quadro RTX 8000", 1, 1, "RTX 8000-48GB"),
        ("Titan RTX", 1, 1, "Titan RTX-24GB"),
        ("A4500", 1, 1, "RTX A4500-20GB"),
        ("A2", 1, 1, "A2-16GB"),
        ("GB10", 1, 1, "GB10-128GB"),
        ("2 nodes of DGX Spark", 2, 1, "GB10-128GB"),
        ("RTX 4090 Laptop GPU", 1, 1, "RTX 4090 Laptop-16GB"),
        ("3080 Ti mobile", 1, 1, "RTX 3080 Ti Laptop-16GB"),
        ("A100 MIG 3g.20gb", 1, 1, "A100-SXM4-40GB MIG 3g.20gb"),
        ("A100-80GB 1g.10gb", 1, 1, "A100-SXM4-80GB MIG 1g.10gb"),
        ("MIG 1g.5gb", 1, 1, "A100-SXM4-40GB MIG 1g.5gb"),
        ("H200 MIG 3g.71gb", 1, 1, "H200-SXM-141GB MIG 3g.71gb"),
        ("A30 2g.12gb", 1, 1, "A30-24GB MIG 2g.12gb"),
        ("2x24GB,1008GB/s,165TFLOPS", 1, 2, "24GB,1008GB/s,165TFLOPS"),
        ("24564 MiB, 1.01 TB/s, 165 TFLOPS, sm 8.9", 1, 1, "23.9883GB,1010GB/s,165TFLOPS,sm8.9"),
        ("2x8x141GB,4800GB/s,0.99PFLOPS", 2, 8, "141GB,4800GB/s,990TFLOPS"),
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
        ("80GB", "it says no bandwidth and no rate"),
        ("2080 Ti 22GB", "its own figures: hardware=22GB,616GB/s,53.8TFLOPS,sm75"),
        ("cpu:0", "0 cores can't be planned for"),
        ("H10", "did you mean H100 or"),
        ("RTX409", "did you mean RTX 4090 or"),
        ("8 H10s", "did you mean H100 or"),
        ("H10x4", "did you mean H100 or"),
        ("HGX A100", "did you mean A100 or"),
        ("GB200 NVL72", "did you mean GB200 or"),
        ("two 4090s", "did you mean RTX 4090 or"),
        ("GTX 1080 Ti", "did you mean RTX 3080 Ti or RTX 2080 Ti"),
        ("kaggle TPU", "no card is known as 'TPU'"),
        ("T4 x 100", "100 GPUs in one machine"),
        ("8xH100 x2", "did you mean H100"),
        ("2x4090+2x3090", "plan for one kind: hardware=2x4090 or hardware=2x3090;"),
        ("A100 and 2 T4s", "hardware=A100 or hardware=2 T4s;"),
        ("4090, 3090", "several kinds of GPU in one run can't be planned for"),
        ("2x4090 1x3090", "several kinds of GPU"),
        ("2xT4 + T4", "did you mean T4"),
        ("2 nodes of 2x8xH100", "no card is known as"),
        ("24GB,165TFLOPS", "it says no bandwidth"),
        ("2x1008GB/s", "it says no memory and no rate"),
        ("24GB,0GB/s,165TFLOPS", "its figures are no GPU's"),
        ("2xA100 MIG 3g.20gb", "MIG instances can't train together"),
        ("T4 MIG 1g.5gb", "T4 can't be divided. Fix: hardware=T4-16GB"),
        ("A100 5g.20gb", "has no instance MIG 5g.20gb. Fix: hardware=A100-SXM4-40GB MIG 1g.5gb"),
        ("A100 7g.160gb", "has no instance MIG 7g.160gb"),
        ("H10 1g.10gb", "did you mean H100"),
        ("T4" * 200, "it has 400 characters"),
    ],
)
def test_texts_that_are_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        Hardware.parse(text)
    problem = caught.value.problems[0]
    assert problem.key == "hardware"
    assert problem.value == (text if len(text) <= 200 else f"{text[:40]}…")
    for offered in re.findall(r"hardware=([^;]*?)(?= or hardware=|;|$)", problem.fix):
        assert Hardware.parse(offered).devices, offered


@given(st.text(max_size=30))
def test_any_text_is_understood_or_refused(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert Hardware.parse(text).reasons


def test_a_fix_that_is_offered_works() -> None:
    with pytest.raises(ConfigError) as caught:
        Hardware.parse("2xA100-64GB")
    offered = [words.partition(";")[0] for words in caught.value.problems[0].fix.split("hardware=")[1:]]
    assert [Hardware.parse(text).devices[0].memory_gib for text in offered] == [80, 64]


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


def test_a_card_of_ones_own_has_the_figures_that_are_written() -> None:
    device = Hardware.parse("2x24GB,1008GB/s,165TFLOPS").devices[1]
    assert (device.memory_gib, device.bandwidth_gbs, device.bf16_tflops, device.fp16_tflops) == (24, 1008, 165, 165)
    old = Hardware.parse("11GB,616GB/s,53.8TFLOPS,sm75")
    assert not old.devices[0].has_bf16
    assert (old.devices[0].bf16_tflops, old.devices[0].fp16_tflops) == (None, 53.8)
    assert "bfloat16: assumed" in "\n".join(Hardware.parse("24GB,1008GB/s,165TFLOPS").reasons)
    assert "bfloat16: assumed" not in "\n".join(old.reasons)
    assert Hardware.parse("2x24GB,1008GB/s,165TFLOPS").link_gbs == 32


def test_a_slice_is_one_device_of_unknown_rates() -> None:
    parsed = Hardware.parse("A100 MIG 3g.20gb")
    (device,) = parsed.devices
    assert (device.mig, device.memory_gib, device.compute_capability) == (True, pytest.approx(19), (8, 0))
    assert (device.card, device.bf16_tflops, parsed.link) == (None, None, None)


def test_where_notebooks_run() -> None:
    kaggle = Hardware.parse("kaggle")
    assert (kaggle.cpu_cores, kaggle.host_memory_gib, kaggle.host_known) == (4, 29, False)
    assert "kaggle is taken as 2xT4; it also has P100 PCIe" in "\n".join(kaggle.reasons)
    assert Hardware.parse("kaggle T4 x2").cpu_cores == 16
    assert "it also has L4 and A100: write colab L4 or colab A100 then." in Hardware.parse("colab").reasons[0]


def test_a_cpu_is_hardware_too() -> None:
    assert Hardware.parse("CPU : 16").cpu_cores == Hardware.parse("cpu 16").cpu_cores == 16
    parsed = Hardware.parse("cpu")
    assert (parsed.devices, parsed.cpu_cores, parsed.host_memory_gib, parsed.host_known) == ((), 8, 32, False)
    assert str(parsed) == "CPU, 8 cores, 32 GiB (hardware=cpu)"


def test_parsing_is_light() -> None:
    code = (
        "import sys, time; start = time.process_time()\n"
        "from unsloth_accel.hardware.hardware import Hardware; Hardware.parse('2x8xH100-80GB')\n"
        "took = time.process_time() - start\n"
        "heavy = {'torch', 'unsloth', 'accelerate', 'transformers', 'numpy', 'pynvml'} & set(sys.modules)\n"
        "print(heavy or 'light', took < 2)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["light", "True"]
