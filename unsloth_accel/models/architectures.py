"""The parameters of each supported architecture, from the values of its config.json alone.

Names and shapes are those of `AutoModelForCausalLM` in transformers 5.17 (models/*/modeling_*.py there), where the
experts of a mixture are one three-dimensional parameter per layer. `Dimensions` are read with that version's defaults
(configuration_*.py), since saved configs leave values out. tests/models/test_spec.py holds both to transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from ..errors import ConfigError, Problem, raise_errors
from ..registry import Registry

Shape = tuple[int, ...]
Parameters = Iterator[tuple[str, Shape]]
MAX_LAYERS = 10_000
"""Most decoder blocks that a model may have; a config.json with more is nonsense and would only be slow."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of a model, in elements. A number that an unknown architecture doesn't tell is 0."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool
    num_experts: int
    """Experts per layer; 0 for a dense model."""
    experts_per_token: int
    """Experts that each token is routed to; 0 for a dense model."""
    moe_intermediate_size: int
    """MLP width of one expert; 0 for a dense model."""
    max_position_embeddings: int
    """Context length in tokens; in `known shapes` a hint only, since base and instruct models share a shape."""

    def sizes(self) -> dict[str, Any]:
        """Return the sizes by name."""
        return {field.name: getattr(self, field.name) for field in fields(Sizes)}


@dataclass(frozen=True, kw_only=True)
class Dimensions(Sizes):
    """Values of a config.json that decide shapes."""

    attention_bias: bool = False
    mlp_bias: bool = False
    qk_layernorm: bool = False
    decoder_sparse_step: int = 1
    mlp_only_layers: tuple[int, ...] = ()

    def is_sparse(self, layer: int) -> bool:
        """Return whether decoder block `layer` is a mixture of experts."""
        chosen = (layer + 1) % self.decoder_sparse_step == 0
        return self.num_experts > 0 and chosen and layer not in self.mlp_only_layers


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A family of models; one of your own is added by `ARCHITECTURES.add`."""

    name: str
    """`model_type` in its config.json."""
    decoder_layer_class: str
    """The class of a decoder block in transformers, for FSDP's transformer_layer_cls_to_wrap."""
    block: Callable[[Dimensions, int], Parameters]
    """Parameters of a decoder block, from its number; names are relative to the block."""
    defaults: Mapping[str, Any]
    """Default values of config.json's keys."""
    final_norm: str = "norm"
    biased: bool = False
    """Whether the final norm and lm_head have a bias."""


def parameters(architecture: Architecture, dims: Dimensions) -> Parameters:
    """Name and shape of every parameter of the causal LM; a tied lm_head is no parameter of its own."""
    yield "model.embed_tokens.weight", (dims.vocab_size, dims.hidden_size)
    for layer in range(dims.num_layers):
        for name, shape in architecture.block(dims, layer):
            yield f"model.layers.{layer}.{name}", shape
    yield from _norm(f"model.{architecture.final_norm}", dims.hidden_size, architecture.biased)
    if not dims.tie_word_embeddings:
        yield "lm_head.weight", (dims.vocab_size, dims.hidden_size)
    if architecture.biased:
        yield "lm_head.bias", (dims.vocab_size,)


def _linear(name: str, inputs: int, outputs: int, bias: bool = False) -> Parameters:
    yield f"{name}.weight", (outputs, inputs)
    if bias:
        yield f"{name}.bias", (outputs,)


def _norm(name: str, size: int, bias: bool = False) -> Parameters:
    yield f"{name}.weight", (size,)
    if bias:
        yield f"{name}.bias", (size,)


def _attention(
    dims: Dimensions, *, qkv_bias: bool, out_bias: bool, output: str = "o_proj", qk_norm: bool = False
) -> Parameters:
    hidden, query, key = dims.hidden_size, dims.num_heads * dims.head_dim, dims.num_kv_heads * dims.head_dim
    yield from _linear("self_attn.q_proj", hidden, query, qkv_bias)
    yield from _linear("self_attn.k_proj", hidden, key, qkv_bias)
    yield from _linear("self_attn.v_proj", hidden, key, qkv_bias)
    yield from _linear(f"self_attn.{output}", query, hidden, out_bias)
    if qk_norm:
        yield from _norm("self_attn.q_norm", dims.head_dim)
        yield from _norm("self_attn.k_norm", dims.head_dim)


def _gated_mlp(dims: Dimensions, bias: bool = False) -> Parameters:
    yield from _linear("mlp.gate_proj", dims.hidden_size, dims.intermediate_size, bias)
    yield from _linear("mlp.up_proj", dims.hidden_size, dims.intermediate_size, bias)
    yield from _linear("mlp.down_proj", dims.intermediate_size, dims.hidden_size, bias)


def _experts(dims: Dimensions) -> Parameters:
    experts, hidden, inner = dims.num_experts, dims.hidden_size, dims.moe_intermediate_size
    yield "mlp.gate.weight", (experts, hidden)
    yield "mlp.experts.gate_up_proj", (experts, 2 * inner, hidden)
    yield "mlp.experts.down_proj", (experts, hidden, inner)


def _two_norms(dims: Dimensions) -> Parameters:
    yield from _norm("input_layernorm", dims.hidden_size)
    yield from _norm("post_attention_layernorm", dims.hidden_size)


def _dense(
    dims: Dimensions, layer: int, *, qkv_bias: bool | None = None, qk_norm: bool = False, four_norms: bool = False
) -> Parameters:
    """A Llama-like block; `qkv_bias` where the architecture fixes it (the output projection then has none)."""
    out_bias = dims.attention_bias and qkv_bias is None
    yield from _attention(dims, qkv_bias=out_bias or bool(qkv_bias), out_bias=out_bias, qk_norm=qk_norm)
    yield from _gated_mlp(dims, dims.mlp_bias)
    yield from _two_norms(dims)
    if four_norms:
        yield from _norm("pre_feedforward_layernorm", dims.hidden_size)
        yield from _norm("post_feedforward_layernorm", dims.hidden_size)


def _phi(dims: Dimensions, layer: int) -> Parameters:
    yield from _attention(dims, qkv_bias=True, out_bias=True, output="dense")
    if dims.qk_layernorm:
        for name in ("q_layernorm", "k_layernorm"):
            yield from _norm(f"self_attn.{name}", dims.hidden_size // dims.num_heads, bias=True)
    yield from _linear("mlp.fc1", dims.hidden_size, dims.intermediate_size, bias=True)
    yield from _linear("mlp.fc2", dims.intermediate_size, dims.hidden_size, bias=True)
    yield from _norm("input_layernorm", dims.hidden_size, bias=True)


def _phi3(dims: Dimensions, layer: int) -> Parameters:
    query = dims.num_heads * dims.head_dim
    yield from _linear("self_attn.qkv_proj", dims.hidden_size, query + 2 * dims.num_kv_heads * dims.head_dim)
    yield from _linear("self_attn.o_proj", query, dims.hidden_size)
    yield from _linear("mlp.gate_up_proj", dims.hidden_size, 2 * dims.intermediate_size)
    yield from _linear("mlp.down_proj", dims.intermediate_size, dims.hidden_size)
    yield from _two_norms(dims)


def _mixtral(dims: Dimensions, layer: int) -> Parameters:
    yield from _attention(dims, qkv_bias=False, out_bias=False)
    yield from _experts(dims)
    yield from _two_norms(dims)


def _qwen3_moe(dims: Dimensions, layer: int) -> Parameters:
    yield from _attention(dims, qkv_bias=dims.attention_bias, out_bias=dims.attention_bias, qk_norm=True)
    yield from _experts(dims) if dims.is_sparse(layer) else _gated_mlp(dims)
    yield from _two_norms(dims)


def _gpt_oss(dims: Dimensions, layer: int) -> Parameters:
    yield "self_attn.sinks", (dims.num_heads,)
    yield from _attention(dims, qkv_bias=dims.attention_bias, out_bias=dims.attention_bias)
    experts, hidden, inner = dims.num_experts, dims.hidden_size, dims.moe_intermediate_size
    yield "mlp.router.weight", (experts, hidden)
    yield "mlp.router.bias", (experts,)
    yield "mlp.experts.gate_up_proj", (experts, hidden, 2 * inner)
    yield "mlp.experts.gate_up_proj_bias", (experts, 2 * inner)
    yield "mlp.experts.down_proj", (experts, inner, hidden)
    yield "mlp.experts.down_proj_bias", (experts, hidden)
    yield from _two_norms(dims)


def _family(
    name: str,
    decoder_layer_class: str,
    block: Callable[[Dimensions, int], Parameters],
    sizes: tuple[int, int, int, int, int, int | None],
    max_position_embeddings: int,
    **others: Any,
) -> Architecture:
    """Return an `Architecture`; `sizes`: vocab, hidden, intermediate, layers, heads, key-value heads (None: as many as
    heads); `others` are more defaults."""
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    defaults: dict[str, Any] = dict(zip((*keys, "num_key_value_heads"), sizes, strict=True))
    defaults |= {"max_position_embeddings": max_position_embeddings, "tie_word_embeddings": False} | others
    return Architecture(name=name, decoder_layer_class=decoder_layer_class, block=block, defaults=defaults)


_GEMMA = {"head_dim": 256, "tie_word_embeddings": True, "attention_bias": False}
_LLAMA = {"attention_bias": False, "mlp_bias": False}
_MIXTRAL = {"num_local_experts": 8, "num_experts_per_tok": 2}
_QWEN3 = {"head_dim": 128, "attention_bias": False}
_QWEN3_MOE = {
    "attention_bias": False,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
_GPT_OSS = {"head_dim": 64, "attention_bias": True, "num_local_experts": 128, "num_experts_per_tok": 4}
_PHI = _family("phi", "PhiDecoderLayer", _phi, (51200, 2048, 8192, 24, 32, None), 2048, qk_layernorm=False)

# fmt: off
ARCHITECTURES: Registry[Architecture] = Registry("model_type", [
    _family("llama", "LlamaDecoderLayer", _dense, (32000, 4096, 11008, 32, 32, None), 2048, **_LLAMA),
    _family("mistral", "MistralDecoderLayer", partial(_dense, qkv_bias=False), (32000, 4096, 14336, 32, 32, 8), 131072),
    _family("qwen2", "Qwen2DecoderLayer", partial(_dense, qkv_bias=True), (151936, 4096, 22016, 32, 32, 32), 32768),
    _family("qwen3", "Qwen3DecoderLayer", partial(_dense, qk_norm=True), (151936, 4096, 22016, 32, 32, 32), 32768,
            **_QWEN3),
    _family("gemma", "GemmaDecoderLayer", _dense, (256000, 3072, 24576, 28, 16, 16), 8192, **_GEMMA),
    _family("gemma2", "Gemma2DecoderLayer", partial(_dense, four_norms=True), (256000, 2304, 9216, 26, 8, 4), 8192,
            **_GEMMA),
    _family("gemma3_text", "Gemma3DecoderLayer", partial(_dense, qk_norm=True, four_norms=True),
            (262208, 2304, 9216, 26, 8, 4), 131072, **_GEMMA),
    replace(_PHI, final_norm="final_layernorm", biased=True),
    _family("phi3", "Phi3DecoderLayer", _phi3, (32064, 3072, 8192, 32, 32, None), 4096),
    _family("mixtral", "MixtralDecoderLayer", _mixtral, (32000, 4096, 14336, 32, 32, 8), 131072, **_MIXTRAL),
    _family("qwen3_moe", "Qwen3MoeDecoderLayer", _qwen3_moe, (151936, 2048, 6144, 24, 32, 4), 32768, **_QWEN3_MOE),
    _family("gpt_oss", "GptOssDecoderLayer", _gpt_oss, (201088, 2880, 2880, 36, 64, 8), 131072, **_GPT_OSS),
])
# fmt: on


def read_dimensions(config: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> Dimensions:
    """The dimensions in `config`, a config.json's keys and values, with `defaults` for what it leaves out.

    Raises `ConfigError` with every value that has the wrong type or can't be, keyed `<where>: <config key>`.
    """
    values = {**defaults, **{key: value for key, value in config.items() if value is not None}}
    # A mixture's number of experts goes by two names, and transformers takes either (attribute_map).
    for name, other in (("num_experts", "num_local_experts"), ("num_local_experts", "num_experts")):
        if name in config and other in defaults and other not in config:
            values[other] = config[name]
    problems: list[Problem] = []

    def wrong(key: str, value: Any, consequence: str) -> None:
        fix = "restore config.json from the model's source"
        problems.append(Problem(key=f"{where}: {key}", value=value, consequence=consequence, fix=fix))

    def number(key: str, least: int = 1, default: int = 0) -> int:
        value = values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            wrong(key, value, "is not a whole number, so the model has no shape.")
            return least
        if value < least:
            wrong(key, value, f"must be at least {least}.")
            return least
        return value

    def flag(key: str) -> bool:
        value = values.get(key, False)
        if not isinstance(value, bool):
            wrong(key, value, "must be true or false.")
        return value is True

    hidden, layers, heads = number("hidden_size"), number("num_hidden_layers"), number("num_attention_heads")
    kv_heads = number("num_key_value_heads") if values.get("num_key_value_heads") is not None else heads
    if layers > MAX_LAYERS:
        wrong("num_hidden_layers", layers, f"is more than the {MAX_LAYERS} that any model has.")
    has_head_dim = values.get("head_dim") is not None
    sound = not problems  # otherwise what follows would only repeat it
    if sound and heads % kv_heads:
        wrong("num_key_value_heads", kv_heads, f"doesn't divide num_attention_heads={heads}.")
    if sound and not has_head_dim and hidden % heads:
        wrong("num_attention_heads", heads, f"doesn't divide hidden_size={hidden}, and there is no head_dim.")
    only = values.get("mlp_only_layers", [])
    if not isinstance(only, list) or not all(isinstance(layer, int) for layer in only):
        wrong("mlp_only_layers", only, "must be a list of layer numbers.")
        only = []
    experts = 0
    if "num_experts" in defaults:  # where there may be none, and every block is dense
        experts = number("num_experts", least=0)
    elif "num_local_experts" in defaults:
        experts = number("num_local_experts")
    routed = number("num_experts_per_tok", least=1) if experts else 0
    if routed > experts:
        wrong("num_experts_per_tok", routed, f"is more than the {experts} experts that there are.")
    inner_key = "moe_intermediate_size" if "moe_intermediate_size" in defaults else "intermediate_size"
    dims = Dimensions(
        hidden_size=hidden,
        intermediate_size=number("intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=number("head_dim") if has_head_dim else hidden // heads,
        vocab_size=number("vocab_size"),
        max_position_embeddings=number("max_position_embeddings"),
        tie_word_embeddings=flag("tie_word_embeddings"),
        num_experts=experts,
        experts_per_token=routed,
        moe_intermediate_size=number(inner_key) if experts else 0,
        attention_bias=flag("attention_bias"),
        mlp_bias=flag("mlp_bias") if "mlp_bias" in defaults else False,
        qk_layernorm=flag("qk_layernorm"),
        decoder_sparse_step=number("decoder_sparse_step", default=1),
        mlp_only_layers=tuple(only),
    )
    raise_errors(problems)
    return dims


def architecture_of(model_type: str, where: str) -> Architecture:
    """The architecture of a config.json's model_type; raises `ConfigError` with those that there are."""
    found = ARCHITECTURES.get(model_type)
    if found:
        return found
    consequence = "no known architecture, so it can't be counted from config.json alone."
    fix = f"give a directory with safetensors weights, or a model of type {', '.join(sorted(ARCHITECTURES.names))}"
    raise ConfigError(Problem(key=f"{where}: model_type", value=model_type, consequence=consequence, fix=fix))
