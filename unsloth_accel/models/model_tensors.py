"""Tensors of a model: their names, shapes and parts, and their bytes in 4 bit."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from .build_without_weights import ROUTERS
from .counted import Part

BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_TOWERS = re.compile(r"vision|visual|audio|speech|image")
"""Names of towers, in a checkpoint that can't be counted otherwise."""


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One parameter, with its logical shape even where the checkpoint stores it quantized."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """Torch's name, such as bfloat16: the checkpoint's, or config.json's where none was read or it is quantized."""
    part: Part

    @property
    def numel(self) -> int:
        return prod(self.shape)


class Linear(NamedTuple):
    """The weight of one nn.Linear."""

    name: str
    """Name of the module, without `.weight`."""
    out_features: int
    in_features: int


def tensor_of(name: str, shape: tuple[int, ...], dtype: str, part: Part | None = None) -> Tensor:
    return Tensor(name=name, shape=shape, dtype=dtype, part=part or _part(name, shape))


def _part(name: str, shape: tuple[int, ...]) -> Part:
    """Return the part that a parameter is of, by its name in transformers' models of the families known here."""
    if _TOWERS.search(name):
        return "tower"
    if ".experts." in name:
        return "experts"
    if len(shape) == 2 and BLOCK.search(name) and name.endswith(".weight") and name.split(".")[-2] not in ROUTERS:
        return "linear"
    if name.endswith("embed_tokens.weight"):
        return "embeddings"
    return "head" if name.startswith("lm_head.") else "other"


def is_kept(module: str, patterns: Iterable[str]) -> bool:
    """Return whether bitsandbytes leaves `module` alone (transformers, quantizers_utils.py:
    `should_convert_module`)."""
    return any(module.endswith(pattern) or _matches(pattern, module) for pattern in patterns)


def _matches(pattern: str, module: str) -> bool:
    try:
        return re.match(pattern, module) is not None
    except re.error:
        return False


def nf4_bytes(numel: int) -> int:
    """Bytes of a weight of `numel` elements in bitsandbytes' NF4 with double quantization, its state included.

    With blocks = ceil(numel / 64): ceil(numel / 2) for the values, two to a byte, blocks uint8 for absmax,
    ceil(blocks / 256) float32 for the absmax of absmax, and of each weight's own 16 float32 for the NF4 code, 256
    float32 for the code of absmax and one float32 offset. Source: bitsandbytes 0.50.2, functional.py, `quantize_4bit`
    and `quantize_blockwise` (the code is copied into every state).
    """
    blocks = -(-numel // 64)
    return -(-numel // 2) + blocks + 4 * -(-blocks // 256) + 4 * (16 + 256 + 1)
