"""GPU cards: memory, rates and links of hardware that needs not be present, each row with its source.

How the numbers are to be read:

- `tflops` is dense (datasheets print twice as much, with sparsity) and accumulates in fp32, as training does. GeForce
  cards halve their tensor rate for that, so their advertised fp16 figure is higher. It holds for fp16 and, from compute
  capability 8.0, for bf16. The P100 has no tensor cores: its rate is that of plain fp16.
- `derived` rows: the rate is computed from what the source does print. GeForce: CUDA cores × boost clock × 4
  operations, the whitepapers' ratio for the same generation; GeForce of laptops: at the highest boost clock, which a
  laptop's cooling may not hold; RTX PRO 6000 and RTX 4000 Ada: four times the fp32 rate, which is not halved; RTX 4500,
  5000 and 6000 Ada: a quarter of the sparse fp8 rate; GB10: an eighth of its sparse fp4 rate.
- H20, H800, A800 and L20 were made for China, and NVIDIA publishes no data sheet of them: what others who own them list
  is taken. H800 and A800 are H100 and A100 with fewer NVLinks.
- `memory_mib` is what NVML and nvidia-smi report as total with the card's usual ECC setting, and what a run can get at
  most; `memory_gb` is the size in the card's name. GDDR cards with ECC on (T4, A10, L4, L40S) lose a sixteenth to it.
  NVML reports none for GB10, which shares the host's: it is what CUDA does.
- `nvlink_gbs` is GB/s per GPU, both directions together, as NVIDIA states it.

Compute capabilities: https://developer.nvidia.com/cuda-gpus and https://developer.nvidia.com/cuda-legacy-gpus.
"""

from __future__ import annotations

import difflib
import re
from functools import lru_cache

from .card import Card
from .own_card import described

_NVIDIA = "https://www.nvidia.com"
_PDF = f"{_NVIDIA}/content/dam/en-zz/Solutions"
_PASCAL = "https://images.nvidia.com/content/pdf/tesla/whitepaper/pascal-architecture-whitepaper.pdf"
_P100_PCIE = "https://images.nvidia.com/content/tesla/pdf/nvidia-tesla-p100-PCIe-datasheet.pdf"
_V100 = "https://images.nvidia.com/content/technologies/volta/pdf/volta-v100-datasheet-update-us-1165301-r5.pdf"
_TURING = (
    "https://images.nvidia.com/aem-dam/en-zz/Solutions/design-visualization/technologies/"
    "turing-architecture/NVIDIA-Turing-Architecture-Whitepaper.pdf"
)
_A100 = f"{_PDF}/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf"
_A30 = f"{_PDF}/data-center/products/a30-gpu/pdf/a30-datasheet.pdf"
_A10 = f"{_PDF}/Data-Center/a10/pdf/a10-datasheet.pdf"
_A10G = "https://d1.awsstatic.com/product-marketing/ec2/NVIDIA_AWS_A10G_DataSheet_FINAL_02_17_2022.pdf"
_A16 = "https://images.nvidia.com/content/Solutions/data-center/vgpu-a16-datasheet.pdf"
_GA102 = f"{_NVIDIA}/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf"
_ADA = "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"
_RTX_BLACKWELL = (
    "https://images.nvidia.com/aem-dam/Solutions/geforce/blackwell/nvidia-rtx-blackwell-gpu-architecture.pdf"
)
_RTX_PRO = f"{_PDF}/design-visualization/quadro-product-literature/NVIDIA-RTX-Blackwell-PRO-GPU-Architecture-v1.0.pdf"
_RTX_3060 = f"{_NVIDIA}/en-us/geforce/graphics-cards/30-series/rtx-3060-3060ti/"
_RTX_3070 = f"{_NVIDIA}/en-us/geforce/graphics-cards/30-series/rtx-3070-3070ti/"
_RTX_3080 = f"{_NVIDIA}/en-us/geforce/graphics-cards/30-series/rtx-3080-3080ti/"
_RTX_4060 = f"{_NVIDIA}/en-us/geforce/graphics-cards/40-series/rtx-4060-4060ti/"
_RTX_4070 = f"{_NVIDIA}/en-us/geforce/graphics-cards/40-series/rtx-4070-4070ti/"
_RTX_4070_SUPER = f"{_NVIDIA}/en-us/geforce/graphics-cards/40-series/rtx-4070-family/"
_RTX_4080_SUPER = f"{_NVIDIA}/en-us/geforce/graphics-cards/40-series/rtx-4080-family/"
_RTX_5060 = f"{_NVIDIA}/en-us/geforce/graphics-cards/50-series/rtx-5060-family/"
_RTX_5050 = f"{_NVIDIA}/en-us/geforce/graphics-cards/50-series/rtx-5050/"
_FOR_CHINA = "https://www.nvidia.cn/geforce/graphics-cards"
_LAPTOPS = f"{_NVIDIA}/en-us/geforce/laptops/compare/"
_RTX_8000 = f"{_PDF}/design-visualization/quadro-product-literature/quadro-rtx-8000-us-nvidia-946977-r1-web.pdf"
_TITAN_RTX = f"{_NVIDIA}/en-us/deep-learning-ai/products/titan-rtx/"
_A2 = f"{_NVIDIA}/content/dam/en-zz/solutions/data-center/a2/pdf/a2-datasheet.pdf"
_NO_DATA_SHEET = "https://github.com/citsjtu2020/LLM-Prof/blob/main/hardware_spec.md"
_WORKSTATION = f"{_NVIDIA}/en-us/products/workstations"
_DATA_CENTER = f"{_NVIDIA}/en-us/data-center"


# fmt: off
# model, variant, GB, MiB, TFLOP/s, memory GB/s, capability, NVLink GB/s, PCIe (generation, lanes), source
CARDS: tuple[Card, ...] = (
    Card("P100", "SXM2", 16, 16384, 21.2, 732, (6, 0), 160, (3, 16), _PASCAL, ("P100 SXM",)),
    Card("P100", "PCIe", 16, 16384, 18.7, 732, (6, 0), 0, (3, 16), _P100_PCIE),
    Card("V100", "SXM2", 16, 16384, 125, 900, (7, 0), 300, (3, 16), _V100, ("V100 SXM",)),
    Card("V100", "SXM2", 32, 32768, 125, 900, (7, 0), 300, (3, 16), _V100, ("V100 SXM", "V100 SXM3")),
    Card("V100", "PCIe", 16, 16384, 112, 900, (7, 0), 0, (3, 16), _V100),
    Card("V100", "PCIe", 32, 32768, 112, 900, (7, 0), 0, (3, 16), _V100),
    Card("T4", "", 16, 15360, 65, 320, (7, 5), 0, (3, 16), _ADA),
    Card("V100S", "PCIe", 32, 32768, 130, 1134, (7, 0), 0, (3, 16), _V100),
    Card("RTX 2080 Ti", "", 11, 11264, 53.8, 616, (7, 5), 100, (3, 16), _TURING, bridge=True),
    Card("RTX 8000", "", 48, 49152, 130.5, 672, (7, 5), 100, (3, 16), _RTX_8000, ("Quadro RTX 8000",), bridge=True),
    Card("Titan RTX", "", 24, 24576, 130.5, 672, (7, 5), 100, (3, 16), _TITAN_RTX, bridge=True),
    Card("A100", "SXM4", 40, 40960, 312, 1555, (8, 0), 600, (4, 16), _A100, ("A100 SXM",)),
    Card("A100", "SXM4", 80, 81920, 312, 2039, (8, 0), 600, (4, 16), _A100, ("A100 SXM",)),
    Card("A100", "PCIe", 40, 40960, 312, 1555, (8, 0), 600, (4, 16), _A100, bridge=True),
    Card("A100", "PCIe", 80, 81920, 312, 1935, (8, 0), 600, (4, 16), _A100, bridge=True),
    Card("A800", "SXM4", 80, 81920, 312, 2039, (8, 0), 400, (4, 16), _NO_DATA_SHEET, ("A800 SXM",)),
    Card("A800", "PCIe", 80, 81920, 312, 1935, (8, 0), 400, (4, 16), _A100, bridge=True),
    Card("A800", "Active", 40, 40960, 312, 1555, (8, 0), 400, (4, 16), f"{_WORKSTATION}/a800/", bridge=True),
    Card("A30", "", 24, 24576, 165, 933, (8, 0), 200, (4, 16), _A30, bridge=True),
    Card("A2", "", 16, 15356, 18, 200, (8, 6), 0, (4, 8), _A2),
    Card("A10", "", 24, 23028, 125, 600, (8, 6), 0, (4, 16), _A10),
    Card("A10G", "", 24, 23028, 70, 600, (8, 6), 0, (4, 16), _A10G),
    # One of the four GPUs of the board.
    Card("A16", "", 16, 15356, 17.9, 200, (8, 6), 0, (4, 16), _A16),
    Card("A40", "", 48, 46068, 149.7, 696, (8, 6), 112.5, (4, 16), _GA102, bridge=True),
    Card("RTX A4000", "", 16, 16376, 76.7, 448, (8, 6), 0, (4, 16), f"{_WORKSTATION}/rtx-a4000/"),
    Card("RTX A4500", "", 20, 20470, 94.6, 640, (8, 6), 112.5, (4, 16), f"{_WORKSTATION}/rtx-a4500/", bridge=True),
    Card("RTX A5000", "", 24, 24564, 111.1, 768, (8, 6), 112.5, (4, 16),
         f"{_WORKSTATION}/rtx-a5000/", bridge=True),
    Card("RTX A6000", "", 48, 49140, 154.8, 768, (8, 6), 112.5, (4, 16), _GA102, bridge=True),
    Card("RTX 3060", "", 12, 12288, 25.5, 360, (8, 6), 0, (4, 16), _RTX_3060, derived=True),
    Card("RTX 3060 Ti", "", 8, 8192, 32.4, 448, (8, 6), 0, (4, 16), _RTX_3060, derived=True),
    Card("RTX 3070", "", 8, 8192, 40.6, 448, (8, 6), 0, (4, 16), _GA102),
    Card("RTX 3070 Ti", "", 8, 8192, 43.5, 608, (8, 6), 0, (4, 16), _RTX_3070, derived=True),
    Card("RTX 3080", "", 10, 10240, 59.5, 760, (8, 6), 0, (4, 16), _GA102),
    Card("RTX 3080", "", 12, 12288, 61.3, 912, (8, 6), 0, (4, 16), _RTX_3080, derived=True),
    Card("RTX 3080 Ti", "", 12, 12288, 68.2, 912, (8, 6), 0, (4, 16), _RTX_3080, derived=True),
    Card("RTX 3090", "", 24, 24576, 71, 936, (8, 6), 112.5, (4, 16), _GA102, bridge=True),
    Card("RTX 3090 Ti", "", 24, 24564, 80, 1008, (8, 6), 112.5, (4, 16), _ADA, bridge=True),
    Card("RTX 4060", "", 8, 8188, 30.2, 272, (8, 9), 0, (4, 8), _RTX_4060, derived=True),
    Card("RTX 4060 Ti", "", 8, 8188, 44.1, 288, (8, 9), 0, (4, 8), _RTX_4060, derived=True),
    Card("RTX 4060 Ti", "", 16, 16380, 44.1, 288, (8, 9), 0, (4, 8), _RTX_4060, derived=True),
    Card("RTX 4070", "", 12, 12282, 58.3, 504, (8, 9), 0, (4, 16), _RTX_BLACKWELL),
    Card("RTX 4070 Super", "", 12, 12282, 71, 504, (8, 9), 0, (4, 16), _RTX_4070_SUPER, derived=True),
    Card("RTX 4070 Ti", "", 12, 12282, 80.2, 504, (8, 9), 0, (4, 16), _RTX_4070, derived=True),
    Card("RTX 4070 Ti Super", "", 16, 16376, 88.2, 672, (8, 9), 0, (4, 16), _RTX_4070_SUPER, derived=True),
    Card("RTX 4080", "", 16, 16376, 97.5, 716.8, (8, 9), 0, (4, 16), _ADA),
    Card("RTX 4080 Super", "", 16, 16376, 104.4, 736, (8, 9), 0, (4, 16), _RTX_4080_SUPER, derived=True),
    Card("RTX 4090", "", 24, 24564, 165.2, 1008, (8, 9), 0, (4, 16), _ADA),
    Card("RTX 4090 D", "", 24, 24564, 147.1, 1008, (8, 9), 0, (4, 16), f"{_FOR_CHINA}/40-series/rtx-4090-d/",
         derived=True),
    Card("RTX 4000 Ada", "", 20, 20475, 106.9, 360, (8, 9), 0, (4, 16), f"{_WORKSTATION}/rtx-4000/", derived=True),
    Card("RTX 4500 Ada", "", 24, 24570, 158.5, 432, (8, 9), 0, (4, 16), f"{_WORKSTATION}/rtx-4500/", derived=True),
    Card("RTX 5000 Ada", "", 32, 32760, 261.1, 576, (8, 9), 0, (4, 16), f"{_WORKSTATION}/rtx-5000/", derived=True),
    Card("RTX 6000 Ada", "", 48, 49140, 364.2, 960, (8, 9), 0, (4, 16), f"{_WORKSTATION}/rtx-6000/",
         derived=True),
    Card("L4", "", 24, 23034, 121, 300, (8, 9), 0, (4, 16), f"{_DATA_CENTER}/l4/"),
    Card("L20", "", 48, 46068, 119.5, 864, (8, 9), 0, (4, 16), _NO_DATA_SHEET),
    Card("L40", "", 48, 46068, 181, 864, (8, 9), 0, (4, 16), f"{_DATA_CENTER}/l40/"),
    Card("L40S", "", 48, 46068, 362, 864, (8, 9), 0, (4, 16), f"{_DATA_CENTER}/l40s/"),
    Card("H100", "SXM", 80, 81559, 989.5, 3350, (9, 0), 900, (5, 16), f"{_DATA_CENTER}/h100/", ("H100 SXM5",)),
    Card("H100", "PCIe", 80, 81559, 756.5, 2000, (9, 0), 600, (5, 16), f"{_DATA_CENTER}/h100/", bridge=True),
    Card("H100", "NVL", 94, 95830, 835.5, 3900, (9, 0), 600, (5, 16), f"{_DATA_CENTER}/h100/", bridge=True),
    Card("H800", "SXM", 80, 81559, 989.5, 3350, (9, 0), 400, (5, 16), _NO_DATA_SHEET, ("H800 SXM5",)),
    Card("H800", "PCIe", 80, 81559, 756.5, 2000, (9, 0), 400, (5, 16), f"{_DATA_CENTER}/h100/", bridge=True),
    Card("H20", "", 96, 97871, 148, 4000, (9, 0), 900, (5, 16), _NO_DATA_SHEET, ("H20 SXM",)),
    Card("H20", "", 141, 143771, 148, 4800, (9, 0), 900, (5, 16), _NO_DATA_SHEET, ("H20 SXM", "H20-3e")),
    Card("H200", "SXM", 141, 143771, 989.5, 4800, (9, 0), 900, (5, 16), f"{_DATA_CENTER}/h200/", ("H200 SXM5",)),
    Card("H200", "NVL", 141, 143771, 835.5, 4800, (9, 0), 900, (5, 16), f"{_DATA_CENTER}/h200/", bridge=True),
    Card("GH200", "", 96, 97871, 989.5, 4000, (9, 0), 900, (5, 16), f"{_DATA_CENTER}/grace-hopper-superchip/",
         ("GH200 480GB",)),
    Card("B200", "", 180, 183359, 2250, 7700, (10, 0), 1800, (5, 16), f"{_DATA_CENTER}/dgx-b200/", ("B200 SXM",)),
    Card("GB200", "", 186, 189471, 2500, 8000, (10, 0), 1800, (5, 16), f"{_DATA_CENTER}/gb200-nvl72/"),
    Card("B300", "", 288, 275040, 2250, 8000, (10, 3), 1800, (6, 16), f"{_DATA_CENTER}/hgx/",
         ("B300 SXM", "B300 SXM6 AC")),
    Card("GB300", "", 279, 284208, 2500, 8000, (10, 3), 1800, (6, 16), f"{_DATA_CENTER}/gb300-nvl72/"),
    Card("GB10", "", 128, 122500, 125, 273, (12, 1), 0, (5, 16), f"{_WORKSTATION}/dgx-spark/", ("DGX Spark",),
         shared=True, derived=True),
    Card("RTX 5050", "", 8, 8151, 26.3, 320, (12, 0), 0, (5, 8), _RTX_5050, derived=True),
    Card("RTX 5060", "", 8, 8151, 38.4, 448, (12, 0), 0, (5, 8), _RTX_5060, derived=True),
    Card("RTX 5060 Ti", "", 8, 8151, 47.4, 448, (12, 0), 0, (5, 8), _RTX_5060, derived=True),
    Card("RTX 5060 Ti", "", 16, 16311, 47.4, 448, (12, 0), 0, (5, 8), _RTX_5060, derived=True),
    Card("RTX 5070", "", 12, 12227, 61.7, 672, (12, 0), 0, (5, 16), _RTX_BLACKWELL),
    Card("RTX 5070 Ti", "", 16, 16303, 87.9, 896, (12, 0), 0, (5, 16), _RTX_BLACKWELL),
    Card("RTX 5080", "", 16, 16303, 112.6, 960, (12, 0), 0, (5, 16), _RTX_BLACKWELL),
    Card("RTX 5090", "", 32, 32607, 209.5, 1792, (12, 0), 0, (5, 16), _RTX_BLACKWELL),
    Card("RTX 5090 D", "", 32, 32607, 148.4, 1792, (12, 0), 0, (5, 16), f"{_FOR_CHINA}/50-series/rtx-5090-d/",
         derived=True),
    Card("RTX PRO 6000 Blackwell", "Workstation", 96, 97887, 503.8, 1792, (12, 0), 0, (5, 16), _RTX_PRO,
         ("RTX PRO 6000",), derived=True),
    Card("RTX PRO 6000 Blackwell", "Server", 96, 97887, 480, 1597, (12, 0), 0, (5, 16),
         f"{_DATA_CENTER}/rtx-pro-6000-blackwell-server-edition/",
         ("RTX PRO 6000", "RTX PRO 6000 Server"), derived=True),
    Card("RTX PRO 6000 Blackwell", "Max-Q", 96, 97887, 440, 1792, (12, 0), 0, (5, 16), _RTX_PRO,
         ("RTX PRO 6000", "RTX PRO 6000 Max-Q", "RTX PRO 6000 Blackwell Max-Q Workstation"), derived=True),
    # GeForce of laptops.
    Card("RTX 3060 Laptop", "", 6, 6144, 26.2, 336, (8, 6), 0, (4, 16), _LAPTOPS, derived=True),
    Card("RTX 3070 Laptop", "", 8, 8192, 33.2, 448, (8, 6), 0, (4, 16), _LAPTOPS, derived=True),
    Card("RTX 3070 Ti Laptop", "", 8, 8192, 35, 448, (8, 6), 0, (4, 16), _LAPTOPS, derived=True),
    Card("RTX 3080 Laptop", "", 8, 8192, 42, 448, (8, 6), 0, (4, 16), _LAPTOPS, derived=True),
    Card("RTX 3080 Laptop", "", 16, 16384, 42, 448, (8, 6), 0, (4, 16), _LAPTOPS, derived=True),
    Card("RTX 3080 Ti Laptop", "", 16, 16384, 47.2, 512, (8, 6), 0, (4, 16), _LAPTOPS, derived=True),
    Card("RTX 4050 Laptop", "", 6, 6141, 24.3, 192, (8, 9), 0, (4, 8), _LAPTOPS, derived=True),
    Card("RTX 4060 Laptop", "", 8, 8188, 29.1, 256, (8, 9), 0, (4, 8), _LAPTOPS, derived=True),
    Card("RTX 4070 Laptop", "", 8, 8188, 40.1, 256, (8, 9), 0, (4, 8), _LAPTOPS, derived=True),
    Card("RTX 4080 Laptop", "", 12, 12282, 67.7, 432, (8, 9), 0, (4, 16), _LAPTOPS, derived=True),
    Card("RTX 4090 Laptop", "", 16, 16376, 79.4, 576, (8, 9), 0, (4, 16), _LAPTOPS, derived=True),
    Card("RTX 5060 Laptop", "", 8, 8151, 33.2, 384, (12, 0), 0, (5, 8), _LAPTOPS, derived=True),
    Card("RTX 5070 Laptop", "", 8, 8151, 43.3, 384, (12, 0), 0, (5, 8), _LAPTOPS, derived=True),
    Card("RTX 5070 Ti Laptop", "", 12, 12227, 52.3, 672, (12, 0), 0, (5, 8), _LAPTOPS, derived=True),
    Card("RTX 5080 Laptop", "", 16, 16303, 70.3, 896, (12, 0), 0, (5, 16), _LAPTOPS, derived=True),
    Card("RTX 5090 Laptop", "", 24, 24463, 90.7, 896, (12, 0), 0, (5, 16), _LAPTOPS, derived=True),
)
# fmt: on

_MEMORY = re.compile(r"(?<![a-z0-9.])(\d+)\s*g(?:i?b)?(?![a-z0-9])")
_SIZE = re.compile(r"(.*[\s(])(\d{1,3})\)?")
"""A name and a bare number behind it: `A100 80`."""
_NOISE = {"nvidia", "geforce", "tesla", "generation", "edition", "gpu", "gpus", "hbm2", "hbm2e", "hbm3", "hbm3e"}
_SAME = {"mobile": "laptop"}


@lru_cache(maxsize=256)  # a plan asks for the same card a hundred times
def cards_named(text: str) -> tuple[tuple[Card, ...], int | None]:
    """The cards that `text` may mean, whatever their memory, and the GB that it asks for.

    The likeliest comes first: the smallest memory, so that a plan made for it also fits the larger, then SXM before
    PCIe. `text` is a name as users type it or as NVML reports it, or a card's figures (`24GB,1008GB/s,165TFLOPS`); no
    card is the empty tuple.
    """
    if own := described(text):
        return (own,), None
    if exact := _of_key(_key(text)):
        return exact, None
    lowered = re.sub(r"[-_]", " ", text.lower())
    size = _MEMORY.search(lowered)
    named = _of_key(_key(_MEMORY.sub(" ", lowered)))
    if not named and (bare := _SIZE.fullmatch(lowered)):
        of_any_size = _of_key(_key(bare[1]))
        if any(card.memory_gb == int(bare[2]) for card in of_any_size):
            return of_any_size, int(bare[2])
    return named, int(size[1]) if size else None


def _of_key(key: str) -> tuple[Card, ...]:
    return _by_key().get(key, ())


@lru_cache(maxsize=1)
def _by_key() -> dict[str, tuple[Card, ...]]:
    """The cards of each name, smallest memory first."""
    found: dict[str, tuple[Card, ...]] = {}
    for card in sorted(CARDS, key=lambda card: card.memory_gb):
        for key in {_key(alias) for alias in card.aliases}:
            found[key] = (*found.get(key, ()), card)
    return found


def card_of(name: str, memory_gib: float) -> Card | None:
    """The card that NVML calls `name`, with memory nearest to `memory_gib`; None for one that is not in the table."""
    named, _ = cards_named(name)
    return min(named, key=lambda card: abs(card.memory_gib - memory_gib)) if named else None


def similar(text: str, count: int = 3) -> tuple[str, ...]:
    """Models whose name is near to `text`, nearest first: those that it holds as a word, then those alike."""
    cards = _by_key()
    held = [word for word in re.findall(r"[a-z0-9]+", text.lower()) if word in cards]
    close = difflib.get_close_matches(_key(_MEMORY.sub(" ", text.lower())), cards, n=2 * count, cutoff=0.5)
    return tuple(dict.fromkeys(cards[key][0].model for key in [*held, *close]))[:count]


def _key(text: str) -> str:
    words = re.findall(r"[a-z0-9]+", text.lower())
    return "".join(_SAME.get(word, word) for word in words if word not in _NOISE)
