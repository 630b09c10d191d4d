"""Models that the installed transformers doesn't know: planned by what their config.json tells, and said so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unsloth_accel.config.read_run import from_dict
from unsloth_accel.errors import ConfigError
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.launch.launcher import plan_problems
from unsloth_accel.models.read_off import read_off
from unsloth_accel.models.spec import ModelSpec
from unsloth_accel.planning.planner import plan

pytestmark = pytest.mark.usefixtures("no_hub")
_LLAMA = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


def _config(model_type: str, *sizes: int, **others: Any) -> dict[str, Any]:
    return {"model_type": model_type, **dict(zip(_LLAMA, sizes, strict=True)), **others}


MADE: dict[str, tuple[float, float, dict[str, Any]]] = {
    "Baichuan2-7B": (7.506e9, 1.01, _config("baichuan", 4096, 11008, 32, 32, 125696)),
    "internlm2-7b": (7.738e9, 1.01, _config("internlm2", 4096, 14336, 32, 32, 92544, num_key_value_heads=8)),
    "chatglm3-6b": (
        6.244e9,
        1.01,
        {"model_type": "chatglm", "hidden_size": 4096, "ffn_hidden_size": 13696, "num_layers": 28}
        | {"num_attention_heads": 32, "padded_vocab_size": 65024, "kv_channels": 128, "multi_query_group_num": 2},
    ),
    "deepseek-moe-16b": (
        16.376e9,
        1.01,
        _config("deepseek", 2048, 10944, 28, 16, 102400, moe_intermediate_size=1408, n_routed_experts=64)
        | {"n_shared_experts": 2, "num_experts_per_tok": 6, "first_k_dense_replace": 1},
    ),
    "MiniCPM-2B": (2.725e9, 1.01, _config("minicpm", 2304, 5760, 40, 36, 122753, tie_word_embeddings=True)),
    "Orion-14B": (14.5e9, 1.01, _config("orion", 5120, 15360, 40, 40, 84608)),
    "phi-2": (
        2.78e9,
        1.31,  # whose MLP has no gate
        {"model_type": "phi-msft", "n_embd": 2560, "n_head": 32, "n_inner": None, "n_layer": 32, "vocab_size": 51200},
    ),
    "Phi-3.5-vision": (
        4.147e9,
        1.04,
        _config("phi3_v", 3072, 8192, 32, 32, 32064, num_key_value_heads=32, img_processor={"name": "clip"}),
    ),
}
"""Published parameters, how many times as many may be read off, and the model's sizes."""


@pytest.mark.parametrize("name", MADE)
def test_what_is_read_off_is_what_was_published_or_more(name: str) -> None:
    published, most, config = MADE[name]
    found = read_off(config)
    assert found is not None
    total = sum(_product(shape) for shape in found.shapes.values())
    assert 0.999 * published <= total <= most * published


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def test_blocks_that_differ_are_counted_each() -> None:
    blocks = [
        {"attention": {"n_heads_in_group": 4}, "ffn": {"ffn_mult": 3.0}},
        {"attention": {"no_op": True}, "ffn": {"ffn_mult": 1.5}},
        {"attention": {"n_heads_in_group": 8}, "ffn": {"no_op": True}},
    ]
    given = _config("nemotron-nas", 512, 0, 3, 8, 100, block_configs=blocks, intermediate_size=None)
    found = read_off(given)
    assert found is not None
    shapes = found.shapes
    assert shapes["model.layers.0.mlp.down_proj.weight"] == (512, 1024)
    assert shapes["model.layers.1.mlp.down_proj.weight"] == (512, 512)
    assert shapes["model.layers.0.self_attn.k_proj.weight"] == (2 * 64, 512)
    assert shapes["model.layers.2.self_attn.k_proj.weight"] == (64, 512)
    assert "model.layers.1.self_attn.k_proj.weight" not in shapes
    assert "model.layers.2.mlp.down_proj.weight" not in shapes


@pytest.mark.parametrize(
    "senseless",
    [{"block_configs": [{"ffn": {"ffn_mult": factor}}] * 2} for factor in (float("inf"), float("nan"), -3, "x")]
    + [{"vision_config": {"num_hidden_layers": 10**7}}],
)
def test_senseless_sizes_are_not_taken(senseless: dict[str, Any]) -> None:
    given = _config("nobody", 64, 128, 2, 4, 100)
    usual = read_off({**given, "vision_config": {}} if "vision_config" in senseless else given)
    assert read_off({**given, **senseless}) == usual


@pytest.mark.parametrize("gone", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_without_a_size_there_is_nothing_to_count(gone: str, tmp_path: Path) -> None:
    config = _config("nobody", 64, 128, 2, 4, 100)
    del config[gone]
    assert read_off(config) is None
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ConfigError, match="is no model that the installed transformers"):
        ModelSpec.load(tmp_path)


def test_it_is_planned_with_a_warning_and_launched_by_nobody(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(_config("nobody", 64, 128, 2, 4, 100)), encoding="utf-8")
    decided = plan(from_dict({"model": {"name": str(tmp_path)}}, to_plan=True), Hardware.parse("2xH100-80GB"))
    spec = decided.spec
    assert spec is not None
    assert spec.source == "config.json's fields"
    assert not spec.measured
    (warning,) = spec.problems
    assert warning.severity == "warning"
    assert "read off its fields: an estimate" in warning.consequence
    assert decided.memory is not None
    (error,) = (problem for problem in plan_problems(decided) if problem.severity == "error")
    assert "is no model that the installed transformers" in error.consequence


def test_the_class_that_it_names_is_taken_where_transformers_has_it(tmp_path: Path) -> None:
    config = _config("nobody", 64, 128, 2, 4, 100, num_key_value_heads=2, architectures=["GraniteForCausalLM"])
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    spec = ModelSpec.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "granite"}), encoding="utf-8")
    assert spec.tensors == ModelSpec.load(tmp_path).tensors
    assert "counted as GraniteForCausalLM" in spec.problems[0].consequence
    assert spec.unloadable
    # Of sizes by other names that class would take its own.
    config["n_embd"] = config.pop("hidden_size")
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert ModelSpec.load(tmp_path).source == "config.json's fields"
