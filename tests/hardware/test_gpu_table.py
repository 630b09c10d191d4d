from __future__ import annotations

import re
from typing import Any

import pytest

from unsloth_accel.hardware.card import pcie_gbs
from unsloth_accel.hardware.gpu_table import CARDS, card_of, cards_named, similar


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
    # NVIDIA publishes no data sheet of the cards that it made for China.
    others = r"|github\.com/citsjtu2020/LLM-Prof" if card.model in ("A800", "H800", "H20", "L20") else ""
    assert re.fullmatch(rf"https://[a-z0-9.]*(nvidia\.com|nvidia\.cn|awsstatic\.com{others})/\S+", card.source)
    # Nominal GB are 2^30 bytes for most cards and 10^9 for B300; GDDR cards lose a sixteenth to ECC.
    assert 0.92 <= card.memory_gib / card.memory_gb <= 1.02
    assert 10 < card.tflops < 3000
    assert 150 < card.bandwidth_gbs < 10_000
    # Operations per byte of memory traffic: a sparse rate, or one with fp16 accumulation, would stand out.
    # GB10 and RTX 5000 Ada are the highest: many cores behind slow memory.
    assert 20 < card.tflops * 1000 / card.bandwidth_gbs < (460 if card.model in ("GB10", "RTX 5000 Ada") else 450)
    assert (6, 0) <= card.capability <= (12, 1)
    assert (card.bf16_tflops is None) == (card.capability < (8, 0))
    assert card.nvlink_gbs in (0, 100, 112.5, 160, 200, 300, 400, 600, 900, 1800)
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
        ("RTX 8000", 4608, 1.77, 16),
        ("Titan RTX", 4608, 1.77, 16),
        ("RTX A4500", 7168, 1.65, 8),
        ("A10", 9216, 1.695, 8),
        ("A40", 10752, 1.74, 8),
        ("RTX A4000", 6144, 1.56, 8),
        ("RTX A5000", 8192, 1.695, 8),
        ("RTX A6000", 10752, 1.8, 8),
        ("RTX 3060", 3584, 1.777, 4),
        ("RTX 3060 Ti", 4864, 1.665, 4),
        ("RTX 3070", 5888, 1.725, 4),
        ("RTX 3070 Ti", 6144, 1.77, 4),
        ("RTX 3080", 8704, 1.71, 4),
        ("RTX 3080-12GB", 8960, 1.71, 4),
        ("RTX 3080 Ti", 10240, 1.665, 4),
        ("RTX 3090", 10496, 1.695, 4),
        ("RTX 3090 Ti", 10752, 1.86, 4),
        ("RTX 4060", 3072, 2.46, 4),
        ("RTX 4060 Ti", 4352, 2.535, 4),
        ("RTX 4070", 5888, 2.475, 4),
        ("RTX 4070 Super", 7168, 2.475, 4),
        ("RTX 4070 Ti", 7680, 2.61, 4),
        ("RTX 4070 Ti Super", 8448, 2.61, 4),
        ("RTX 4080", 9728, 2.505, 4),
        ("RTX 4080 Super", 10240, 2.55, 4),
        ("RTX 4090", 16384, 2.52, 4),
        ("RTX 4090 D", 14592, 2.52, 4),
        ("RTX 4000 Ada", 6144, 2.175, 8),
        ("RTX 4500 Ada", 7680, 2.58, 8),
        ("RTX 5000 Ada", 12800, 2.55, 8),
        ("RTX 6000 Ada", 18176, 2.505, 8),
        ("L4", 7424, 2.04, 8),
        ("L40S", 18176, 2.49, 8),
        ("RTX 5050", 2560, 2.572, 4),
        ("RTX 5060", 3840, 2.497, 4),
        ("RTX 5060 Ti", 4608, 2.572, 4),
        ("RTX 5070", 6144, 2.512, 4),
        ("RTX 5070 Ti", 8960, 2.452, 4),
        ("RTX 5080", 10752, 2.617, 4),
        ("RTX 5090", 21760, 2.407, 4),
        ("RTX PRO 6000 Blackwell", 24064, 2.617, 8),
        ("RTX 3060 Laptop", 3840, 1.703, 4),
        ("RTX 3070 Laptop", 5120, 1.62, 4),
        ("RTX 3070 Ti Laptop", 5888, 1.485, 4),
        ("RTX 3080 Laptop", 6144, 1.71, 4),
        ("RTX 3080 Ti Laptop", 7424, 1.59, 4),
        ("RTX 4050 Laptop", 2560, 2.37, 4),
        ("RTX 4060 Laptop", 3072, 2.37, 4),
        ("RTX 4070 Laptop", 4608, 2.175, 4),
        ("RTX 4080 Laptop", 7424, 2.28, 4),
        ("RTX 4090 Laptop", 9728, 2.04, 4),
        ("RTX 5060 Laptop", 3328, 2.497, 4),
        ("RTX 5070 Laptop", 4608, 2.347, 4),
        ("RTX 5070 Ti Laptop", 5888, 2.22, 4),
        ("RTX 5080 Laptop", 7680, 2.287, 4),
        ("RTX 5090 Laptop", 10496, 2.16, 4),
    ],
)
def test_a_rate_is_cores_times_clock(model: str, cores: int, ghz: float, operations: int) -> None:
    """Operations per core and clock with fp32 accumulation; GeForce does half of them since Ampere."""
    card = next(card for card in CARDS if model in (card.model, card.name))
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
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 15.99, "RTX 4090 Laptop-16GB"),
        ("NVIDIA GeForce RTX 3080", 12, "RTX 3080-12GB"),
        ("NVIDIA GeForce RTX 4090 D", 23.99, "RTX 4090 D-24GB"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 15.99, "RTX 4070 Ti Super-16GB"),
        ("NVIDIA H20", 95.6, "H20-96GB"),
        ("NVIDIA A800-SXM4-80GB", 80, "A800-SXM4-80GB"),
        ("NVIDIA A800 40GB Active", 40, "A800-Active-40GB"),
        ("NVIDIA RTX 5000 Ada Generation", 32, "RTX 5000 Ada-32GB"),
        ("Quadro RTX 8000", 48, "RTX 8000-48GB"),
        ("NVIDIA TITAN RTX", 24, "Titan RTX-24GB"),
        ("NVIDIA GB10", 0, "GB10-128GB"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", 4.75, None),
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


def test_similar_names() -> None:
    assert similar("RTX 4091")[0] == "RTX 4090"
    assert similar("zzz") == ()
    assert cards_named("") == ((), None)
