"""Small models of families that have no record in `ARCHITECTURES`, by transformers and by us."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from unsloth_accel.models.build_without_weights import build, describe
from unsloth_accel.models.counted import Counted
from unsloth_accel.models.spec import ModelSpec, from_config

TEXT: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "dtype": "bfloat16",
    "pad_token_id": 0,
}
VISION = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64}
SIGLIP = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
SECTIONS = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
ROUTED = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
GROUPED = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
LATENT = {
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "v_head_dim"), 16),
    **dict.fromkeys(("head_dim", "qk_rope_head_dim"), 8),
}
LINEAR = {
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 16),
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "layer_types": ["linear_attention", "full_attention"],
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_expand": 2}

DENSE: dict[str, dict[str, Any]] = {
    "cohere": {},
    "cohere2": {"layer_types": ["sliding_attention", "full_attention"]},
    "exaone4": {"layer_types": ["sliding_attention", "full_attention"]},
    "glm4": {},
    "granite": {},
    "helium": {},
    "lfm2": {"block_ff_dim": 96, "layer_types": ["conv", "full_attention"], "conv_L_cache": 3},
    "ministral3": {},
    "olmo2": {},
    "olmo3": {"layer_types": ["sliding_attention", "full_attention"]},
    "seed_oss": {},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {},
}
"""Further values by model_type; models that one CPU trains in a second."""
PLAIN: dict[str, dict[str, Any]] = {"gemma": {}, "gemma2": {}, "phi3": {}, "qwen2": {}}
"""Families with a record in `ARCHITECTURES`."""
MIXED: dict[str, dict[str, Any]] = {
    "deepseek_v3": {**ROUTED, **GROUPED, **LATENT, "num_key_value_heads": TEXT["num_attention_heads"]},
    "glm4_moe": {**ROUTED, **GROUPED},
    "granitemoehybrid": {**MAMBA, "layer_types": ["mamba", "attention"], "num_local_experts": 4, **ROUTED},
    "llama4_text": {"num_local_experts": 4, "num_experts_per_tok": 2, "interleave_moe_layer_step": 1},
    "minimax_m2": {**ROUTED, "num_local_experts": 4},
    "nemotron_h": {**ROUTED, **GROUPED, "layers_block_type": ["mamba", "attention"], "mamba_num_heads": 8},
    "qwen3_next": {**ROUTED, **LINEAR, "shared_expert_intermediate_size": 24},
}
FUSED: dict[str, dict[str, Any]] = {
    "gpt_oss": {"num_local_experts": 16, "num_experts_per_tok": 2, "layer_types": ["full_attention"] * 2},
    "qwen3_moe": {**ROUTED, "num_experts": 16},
}
"""Mixtures that have a record in `ARCHITECTURES`, with more experts than a short row has tokens for."""
TRAINED_ALONE = (
    *(*DENSE, *PLAIN),
    *("deepseek_v3", "glm4_moe", "granitemoehybrid", "nemotron_h", "qwen3_next", "minimax_m2"),
)
"""Those that a test trains in one process."""
TOWERS: dict[str, dict[str, Any]] = {
    "gemma3": {"text_config": TEXT, "vision_config": SIGLIP},
    "mistral3": {
        "text_config": {**TEXT, "model_type": "mistral"},
        "vision_config": {**SIGLIP, "model_type": "pixtral"},
    },
    "qwen2_5_vl": {"text_config": {**TEXT, "rope_parameters": SECTIONS}, "vision_config": VISION},
    "qwen3_vl": {"text_config": TEXT, "vision_config": {**VISION, "deepstack_visual_indexes": [0]}},
    "qwen3_5": {"text_config": {**TEXT, **LINEAR}, "vision_config": VISION},
}


TOWERS_TRAINED = {
    "gemma3": "fsdp2_native",
    "mistral3": "ddp",
    "qwen2_5_vl": "fsdp2_native",
    "qwen3_vl": "ddp",
    "qwen3_5": "ddp",
}
"""The strategy by which a test trains a model beside one process."""


def values(model_type: str) -> dict[str, Any]:
    """Return the keys and values of its config.json."""
    if model_type in TOWERS:
        return {"model_type": model_type, **TOWERS[model_type]}
    return {"model_type": model_type, **TEXT, **{**DENSE, **PLAIN, **MIXED, **FUSED}[model_type]}


@cache
def built(model_type: str) -> Any:
    """Return transformers' model, on the meta device."""
    return build(json.loads(json.dumps(values(model_type))), None)


@cache
def counted(model_type: str) -> Counted:
    """Return what a process of its own would tell of it."""
    return Counted.of(json.loads(json.dumps(describe(built(model_type)))))


def counted_spec(model_type: str, **options: Any) -> ModelSpec:
    return from_config(values(model_type), name=model_type, counted=counted(model_type), **options)
