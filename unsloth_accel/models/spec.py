"""ModelSpec: a model's exact sizes and parameters, without loading it and without torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..config.start_adapter import model_of
from ..errors import ConfigError, Problem
from . import lora_size
from .architectures import ARCHITECTURES, Sizes, architecture_of, parameters, read_dimensions
from .safetensors_header import DTYPES, Stored, read_checkpoint

Source = Literal["safetensors headers", "config.json", "known shapes"]
ITEM_SIZES = dict(DTYPES.values())
"""Bytes of one element, by torch's name of the dtype."""
_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_ROUTERS = ("gate", "router")
"""Last names of modules with a two-dimensional weight that is no nn.Linear: the routers of a mixture."""
_BUFFERS = (".inv_freq", ".masked_bias", ".attn.bias")
"""Ends of names that older checkpoints store and that are no parameters."""
_BITS = {"bnb-8bit": 8, "fp8": 8, "gptq": 4, "awq": 4}


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One parameter, with its logical shape even where the checkpoint stores it quantized."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """Torch's name, such as bfloat16: the checkpoint's, or config.json's where none was read or it is quantized."""
    bytes: int
    """Bytes of the parameter in `dtype`, not of its quantized form."""

    @property
    def numel(self) -> int:
        return prod(self.shape)


class Linear(NamedTuple):
    """The weight of one nn.Linear."""

    name: str
    """Name of the module, without `.weight`."""
    out_features: int
    in_features: int


@dataclass(frozen=True, kw_only=True)
class ModelSpec(Sizes):
    """The sizes and parameters of `AutoModelForCausalLM` for one model, as transformers 5.17 builds it.

    Lengths are in elements, sizes in bytes.
    """

    name: str
    model_type: str
    source: Source
    """Source of the counts. Shapes are config.json's; headers confirm them and give dtype and stored bytes."""
    dtype: str
    """Dtype of the checkpoint's weights, or of those that were quantized."""
    quantization: str | None
    """Quantization of the checkpoint (bnb-4bit, bnb-8bit, mxfp4, gptq, awq, fp8, …), or None."""
    unquantized_modules: tuple[str, ...] = ()
    """Patterns of the modules that a quantized checkpoint keeps in `dtype` (llm_int8_skip_modules)."""
    decoder_layer_class: str
    """Class of a decoder block, for FSDP's transformer_layer_cls_to_wrap; empty for an unknown architecture."""
    tensors: tuple[Tensor, ...]
    """All parameters; a tied lm_head counts once, as the embeddings."""
    stored_bytes: int | None = None
    """Bytes of all tensors in the checkpoint, quantization states included; None where no headers were read."""
    towers: tuple[str, ...] = ()
    """Keys of config.json that describe another model beside the text model, of images or sound."""
    problems: tuple[Problem, ...] = ()
    """Warnings met on the way, such as an architecture that was counted from its weights only."""

    @classmethod
    def load(cls, name: str | Path, revision: str | None = None) -> ModelSpec:
        """The spec of a local directory or a hub id; milliseconds, unless config.json must be downloaded.

        An adapter's is that of its base. A hub id is looked for in the local hub cache, among the library's known
        shapes (for the main revision), and then, unless HF_HUB_OFFLINE is set, on the hub, from where only config.json
        is fetched.

        Raises `ConfigError`: a config.json that is missing, unreadable, senseless or of an unknown architecture
        without weights; weights that are missing, cut short or of other shapes than config.json says; a hub id that
        can't be had.
        """
        from .locate import find_model

        name = model_of(str(name))
        found = find_model(name, revision)
        source: Source = "known shapes" if found.known else "config.json"
        stored = read_checkpoint(found.directory) if found.directory and found.has_weights else []
        return from_config(found.config, name=name, where=found.where, stored=stored, source=source)

    # Summing over all tensors takes a millisecond or more, and the planner asks often.
    @cached_property
    def num_parameters(self) -> int:
        """Number of all parameters: `sum(p.numel() for p in model.parameters())`."""
        return sum(tensor.numel for tensor in self.tensors)

    @cached_property
    def largest_tensor(self) -> int:
        """Number of elements of the largest tensor."""
        return max((tensor.numel for tensor in self.tensors), default=0)

    @cached_property
    def embedding_parameters(self) -> int:
        """Number of parameters of the input embeddings."""
        return sum(tensor.numel for tensor in self.tensors if tensor.name.endswith("embed_tokens.weight"))

    @cached_property
    def lm_head_parameters(self) -> int:
        """Number of parameters of lm_head, bias included; 0 where it is tied to the input embeddings."""
        return sum(tensor.numel for tensor in self.tensors if tensor.name.startswith("lm_head."))

    @cached_property
    def layer_parameters(self) -> int:
        """Number of parameters of the largest decoder block."""
        blocks: Counter[str] = Counter()
        for tensor in self.tensors:
            if block := _BLOCK.search(tensor.name):
                blocks[block[1]] += tensor.numel
        return max(blocks.values(), default=0)

    @cached_property
    def active_parameters(self) -> int:
        """Number of parameters that one token uses: all, embeddings included, but the experts it is not routed to."""
        if not self.num_experts:
            return self.num_parameters
        experts = sum(tensor.numel for tensor in self.tensors if ".experts." in tensor.name)
        return self.num_parameters - experts + experts // self.num_experts * self.experts_per_token

    @cached_property
    def linear_weights(self) -> tuple[Linear, ...]:
        """The nn.Linear weights in the decoder blocks: what bitsandbytes quantizes and `all-linear` LoRA reaches.

        Fused experts and routers are no nn.Linear in transformers 5 and not among them.
        """
        return tuple(
            Linear(tensor.name.removesuffix(".weight"), *tensor.shape) for tensor in self.tensors if _is_linear(tensor)
        )

    lora_parameters = lora_size.lora_parameters

    def has(self, ending: str) -> bool:
        """Return whether a tensor's name ends with `ending`."""
        return ending in self._last_words

    @cached_property
    def _last_words(self) -> frozenset[str]:
        """Return the last two words of each tensor's name."""
        return frozenset(".".join(tensor.name.split(".")[-2:]) for tensor in self.tensors)

    @cached_property
    def largest_linear(self) -> int:
        """Number of elements of the largest of `linear_weights`."""
        return max((weight.out_features * weight.in_features for weight in self.linear_weights), default=0)

    def weight_bytes(self, load_in_4bit: bool, dtype_bytes: int = 2, *, experts_in_4bit: bool = False) -> int:
        """Bytes of the loaded base weights on one device that holds all of them.

        With `load_in_4bit`, or from a bnb-4bit checkpoint, each weight of `linear_weights` takes `nf4_bytes`, and the
        rest `dtype_bytes` per parameter: transformers' bitsandbytes integration replaces nn.Linear modules but lm_head
        (transformers 5.17, integrations/bitsandbytes.py and quantizers/base.py), so embeddings, norms and fused
        experts stay. Modules that the checkpoint's llm_int8_skip_modules names stay too; `known shapes` of a dynamic
        `-unsloth-bnb-4bit` checkpoint don't know these and come out a few percent low.

        `experts_in_4bit` adds the fused experts to what is in 4 bit, which Unsloth's patches do and transformers does
        not (unsloth_zoo 2026.10.9, temporary_patches/moe_utils_bnb4bit.py). Large ones get a float32 absmax per 64
        elements there and no double quantization; all count so, which is an upper bound.

        mxfp4 counts as dequantized, which training needs. Other quantized checkpoints take what they take on disk, or
        without headers their bits per linear weight and no scales.
        """
        asked = (load_in_4bit, dtype_bytes, experts_in_4bit)
        if asked not in self._weight_bytes:
            self._weight_bytes[asked] = self._count_bytes(*asked)
        return self._weight_bytes[asked]

    @cached_property
    def _weight_bytes(self) -> dict[tuple[bool, int, bool], int]:
        """Return what `weight_bytes` has counted so far."""
        return {}

    def _count_bytes(self, load_in_4bit: bool, dtype_bytes: int, experts_in_4bit: bool) -> int:
        if load_in_4bit or self.quantization == "bnb-4bit":
            experts = self._expert_weights() if experts_in_4bit else []
            saved = sum(numel * dtype_bytes - (numel + 1) // 2 - 4 * -(-numel // 64) - 64 for numel in experts)
            return self._mixed_bytes(dtype_bytes, nf4_bytes) - saved
        if self.quantization in (None, "mxfp4"):
            return self.num_parameters * dtype_bytes
        if self.stored_bytes is not None:
            return self.stored_bytes
        bits = _BITS.get(self.quantization, 8 * dtype_bytes)
        return self._mixed_bytes(dtype_bytes, lambda numel: (numel * bits + 7) // 8)

    def _expert_weights(self) -> list[int]:
        """Elements of each fused weight of experts that may be quantized."""
        fused = [tensor for tensor in self.tensors if ".experts." in tensor.name and len(tensor.shape) == 3]
        return [tensor.numel for tensor in fused if not _kept(tensor.name, self.unquantized_modules)]

    def _mixed_bytes(self, dtype_bytes: int, quantized_bytes: Callable[[int], int]) -> int:
        total = self.num_parameters * dtype_bytes
        for weight in self.linear_weights:
            if not _kept(weight.name, self.unquantized_modules):
                numel = weight.out_features * weight.in_features
                total += quantized_bytes(numel) - numel * dtype_bytes
        return total


def nf4_bytes(numel: int) -> int:
    """Bytes of a weight of `numel` elements in bitsandbytes' NF4 with double quantization, its state included.

    With blocks = ceil(numel / 64): ceil(numel / 2) for the values, two to a byte, blocks uint8 for absmax,
    ceil(blocks / 256) float32 for the absmax of absmax, and of each weight's own 16 float32 for the NF4 code, 256
    float32 for the code of absmax and one float32 offset. Source: bitsandbytes 0.50.2, functional.py, `quantize_4bit`
    and `quantize_blockwise` (the code is copied into every state).
    """
    blocks = -(-numel // 64)
    return -(-numel // 2) + blocks + 4 * -(-blocks // 256) + 4 * (16 + 256 + 1)


TOWERS = ("vision_config", "audio_config", "speech_config")
"""Keys of config.json under which transformers keeps the configs of vision and audio models."""
TOWER = "towers"
"""`Problem.rule` of a model that has such a config and can't be counted."""


def from_config(
    config: Mapping[str, Any],
    *,
    name: str,
    where: str = "config.json",
    stored: Iterable[Stored] = (),
    source: Source = "config.json",
) -> ModelSpec:
    """The spec that `config`, a config.json's keys and values, describes; `stored` is its checkpoint's tensors.

    `where` names the file in errors. Raises `ConfigError` as `ModelSpec.load` does.
    """
    stored = list(stored)
    quantization, kept = _quantization(config, where)
    dtype = _dtype(config, stored, where)
    model_type = config["model_type"]
    towers = tuple(key for key in TOWERS if config.get(key))
    if model_type not in ARCHITECTURES and stored and quantization is None:
        return replace(_from_weights(config, name, where, stored, dtype), towers=towers)
    if towers:
        consequence = f"holds another model beside the text model ({towers[0]}), which is not counted."
        fix = "a text model, or a directory with unquantized weights"
        raise ConfigError(
            Problem(key=f"{where}: model_type", value=model_type, consequence=consequence, fix=fix, rule=TOWER)
        )
    architecture = architecture_of(model_type, where)
    dims = read_dimensions(config, architecture.defaults, where)
    shapes = dict(parameters(architecture, dims))
    problems: tuple[Problem, ...] = ()
    dtypes: dict[str, str] = {}
    if stored and quantization is None:
        dtypes = {tensor.name: tensor.dtype for tensor in stored}
        problems = _compare(shapes, stored, dims.tie_word_embeddings, where)
    return ModelSpec(
        name=name,
        model_type=model_type,
        source="safetensors headers" if stored else source,
        **dims.sizes(),
        dtype=dtype,
        quantization=quantization,
        unquantized_modules=kept,
        decoder_layer_class=architecture.decoder_layer_class,
        tensors=tuple(_tensor(key, shape, dtypes.get(key, dtype)) for key, shape in shapes.items()),
        stored_bytes=sum(tensor.bytes for tensor in stored) if stored else None,
        problems=problems,
    )


def _from_weights(config: Mapping[str, Any], name: str, where: str, stored: list[Stored], dtype: str) -> ModelSpec:
    """The spec of an architecture that isn't known: its tensors are the checkpoint's."""
    text = config.get("text_config")
    values = {**config, **text} if isinstance(text, dict) else config

    def number(*keys: str) -> int:
        return next((values[key] for key in keys if type(values.get(key)) is int), 0)

    tied = values.get("tie_word_embeddings") is True
    kept = _stored_parameters(stored, tied)
    blocks = [int(block[1]) for tensor in kept if (block := _BLOCK.search(tensor.name))]
    hidden, heads = number("hidden_size", "n_embd"), number("num_attention_heads", "n_head")
    consequence = "unknown architecture: counted from its weights only, so fused or tied ones may differ when loaded."
    fix = f"nothing, if that is all right; known are {', '.join(sorted(ARCHITECTURES.names))}"
    key, model_type = f"{where}: model_type", config["model_type"]
    warning = Problem(key=key, value=model_type, consequence=consequence, fix=fix, severity="warning")
    return ModelSpec(
        name=name,
        model_type=model_type,
        source="safetensors headers",
        hidden_size=hidden,
        intermediate_size=number("intermediate_size", "n_inner"),
        num_layers=max(blocks, default=-1) + 1,
        num_heads=heads,
        num_kv_heads=number("num_key_value_heads") or heads,
        head_dim=number("head_dim") or (hidden // heads if heads else 0),
        vocab_size=number("vocab_size"),
        tie_word_embeddings=tied,
        num_experts=number("num_experts", "num_local_experts"),
        experts_per_token=number("num_experts_per_tok"),
        moe_intermediate_size=number("moe_intermediate_size"),
        max_position_embeddings=number("max_position_embeddings", "n_positions"),
        dtype=dtype,
        quantization=None,
        decoder_layer_class="",
        tensors=tuple(_tensor(tensor.name, tensor.shape, tensor.dtype) for tensor in kept),
        stored_bytes=sum(tensor.bytes for tensor in stored),
        problems=(warning,),
    )


def _stored_parameters(stored: Iterable[Stored], tied: bool) -> list[Stored]:
    """The tensors of an unquantized checkpoint that are parameters of the model."""
    return [t for t in stored if not t.name.endswith(_BUFFERS) and not (tied and t.name == "lm_head.weight")]


def _compare(
    shapes: Mapping[str, tuple[int, ...]], stored: list[Stored], tied: bool, where: str
) -> tuple[Problem, ...]:
    """A warning where the checkpoint and config.json hold different numbers; `ConfigError` for different shapes."""
    fix = "take config.json and the weights from the same model"
    for tensor in stored:
        shape = shapes.get(tensor.name, shapes.get(f"model.{tensor.name}", tensor.shape))
        if shape != tensor.shape:
            consequence = f"describes {tensor.name} as {list(shape)}, and the weights hold {list(tensor.shape)}."
            raise ConfigError(Problem(key=where, consequence=consequence, fix=fix))
    described = sum(map(prod, shapes.values()))
    held = sum(prod(tensor.shape) for tensor in _stored_parameters(stored, tied))
    if held == described:
        return ()
    consequence = f"describes {described:,} parameters and the weights hold {held:,}; "
    consequence += "transformers makes up what is missing."
    return (Problem(key=where, consequence=consequence, fix=fix, severity="warning"),)


def _tensor(name: str, shape: tuple[int, ...], dtype: str) -> Tensor:
    return Tensor(name=name, shape=shape, dtype=dtype, bytes=prod(shape) * ITEM_SIZES.get(dtype, 2))


def _is_linear(tensor: Tensor) -> bool:
    if len(tensor.shape) != 2 or not tensor.name.endswith(".weight") or not _BLOCK.search(tensor.name):
        return False
    return tensor.name.split(".")[-2] not in _ROUTERS


def _kept(module: str, patterns: Iterable[str]) -> bool:
    """Return whether bitsandbytes leaves `module` alone (transformers, quantizers_utils.py:
    `should_convert_module`)."""
    return any(module.endswith(pattern) or _matches(pattern, module) for pattern in patterns)


def _matches(pattern: str, module: str) -> bool:
    try:
        return re.match(pattern, module) is not None
    except re.error:
        return False


def _dtype(config: Mapping[str, Any], stored: list[Stored], where: str) -> str:
    """Torch's name of the weights' dtype: config.json's, or that of most stored bytes, or transformers' float32."""
    given = config.get("dtype") or config.get("torch_dtype")
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
