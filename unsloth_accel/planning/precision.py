"""Precision: what a run asks for, what the hardware can compute, and what Unsloth does anyway."""

from __future__ import annotations

from collections.abc import Sequence

from ..config.accelerate_config import Precision
from ..config.run_config import RunConfig
from ..errors import Problem
from ..hardware.device import Device
from ..hardware.hardware import Hardware
from .ways import Refused, Way

_OF_DTYPE: dict[str | None, Precision] = {"float16": "fp16", "bfloat16": "bf16"}


def choose_precision(run: RunConfig, hardware: Hardware, devices: Sequence[Device], reasons: list[str]) -> Precision:
    """Choose the precision for `devices`, or for the CPU of `hardware` when there are none; add to `reasons`.

    Raises `Refused` for what contradicts itself, the model's dtype or the hardware.
    """
    fields = run.training
    if fields.get("bf16") and fields.get("fp16"):
        raise _refusal("training.bf16", True, "bf16 and fp16 are both on.", "training.fp16", "training.bf16")
    asked: Precision | None = "bf16" if fields.get("bf16") else "fp16" if fields.get("fp16") else None
    of_dtype = _OF_DTYPE.get(run.model.dtype)
    if asked and of_dtype and asked != of_dtype:
        consequence = f"model.dtype is {run.model.dtype}, and Unsloth refuses to train that in {asked}."
        raise _refusal(f"training.{asked}", True, consequence, f"training.{asked}", "model.dtype")
    key, value = (f"training.{asked}", fields[asked]) if asked else ("model.dtype", run.model.dtype)
    said = f"{key} is {'set' if asked else value}"
    asked = asked or of_dtype
    old = [device.name for device in devices if not device.has_bf16]
    if asked == "fp16" and not devices:
        raise _refusal(key, value, "a CPU trains in bf16 or fp32; accelerate refuses fp16 there.", key)
    if asked == "bf16" and old:
        consequence = f"{old[0]} has no bfloat16 (compute capability below 8.0)."
        raise _refusal(key, value, consequence, key)
    if asked and not devices and not hardware.cpu_bf16:
        # unsloth_zoo/cpu/trainer.py: normalize_cpu_training_arguments
        reasons.append(
            f"precision no: {said}, but the CPU lacks bfloat16 instructions, and Unsloth turns bf16 off there."
        )
        return "no"
    if asked:
        reasons.append(f"precision {asked}: {said}.")
        return asked
    if not devices:
        return _on_cpu(run, hardware, reasons)
    if old and run.model.dtype == "float32":
        reasons.append(f"precision no: model.dtype is float32, and {old[0]} has no bfloat16.")
        return "no"
    if False in (fields.get("bf16"), fields.get("fp16")) or run.model.dtype == "float32":
        # unsloth/models/rl.py: use_bf16_amp. A config that said `no` would not be what runs.
        said = "model.dtype is float32" if run.model.dtype == "float32" else "training.bf16 or fp16 is false"
        reasons.append(f"{said}, but Unsloth trains an adapter in mixed precision on a GPU all the same.")
    if old:
        reasons.append(f"precision fp16: {old[0]} has no bfloat16 (compute capability below 8.0).")
        return "fp16"
    reasons.append("precision bf16: every GPU has bfloat16, which needs no loss scaling.")
    return "bf16"


def _on_cpu(run: RunConfig, hardware: Hardware, reasons: list[str]) -> Precision:
    if run.training.get("bf16") is False or run.model.dtype == "float32":
        reasons.append("precision no: training.bf16 is false or model.dtype is float32.")
        return "no"
    reasons.append(f"precision: the CPU {'has' if hardware.cpu_bf16 else 'lacks'} bfloat16 instructions.")
    return "bf16" if hardware.cpu_bf16 else "no"


def _refusal(key: str, value: object, consequence: str, *without: str) -> Refused:
    """Return a refusal that ends where one of the keys `without` is left out."""
    ways = [[Way(changes={left_out: None})] for left_out in without]
    return Refused(Problem(key=key, value=value, consequence=consequence, fix=""), ways)
