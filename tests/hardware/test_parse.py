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
