"""Shapes of published models, shrunk in depth: what their blocks, experts, towers and vocabularies take, for a check.

Widths, heads, experts and vocabularies are those of each model's config.json on the Hub; only blocks are left out. On a
CPU `config_values(name, small=True)` gives a model of the same kinds of blocks that a process trains in seconds.
"""

from __future__ import annotations

import copy
from typing import Any

_SIGLIP = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 6,
    "num_attention_heads": 16,
    "image_size": 896,
    "patch_size": 14,
}
_QWEN_VISION = {
    "depth": 6,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_heads": 16,
    "out_hidden_size": 2560,
    "patch_size": 16,
    "num_position_embeddings": 2304,
}
_LINEAR = ("linear_attention", "linear_attention", "linear_attention", "full_attention")

PUBLISHED: dict[str, dict[str, Any]] = {
    "gemma3_4b_tower": {  # google/gemma-3-4b-it, 6 of 34 blocks
        "model_type": "gemma3",
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 6,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "query_pre_attn_scalar": 256,
            "vocab_size": 262208,
            "sliding_window": 1024,
            "tie_word_embeddings": True,
        },
        "vision_config": _SIGLIP,
        "tie_word_embeddings": True,
    },
    "qwen3_vl": {  # Qwen/Qwen3-VL-4B-Instruct, 8 of 36 blocks
        "model_type": "qwen3_vl",
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 8,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
        "vision_config": {**_QWEN_VISION, "deepstack_visual_indexes": [1, 3, 5]},
        "tie_word_embeddings": True,
    },
    "qwen3_30b_moe": {  # Qwen/Qwen3-30B-A3B, 4 of 48 blocks
        "model_type": "qwen3_moe",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "vocab_size": 151936,
    },
    "gpt_oss": {  # openai/gpt-oss-20b in 16 bit, 4 of 24 blocks
        "model_type": "gpt_oss",
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_hidden_layers": 4,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "num_local_experts": 32,
        "num_experts_per_tok": 4,
        "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "vocab_size": 201088,
    },
    "lfm2": {  # LiquidAI/LFM2-1.2B, 8 of 16 blocks
        "model_type": "lfm2",
        "hidden_size": 2048,
        "intermediate_size": 12288,
        "num_hidden_layers": 8,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "conv_L_cache": 3,
        "layer_types": ["conv", "conv", "full_attention", "conv"] * 2,
        "vocab_size": 65536,
    },
    "qwen3_5": {  # Qwen/Qwen3.5-4B's widths, 4 of 32 blocks
        "model_type": "qwen3_5",
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 9216,
            "num_hidden_layers": 4,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "linear_key_head_dim": 128,
            "linear_value_head_dim": 128,
            "linear_num_key_heads": 16,
            "linear_num_value_heads": 32,
            "layer_types": list(_LINEAR),
            "vocab_size": 248320,
            "tie_word_embeddings": True,
        },
        "vision_config": _QWEN_VISION,
        "tie_word_embeddings": True,
    },
}
"""The values of config.json, by the name of the check."""
_SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "vocab_size": 320,
    "depth": 2,
    "num_heads": 2,
    "out_hidden_size": 64,
    "image_size": 28,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
}


def config_values(name: str, *, small: bool = False) -> dict[str, Any]:
    """Return the values of config.json of `PUBLISHED[name]`, as a model of two narrow blocks where it is `small`."""
    values = copy.deepcopy(PUBLISHED[name])
    for part in (values, values.get("text_config", {}), values.get("vision_config", {})) if small else ():
        part |= {key: value for key, value in _SMALL.items() if key in part}
        if "layer_types" in part:  # one block of each kind
            part["layer_types"] = part["layer_types"][-2:]
    return values
