"""Contents of a safetensors checkpoint, from its headers alone: reads no tensor, needs neither torch nor safetensors.

The format (github.com/huggingface/safetensors, README.md): eight bytes with the little-endian length of the header, a
JSON object of name to dtype, shape and data_offsets, then the tensors' bytes.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ..errors import ConfigError, Problem
from ..files import load_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_HEADER = 100_000_000
"""Most bytes of a header; the safetensors library refuses more (MAX_HEADER_SIZE in safetensors/src/tensor.rs)."""
DTYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E8M0": ("float8_e8m0fnu", 1),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U64": ("uint64", 8),
    "U32": ("uint32", 4),
    "U16": ("uint16", 2),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
"""Torch's name, and the bytes of one element, by the header's dtype."""
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One tensor of a checkpoint, as it is stored, a quantized one in its own form."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """Torch's name, such as bfloat16; the header's own where torch's is not known."""
    bytes: int


def read_checkpoint(directory: Path) -> list[Stored]:
    """The tensors of the checkpoint in `directory`, or none where it has no safetensors weights.

    transformers' order: model.safetensors before the shards of model.safetensors.index.json. Raises `ConfigError`
    where a file is missing, cut short or no safetensors file.
    """
    if (directory / SINGLE).is_file():
        return read_header(directory / SINGLE)
    index = directory / INDEX
    if index.is_file():
        files = _indexed(index)
        missing = [file for file in files if not (directory / file).is_file()]
        if missing:
            consequence = f"{len(missing)} of {len(files)} weight files are missing, the first is {missing[0]}."
            raise ConfigError(Problem(key=str(index), consequence=consequence, fix="finish the download, or copy them"))
        return [tensor for file in files for tensor in read_header(directory / file)]
    if any(_SHARD.fullmatch(path.name) for path in directory.glob("model-*.safetensors")):
        fix = "copy it from the model's source"
        raise ConfigError(Problem(key=str(index), consequence="is missing, so the shards can't be loaded.", fix=fix))
    return []


def read_header(path: Path) -> list[Stored]:
    """The tensors in one safetensors file; raises `ConfigError` where it is none, or is cut short."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if start == b"version ":  # git-lfs.com/spec/v1: a pointer's first line is `version https://git-lfs…`
                raise _bad(path, "is a Git LFS pointer, not the weights.", "git lfs pull")
            if len(start) < 8 or not 2 <= length <= min(MAX_HEADER, size - 8):
                raise _bad(path, f"is not a whole safetensors file: {size} bytes, of which its header says {length}.")
            header = json.loads(file.read(length))
    except OSError as error:
        raise _bad(path, f"can't be read: {error.strerror or error}.", "give a readable file") from None
    except (ValueError, RecursionError):
        raise _bad(path, "is not a safetensors file: its header is not JSON.") from None
    if not isinstance(header, dict):
        raise _bad(path, "is not a safetensors file: its header holds no tensors.")
    header.pop("__metadata__", None)
    tensors = [_tensor(path, name, entry) for name, entry in header.items()]
    end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if end != size:
        raise _bad(path, f"is cut short or damaged: {size} bytes where its header describes {end}.")
    return tensors


def _tensor(path: Path, name: str, entry: Any) -> Stored:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        sound = (
            isinstance(dtype, str)
            and all(type(number) is int and number >= 0 for number in (*shape, begin, end))
            and begin <= end
        )
        known = DTYPES.get(dtype)
    except (TypeError, KeyError, ValueError):
        sound, known = False, None
    if not sound or (known and prod(shape) * known[1] != end - begin):
        raise _bad(path, f"has a damaged header: the entry of {name[:80]!r} makes no sense.")
    return Stored(name=name, shape=shape, dtype=known[0] if known else dtype, bytes=end - begin)


def _indexed(index: Path) -> list[str]:
    """The weight files that an index names, sorted."""
    try:
        files = set(load_json(index)["weight_map"].values())
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        files = set()
    if not files or not all(isinstance(file, str) and Path(file).name == file for file in files):
        raise _bad(index, "has no weight_map of tensors to files.")
    return sorted(files)


def _bad(path: Path, consequence: str, fix: str = "copy the file anew from the model's source") -> ConfigError:
    return ConfigError(Problem(key=str(path), consequence=consequence, fix=fix))
