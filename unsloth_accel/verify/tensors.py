"""Tensors of adapters on disk as numpy arrays, and distances between them: comparing needs no torch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


def read_tensors(path: str | Path) -> dict[str, NDArray[Any]]:
    """Return all tensors of a safetensors file, as float32 (float64 stays)."""
    import numpy

    data = Path(path).read_bytes()
    length = int.from_bytes(data[:8], "little")
    found = {}
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        if entry["dtype"] == "BF16":  # the upper half of a float32
            values = (numpy.frombuffer(data[start:end], "<u2").astype("<u4") << 16).view("<f4")
        else:
            values = numpy.frombuffer(data[start:end], _TYPES[entry["dtype"]])
        found[name] = values.astype(numpy.result_type(values.dtype, numpy.float32), copy=False).reshape(entry["shape"])
    return found


def distance(one: dict[str, NDArray[Any]], other: dict[str, NDArray[Any]]) -> float:
    """Return the Euclidean distance over the tensors that both have."""
    return math.sqrt(sum(float(((one[name].astype("f8") - other[name]) ** 2).sum()) for name in one.keys() & other))


def largest_difference(one: dict[str, NDArray[Any]], other: dict[str, NDArray[Any]]) -> float:
    """Return the largest difference of any two numbers, over the tensors that both have."""
    return max((float(abs(one[name] - other[name]).max()) for name in one.keys() & other), default=0.0)


def size(tensors: dict[str, NDArray[Any]]) -> float:
    """Return the Euclidean norm of all numbers."""
    return math.sqrt(sum(float((values.astype("f8") ** 2).sum()) for values in tensors.values()))
