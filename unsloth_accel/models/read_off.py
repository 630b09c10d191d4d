"""Shapes of a model that no installed class builds, read off the fields of its config.json: an estimate, to plan by.

It is taken for a Llama-like model in which every linear layer has a bias, every MLP a gate, and every block four norms
and norms of its queries and keys, so that usual blocks come out no smaller than they are. What else a model's blocks
have, and its fields don't say in words that are known here, isn't counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .architectures import MAX_LAYERS, Shape
from .build_without_weights import EXPERTS, ROUTED

_NAMES = {
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "num_layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "num_heads": ("num_attention_heads", "n_head", "num_heads"),
    "num_kv_heads": ("num_key_value_heads", "multi_query_group_num", "n_head_kv"),
    "head_dim": ("head_dim", "kv_channels"),
    "intermediate_size": ("intermediate_size", "ffn_hidden_size", "n_inner"),
    "vocab_size": ("vocab_size", "padded_vocab_size"),
    "max_position_embeddings": ("max_position_embeddings", "seq_length", "n_positions", "max_sequence_length"),
}
"""Names that configs have for a size."""
_NEEDED = ("hidden_size", "num_layers", "num_heads", "vocab_size")
_SHARED = ("n_shared_experts", "num_shared_experts")
_TOWERS = ("vision_config", "img_processor")
_CLIP_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_layers": 24}
"""Sizes of the tower that is assumed where none are told: CLIP's ViT-L/14, in most models of pictures."""
_MOST_FACTOR = 1_000
"""Largest `ffn_mult`, the width of an MLP over that of the model, that is taken for one: known ones are below 10."""
_PATCHES = 2**14
"""Values of a patch of pixels, and positions, of a tower: more than any has that is known here."""


@dataclass(frozen=True, kw_only=True)
class ReadOff:
    """Sizes that a config.json tells, by the names of `architectures.Sizes`, and parameters made of them."""

    sizes: dict[str, Any]
    shapes: dict[str, Shape]


def read_off(config: Mapping[str, Any]) -> ReadOff | None:
    """Return what can be read off `config`; None where it lacks a size without which there is nothing to count."""
    text = config.get("text_config")
    values = {**config, **text} if isinstance(text, dict) else dict(config)
    sizes = {name: _number(values, *names) for name, names in _NAMES.items()}
    if not all(sizes[name] for name in _NEEDED) or sizes["num_layers"] > MAX_LAYERS:
        return None
    heads, experts = sizes["num_heads"], _number(values, *EXPERTS)
    blocks = values.get("block_configs")
    sizes["num_kv_heads"] = sizes["num_kv_heads"] or heads
    sizes["head_dim"] = sizes["head_dim"] or -(-sizes["hidden_size"] // heads)
    sizes["intermediate_size"] = sizes["intermediate_size"] or 4 * sizes["hidden_size"]
    sizes["tie_word_embeddings"] = values.get("tie_word_embeddings") is True
    sizes["num_experts"] = experts
    sizes["experts_per_token"] = min(_number(values, *ROUTED) or experts, experts)
    inner = _number(values, "moe_intermediate_size") or sizes["intermediate_size"]
    sizes["moe_intermediate_size"] = inner if experts else 0
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (sizes["vocab_size"], sizes["hidden_size"])}
    for layer in range(sizes["num_layers"]):
        own = blocks[layer] if isinstance(blocks, list) and layer < len(blocks) else None
        made = _block(values, _of_block(sizes, own) if isinstance(own, dict) else sizes, layer)
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in made}
    shapes |= {"model.norm.weight": (sizes["hidden_size"],), "model.norm.bias": (sizes["hidden_size"],)}
    if not sizes["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (sizes["vocab_size"], sizes["hidden_size"])
    shapes |= dict(_tower(config, sizes["hidden_size"]))
    return ReadOff(sizes=sizes, shapes=shapes)


def _number(values: Mapping[str, Any], *names: str) -> int:
    return next((values[name] for name in names if type(values.get(name)) is int and values[name] > 0), 0)


def _of_block(sizes: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sizes of one block of a model whose blocks differ (NVIDIA's DeciLM: `block_configs`); 0 for a part
    that is left out."""
    attention, ffn = (part if isinstance(part := own.get(name), dict) else {} for name in ("attention", "ffn"))
    group, factor = _number(attention, "n_heads_in_group"), ffn.get("ffn_mult")
    made = dict(sizes)
    if group:
        made["num_kv_heads"] = max(sizes["num_heads"] // group, 1)
    if isinstance(factor, int | float) and 0 < factor <= _MOST_FACTOR:
        made["intermediate_size"] = -(-int(2 * factor * sizes["hidden_size"] / 3) // 256) * 256
    made["num_heads"] *= not attention.get("no_op")
    made["intermediate_size"] *= not ffn.get("no_op")
    return made


def _block(values: Mapping[str, Any], sizes: Mapping[str, Any], layer: int) -> Iterator[tuple[str, Shape]]:
    hidden = sizes["hidden_size"]
    if sizes["num_heads"]:
        yield from _attention(values, sizes, hidden)
    sparse = sizes["num_experts"] and layer >= _number(values, "first_k_dense_replace")
    if sparse:
        experts, inner = sizes["num_experts"], sizes["moe_intermediate_size"]
        width = _number(values, "routed_expert_hidden_size") or hidden
        yield "mlp.gate.weight", (experts, hidden)
        yield "mlp.gate.bias", (experts,)
        yield "mlp.experts.gate_up_proj", (experts, 2 * inner, width)
        yield "mlp.experts.down_proj", (experts, width, inner)
        if width != hidden:
            yield from _linear("mlp.latent_in", hidden, width)
            yield from _linear("mlp.latent_out", width, hidden)
        shared = _number(values, *_SHARED) * (_number(values, "shared_intermediate_size") or inner)
        shared = shared or _number(values, "shared_expert_intermediate_size")
        yield from _mlp("mlp.shared_experts", hidden, shared)
    else:
        yield from _mlp("mlp", hidden, _number(values, "dense_intermediate_size") or sizes["intermediate_size"])
    for name in ("input_layernorm", "post_attention_layernorm", "pre_mlp_layernorm", "post_mlp_layernorm"):
        yield f"{name}.weight", (hidden,)
        yield f"{name}.bias", (hidden,)


def _attention(values: Mapping[str, Any], sizes: Mapping[str, Any], hidden: int) -> Iterator[tuple[str, Shape]]:
    """Yield the larger of the attentions that the config tells of: with latent keys and values, linear, or usual."""
    heads, size = sizes["num_heads"], sizes["head_dim"]
    kinds = [[*_usual(hidden, heads, sizes["num_kv_heads"], size)]]
    if rank := _number(values, "kv_lora_rank"):
        turned, plain = _number(values, "qk_rope_head_dim"), _number(values, "qk_nope_head_dim") or size
        asked = heads * (turned + plain)
        queries = _number(values, "q_lora_rank")
        kinds = [
            [
                *(_linear("self_attn.q_a_proj", hidden, queries) if queries else ()),
                *_linear("self_attn.q_b_proj" if queries else "self_attn.q_proj", queries or hidden, asked),
                *_linear("self_attn.kv_a_proj_with_mqa", hidden, rank + turned),
                *_linear("self_attn.kv_b_proj", rank, heads * (plain + (_number(values, "v_head_dim") or size))),
                *_linear("self_attn.o_proj", heads * (_number(values, "v_head_dim") or size), hidden),
            ]
        ]
    linear = values.get("linear_attn_config")
    if isinstance(linear, dict) and (count := _number(linear, "num_heads")):
        width = _number(linear, "head_dim") or size
        gate = _linear("self_attn.g_proj", hidden, count * width)
        kinds.append([*_usual(hidden, count, count, width), *gate])
    yield from max(kinds, key=lambda shapes: sum(shape[0] * shape[-1] for _, shape in shapes if len(shape) > 1))


def _usual(hidden: int, heads: int, kv_heads: int, size: int) -> Iterator[tuple[str, Shape]]:
    yield from _linear("self_attn.q_proj", hidden, heads * size)
    yield from _linear("self_attn.k_proj", hidden, kv_heads * size)
    yield from _linear("self_attn.v_proj", hidden, kv_heads * size)
    yield from _linear("self_attn.o_proj", heads * size, hidden)
    yield "self_attn.q_norm.weight", (heads * size,)
    yield "self_attn.k_norm.weight", (kv_heads * size,)


def _mlp(name: str, hidden: int, inner: int) -> Iterator[tuple[str, Shape]]:
    if inner:
        yield from _linear(f"{name}.gate_proj", hidden, inner)
        yield from _linear(f"{name}.up_proj", hidden, inner)
        yield from _linear(f"{name}.down_proj", inner, hidden)


def _linear(name: str, inputs: int, outputs: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def _tower(config: Mapping[str, Any], hidden: int) -> Iterator[tuple[str, Shape]]:
    """Yield the parameters of a tower for pictures, and of what joins it to a text model of width `hidden`."""
    given = next((config[name] for name in _TOWERS if isinstance(config.get(name), dict)), None)
    if given is None:
        return
    values = {key.removeprefix("vt_"): value for key, value in given.items()}
    told = {name: _number(values, *_NAMES[name]) or usual for name, usual in _CLIP_LARGE.items()}
    width, inner = told["hidden_size"], told["intermediate_size"]
    yield "vision.embeddings.weight", (_PATCHES, width)
    layers = told["num_layers"] if told["num_layers"] <= MAX_LAYERS else _CLIP_LARGE["num_layers"]
    for layer in range(layers):
        attention = _usual(width, 1, 1, max(width, _number(values, "qkv_hidden_size")))
        for name, shape in (*attention, *_mlp("mlp", width, inner)):
            yield f"vision.layers.{layer}.{name}", shape
    yield from _linear("vision.projector.0", 4 * width, hidden)
    yield from _linear("vision.projector.1", hidden, hidden)
