"""The form in which a model's weights are stored: what config.json and the headers of a checkpoint say of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, Problem
from .safetensors_header import DTYPES, Stored

ITEM_SIZES = dict(DTYPES.values())
"""Bytes of one element, by torch's name of the dtype."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """How weights are stored."""

    dtype: str
    """Dtype of the checkpoint's weights, or of those that were quantized."""
    quantization: str | None
    """Quantization of the checkpoint (bnb-4bit, bnb-8bit, mxfp4, gptq, awq, fp8, …), or None."""
    unquantized_modules: tuple[str, ...] = ()
    """Patterns of the modules that a quantized checkpoint keeps in `dtype` (llm_int8_skip_modules)."""
    stored_bytes: int | None = None
    """Bytes of all tensors in the checkpoint, quantization states included; None where no headers were read."""


def read_form(config: Mapping[str, Any], stored: list[Stored], where: str) -> Form:
    """Return the form of the tensors `stored` that `config`, a config.json's keys and values, describes."""
    quantization, kept = _quantization(config, where)
    return Form(
        dtype=_dtype(config, stored, where),
        quantization=quantization,
        unquantized_modules=kept,
        stored_bytes=sum(tensor.bytes for tensor in stored) if stored else None,
    )


def _dtype(config: Mapping[str, Any], stored: list[Stored], where: str) -> str:
    """Torch's name of the weights' dtype: config.json's, or that of most stored bytes, or transformers' float32."""
    text = config.get("text_config")
    values = {**text, **config} if isinstance(text, dict) else config
    given = values.get("dtype") or values.get("torch_dtype")
    if given is not None and given != "auto":
        word = given.removeprefix("torch.") if isinstance(given, str) else ""
        if word in ITEM_SIZES:
            return word
        fix = f"use one of: {', '.join(ITEM_SIZES)}."
        raise ConfigError(Problem(key=f"{where}: dtype", value=given, consequence="is not a dtype.", fix=fix))
    floats: Counter[str] = Counter()
    for tensor in stored:
        if tensor.dtype in ("float64", "float32", "float16", "bfloat16"):
            floats[tensor.dtype] += tensor.bytes
    return max(floats, key=floats.__getitem__, default="float32")


def _quantization(config: Mapping[str, Any], where: str) -> tuple[str | None, tuple[str, ...]]:
    """Return how the checkpoint is quantized, and the modules that aren't."""
    given = config.get("quantization_config")
    if given is None:
        return None, ()
    if not isinstance(given, dict):
        key, fix = f"{where}: quantization_config", "restore config.json from the model's source"
        raise ConfigError(Problem(key=key, value=given, consequence="must be a mapping.", fix=fix))
    method = given.get("quant_method", "bitsandbytes" if "load_in_4bit" in given or "load_in_8bit" in given else "")
    if method == "bitsandbytes":
        method = "bnb-4bit" if given.get("load_in_4bit", given.get("_load_in_4bit")) else "bnb-8bit"
    skipped = given.get("llm_int8_skip_modules") or ()
    kept = tuple(word for word in skipped if isinstance(word, str)) if isinstance(skipped, list) else ()
    return str(method) or "unknown", kept
