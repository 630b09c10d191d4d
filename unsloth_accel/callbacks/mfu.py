"""MFU: the share of the cards' peak rate that training needs and gets, by formulas and rates with their sources.

Model FLOPs utilisation is defined in PaLM (arXiv:2204.02311, appendix B): the FLOPs that the model's own arithmetic
takes, over the peak. Recomputing under gradient checkpointing, and padding, are no model FLOPs and don't count (with
recomputing it would be HFU); so checkpointing lowers MFU by up to a third.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ConfigError
from ..hardware.gpu_table import card_of
from ..models.spec import ModelSpec, from_config

if TYPE_CHECKING:
    import torch

    from ..adapters.hook_types import Arguments


@dataclass(frozen=True, kw_only=True)
class ModelFlops:
    """Floating-point operations of forward and backward of one model, without recomputing."""

    per_token: float
    """FLOPs per token of matmuls with weights."""
    per_pair: float
    """FLOPs of attention per pair of a query and a key that it may see: a row of T tokens has T (T + 1) / 2."""
    formula: str

    def of(self, tokens: float, pairs: float) -> float:
        return tokens * self.per_token + pairs * self.per_pair


def lora_flops(spec: ModelSpec, lora_parameters: int) -> ModelFlops:
    """Return the FLOPs with frozen weights and LoRA.

    A matmul with n weights takes 2n per token forward, 2n backward for the gradient of its input and 2n for that of its
    weights (Kaplan et al., arXiv:2001.08361, section 2.1); frozen ones need no gradient of weights: 4n, LoRA's 6n. The
    embedding is a look-up; lm_head counts, also a tied one. Sliding windows are taken for whole attention.
    """
    formula = f"4 per frozen weight and token, 6 per LoRA weight, {_PER_PAIR}"
    per_token = 4 * _matmul_weights(spec) + 6 * lora_parameters
    return ModelFlops(per_token=per_token, per_pair=_attention(spec), formula=formula)


def full_flops(spec: ModelSpec) -> ModelFlops:
    """Return the FLOPs with every weight trained: 6 per weight and token."""
    formula = f"6 per weight and token, {_PER_PAIR}"
    return ModelFlops(per_token=6 * _matmul_weights(spec), per_pair=_attention(spec), formula=formula)


_PER_PAIR = "12 x heads x head_dim x layers per causal pair"


def _matmul_weights(spec: ModelSpec) -> int:
    linear = spec.active_parameters - spec.embedding_parameters - spec.lm_head_parameters
    return linear + spec.hidden_size * spec.vocab_size


def _attention(spec: ModelSpec) -> float:
    """Return PaLM's 12 L H Q T per token, of which causal attention needs the pairs up to the token itself only."""
    return 12.0 * spec.num_layers * spec.num_heads * spec.head_dim


def flops_of(model: torch.nn.Module) -> ModelFlops | str:
    """Return the FLOPs of a loaded model, by its config and trainable parameters; or why they can't be known."""
    config = getattr(model, "config", None)
    if config is None:
        return "the model has no config"
    try:
        # Not the parameters: quantized ones are packed, and sharded ones are parts.
        described = {key: value for key, value in config.to_dict().items() if key != "quantization_config"}
        spec = from_config(described, name=str(getattr(config, "name_or_path", "")))
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        return f"its FLOPs can't be counted: {str(error).splitlines()[0]}"
    if not spec.tensors:
        return "its FLOPs can't be counted: its shapes are not known"
    trainable = {name: parameter.numel() for name, parameter in model.named_parameters() if parameter.requires_grad}
    lora = sum(numel for name, numel in trainable.items() if "lora_" in name)
    if lora and lora == sum(trainable.values()):
        return lora_flops(spec, lora)
    if not lora and sum(trainable.values()) >= 0.99 * spec.num_parameters:
        return full_flops(spec)
    return "the formula knows LoRA alone and training every weight; here other weights are trained"


@dataclass(frozen=True, kw_only=True)
class Peak:
    """Peak rate of one GPU."""

    flops: float
    """FLOPs per second."""
    source: str


def peak_of(args: Arguments, model: torch.nn.Module) -> Peak | str:
    """Return this process's GPU's peak in its training precision, by NVIDIA's datasheet; or why it isn't known."""
    import torch

    if args.device.type != "cuda":
        return "a CPU's peak rate is not known"
    properties = torch.cuda.get_device_properties(args.device)
    card = card_of(properties.name, properties.total_memory / 2**30)
    if card is None:
        return f"the peak rate of {properties.name} is not known (unsloth_accel.hardware.gpu_table)"
    own = getattr(model, "dtype", None)
    if args.bf16 or own is torch.bfloat16:
        rate, precision = card.bf16_tflops, "bf16"
    elif args.fp16 or own is torch.float16:
        rate, precision = card.fp16_tflops, "fp16"
    else:
        return f"the peak rate of {card.name} in float32 is not known (unsloth_accel.hardware.gpu_table)"
    if not rate:
        return f"{card.name} has no {precision}"
    return Peak(flops=rate * 1e12, source=f"{card.name}: {rate:g} TFLOP/s dense {precision} ({card.source})")
