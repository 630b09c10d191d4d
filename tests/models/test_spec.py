"""ModelSpec against transformers on the meta device, PEFT, and checkpoints that transformers wrote."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from processor_time import calm_seconds
from safetensors.torch import save_file
from small_models import CONFIGS, meta_model, problem_of, saved_model, spec

from unsloth_accel.errors import ConfigError
from unsloth_accel.models.model_tensors import nf4_bytes
from unsloth_accel.models.spec import ModelSpec, from_config
from unsloth_accel.models.stored_form import ITEM_SIZES

pytestmark = pytest.mark.usefixtures("no_hub")


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_those_of_transformers(name: str) -> None:
    model = meta_model(name)
    expected = {key: tuple(parameter.shape) for key, parameter in model.named_parameters()}
    found = spec(name)
    assert {tensor.name: tensor.shape for tensor in found.tensors} == expected
    assert found.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert len(found.tensors) == len(expected)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_parts_are_those_of_transformers(name: str) -> None:
    model, found = meta_model(name), spec(name)
    assert found.decoder_layer_class in model._no_split_modules
    layers = model.model.layers
    assert {type(layer).__name__ for layer in layers} == {found.decoder_layer_class}
    assert found.layer_parameters == max(sum(p.numel() for p in layer.parameters()) for layer in layers)
    assert found.embedding_parameters == model.get_input_embeddings().weight.numel()
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    assert found.tie_word_embeddings == tied
    bias = model.lm_head.bias.numel() if model.lm_head.bias is not None else 0
    assert found.lm_head_parameters == bias + (0 if tied else model.lm_head.weight.numel())
    linear = {
        (key, module.out_features, module.in_features)
        for key, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and key != "lm_head"
    }
    assert set(found.linear_weights) == linear
    assert (found.num_layers, found.hidden_size) == (len(layers), model.config.hidden_size)
    assert found.head_dim == layers[0].self_attn.head_dim
    assert found.num_kv_heads == model.config.num_key_value_heads


def test_active_parameters_are_those_of_the_experts_that_a_token_uses() -> None:
    found = spec("mixtral")  # 2 layers, 4 experts of which 2 are used, hidden 32, inner 48
    assert found.num_parameters - found.active_parameters == 2 * 2 * (2 * 48 * 32 + 32 * 48)
    assert spec("llama").active_parameters == spec("llama").num_parameters
    # Alibaba's and Mistral's published 3.3 and 12.9 billion.
    assert ModelSpec.load("Qwen/Qwen3-30B-A3B").active_parameters == 3_353_032_704
    assert ModelSpec.load("mistralai/Mixtral-8x7B-v0.1").active_parameters == 12_879_925_248


# --- known shapes

PUBLISHED = {
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "unsloth/Llama-3.2-1B-Instruct": 1_235_814_400,
    "unsloth/Llama-3.2-3B": 3_212_749_824,
    "unsloth/Llama-3.3-70B-Instruct": 70_553_706_496,
    "unsloth/mistral-7b-v0.3": 7_248_023_552,
    "mistralai/Mixtral-8x7B-v0.1": 46_702_792_704,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "unsloth/Qwen3-0.6B": 596_049_920,
    "unsloth/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "google/gemma-2-2b": 2_614_341_888,
    "google/gemma-2-9b": 9_241_705_984,
    "google/gemma-3-1b-it": 999_885_952,
    "microsoft/phi-4": 14_659_507_200,
    "microsoft/Phi-3.5-mini-instruct": 3_821_079_552,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "openai/gpt-oss-20b": 20_914_757_184,
    "Qwen/Qwen2.5-72B-Instruct": 72_706_203_648,
}


@pytest.mark.parametrize(("hub_id", "count"), PUBLISHED.items())
def test_known_shapes_have_the_published_size(hub_id: str, count: int) -> None:
    found = ModelSpec.load(hub_id)
    assert (found.num_parameters, found.source) == (count, "known shapes")


# --- bytes


def test_nf4_bytes_are_those_of_bitsandbytes() -> None:
    # numel: values, absmax, absmax of absmax; measured on the QuantState of bitsandbytes 0.50.2's quantize_4bit
    # (compress_statistics=True), whose two codes and offset take 64 + 1024 + 4 bytes.
    measured = {16384: (8192, 256, 1), 16448: (8224, 257, 2), 307200: (153600, 4800, 19), 100: (50, 2, 1)}
    for numel, (values, absmax, nested) in measured.items():
        assert nf4_bytes(numel) == values + absmax + 4 * nested + 1092


def test_four_bit_leaves_embeddings_norms_lm_head_and_experts() -> None:
    found = spec("llama")
    linear = [weight.out_features * weight.in_features for weight in found.linear_weights]
    assert found.weight_bytes(False) == 2 * found.num_parameters
    assert found.weight_bytes(False, dtype_bytes=4) == 4 * found.num_parameters
    assert found.weight_bytes(True) == 2 * (found.num_parameters - sum(linear)) + sum(map(nf4_bytes, linear))
    experts = sum(2 * tensor.numel for tensor in spec("mixtral").tensors if ".experts." in tensor.name)
    assert spec("mixtral").weight_bytes(True) > experts
    # Unsloth's: half a byte each, a float32 for 64 of them, and the code; two weights in each of the two layers.
    saved = experts - experts // 2 // 2 - 4 * (experts // 2 // 64) - 4 * 64
    assert spec("mixtral").weight_bytes(True) - spec("mixtral").weight_bytes(True, experts_in_4bit=True) == saved
    assert found.weight_bytes(True, experts_in_4bit=True) == found.weight_bytes(True)


def test_modules_that_a_checkpoint_leaves_in_16_bit_count_so() -> None:
    values = json.loads(CONFIGS["llama"].read_text())
    quantized = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    whole = from_config({**values, "quantization_config": quantized}, name="x")
    skipping = {**quantized, "llm_int8_skip_modules": ["lm_head", "model.layers.0.mlp", "layers.1.self_attn.q_proj"]}
    partly = from_config({**values, "quantization_config": skipping}, name="x")
    kept = [32 * 48] * 3 + [32 * 32]
    assert partly.weight_bytes(True) - whole.weight_bytes(True) == sum(2 * numel - nf4_bytes(numel) for numel in kept)


@pytest.mark.parametrize(
    ("given", "quantization"),
    [
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bnb-8bit"),
        ({"load_in_4bit": True}, "bnb-4bit"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "fp8"}, "fp8"),
    ],
)
def test_quantizations(given: dict[str, Any], quantization: str) -> None:
    found = from_config({**json.loads(CONFIGS["llama"].read_text()), "quantization_config": given}, name="x")
    assert found.quantization == quantization
    assert (found.weight_bytes(False) < 2 * found.num_parameters) == (quantization != "mxfp4")


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gemma3-text", "phi", "mixtral", "qwen3-moe-mixed", "gpt-oss"])
@pytest.mark.parametrize("size", ["1GB", "20KB"])
def test_a_saved_checkpoint(tmp_path: Path, name: str, size: str) -> None:
    model = saved_model(name, tmp_path, max_shard_size=size)
    files = list(tmp_path.glob("*.safetensors"))
    assert (len(files) > 1) == (size == "20KB")
    found = ModelSpec.load(tmp_path)
    assert (found.source, found.problems) == ("safetensors headers", ())
    assert {t.name: t.shape for t in found.tensors} == {n: tuple(p.shape) for n, p in model.named_parameters()}
    assert found.stored_bytes == 2 * found.num_parameters
    assert {tensor.dtype for tensor in found.tensors} == {found.dtype} == {"bfloat16"}


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": None, "torch_dtype": "float16"}, "float16"),
        ({"dtype": "auto"}, "float32"),
        ({}, "float32"),
    ],
)
def test_dtype_without_weights_is_the_configs(given: dict[str, Any], dtype: str) -> None:
    found = from_config({"model_type": "llama", "num_hidden_layers": 1, **given}, name="x")
    assert (found.dtype, found.tensors[0].dtype) == (dtype, dtype)


def test_each_tensor_has_the_dtype_of_its_header(tmp_path: Path) -> None:
    model = saved_model("llama", tmp_path)
    tensors = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    save_file(tensors, tmp_path / "model.safetensors")
    dtypes = {tensor.name: tensor.dtype for tensor in ModelSpec.load(tmp_path).tensors}
    assert dtypes["model.norm.weight"] == "float32"
    assert dtypes["lm_head.weight"] == "bfloat16"


def test_a_quantized_checkpoint_has_logical_shapes_and_stored_bytes(tmp_path: Path) -> None:
    model = saved_model("llama", tmp_path)
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        quantised = "_proj" in name
        tensors[name] = torch.zeros(parameter.numel() // 2, 1, dtype=torch.uint8) if quantised else parameter.detach()
        if quantised:
            tensors[f"{name}.absmax"] = torch.zeros(parameter.numel() // 64, dtype=torch.uint8)
            tensors[f"{name}.quant_state.bitsandbytes__nf4"] = torch.zeros(80, dtype=torch.uint8)
    save_file(tensors, tmp_path / "model.safetensors")
    values = json.loads((tmp_path / "config.json").read_text())
    values["quantization_config"] = {"quant_method": "bitsandbytes", "_load_in_4bit": True}
    (tmp_path / "config.json").write_text(json.dumps(values))
    found = ModelSpec.load(tmp_path)
    assert (found.quantization, found.problems) == ("bnb-4bit", ())
    assert {t.name: t.shape for t in found.tensors} == {n: tuple(p.shape) for n, p in model.named_parameters()}
    assert found.stored_bytes == sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


@pytest.mark.parametrize("weights", ["pytorch_model.bin", "model-q4_k_m.gguf", None])
def test_without_safetensors_it_is_counted_from_config(tmp_path: Path, weights: str | None) -> None:
    shutil.copy(CONFIGS["qwen3"], tmp_path / "config.json")
    if weights:
        (tmp_path / weights).write_bytes(b"no header is read here")
    found = ModelSpec.load(tmp_path)
    assert (found.source, found.stored_bytes) == ("config.json", None)
    assert found.tensors == spec("qwen3").tensors


def test_an_unknown_architecture_is_counted_from_its_weights(tmp_path: Path) -> None:
    model = saved_model("llama-tied", tmp_path)
    values = json.loads((tmp_path / "config.json").read_text()) | {"model_type": "brand_new"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    found = ModelSpec.load(tmp_path)
    assert found.num_parameters == model.num_parameters()
    assert set(found.linear_weights) == set(spec("llama-tied").linear_weights)
    assert (found.num_layers, found.decoder_layer_class) == (2, "")
    assert found.lora_parameters("all-linear", 4) == spec("llama-tied").lora_parameters("all-linear", 4)
    assert [problem.severity for problem in found.problems] == ["warning"]
    assert "counted from its weights only" in str(found.problems[0])
    assert "'brand_new': is no model that the installed transformers" in str(found.unloadable[0])
    (tmp_path / "model.safetensors").unlink()
    named = ModelSpec.load(tmp_path)  # by the class that it names, and for plans only
    assert named.num_parameters == model.num_parameters()
    assert "'brand_new': is no model that the installed transformers" in str(named.unloadable[0])


def test_weights_that_are_not_the_configs(tmp_path: Path) -> None:
    model = saved_model("llama", tmp_path)
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    (problem,) = ModelSpec.load(tmp_path).problems
    assert problem.severity == "warning"
    assert f"{model.num_parameters() - 32:,}" in problem.consequence
    tensors["lm_head.weight"] = torch.zeros(100, 32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"lm_head.weight as \[96, 32\], and the weights hold \[100, 32\]"):
        ModelSpec.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "can't be read"),
        ("[1]", "not a mapping"),
        ("{}", "no model_type"),
        ('{"model_type": 3}', "no model_type"),
        ('{"model_type": "nobody"}', "knows. Fix: pip install -U transformers"),
        ('{"model_type": "nobody", "auto_map": {"AutoConfig": "own.Own"}}', "model.trust_remote_code=true"),
        ('{"model_type": "llama", "hidden_size": "x"}', "hidden_size='x': is not a whole number"),
        ('{"model_type": "llama", "hidden_size": 4096.0}', "is not a whole number"),
        ('{"model_type": "llama", "num_attention_heads": 0}', "num_attention_heads=0: must be at least 1"),
        ('{"model_type": "llama", "num_attention_heads": 7}', "doesn't divide hidden_size"),
        ('{"model_type": "llama", "num_key_value_heads": 5}', "doesn't divide num_attention_heads"),
        ('{"model_type": "llama", "num_hidden_layers": 1000000000}', "num_hidden_layers"),
        ('{"model_type": "llama", "tie_word_embeddings": "yes"}', "true or false"),
        ('{"model_type": "llama", "dtype": "float17"}', "is not a dtype"),
        ('{"model_type": "llama", "quantization_config": 4}', "must be a mapping"),
        ('{"model_type": "mixtral", "num_experts_per_tok": 9}', "more than the 8 experts"),
        ('{"model_type": "qwen3_moe", "mlp_only_layers": 3}', "list of layer numbers"),
    ],
)
def test_bad_configs_are_refused(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError) as error:
        ModelSpec.load(tmp_path)
    assert words in str(error.value)
    assert problem_of(error).key.startswith(str(tmp_path / "config.json"))


def test_all_bad_values_are_shown_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        from_config({"model_type": "llama", "hidden_size": None, "vocab_size": 0, "intermediate_size": []}, name="x")
    assert [problem.key for problem in error.value.problems] == [
        "config.json: intermediate_size",
        "config.json: vocab_size",
    ]


# --- light


def test_it_needs_no_torch_and_little_time(tmp_path: Path) -> None:
    saved_model("llama", tmp_path)
    program = f"""
import sys
from unsloth_accel.models.spec import ModelSpec
for name in ({str(tmp_path)!r}, "unsloth/Llama-3.3-70B-Instruct", "unsloth/Qwen3-30B-A3B"):
    spec = ModelSpec.load(name)
    spec.lora_parameters("all-linear", 16), spec.weight_bytes(True), spec.active_parameters, spec.layer_parameters
heavy = {{"torch", "transformers", "safetensors", "huggingface_hub", "numpy", "peft"}} & set(sys.modules)
assert not heavy, heavy
"""
    assert calm_seconds(lambda: subprocess.run([sys.executable, "-c", program], check=True), times=3) < 0.3


def test_item_sizes_are_torchs() -> None:
    assert {name: getattr(torch, name).itemsize for name in ITEM_SIZES} == ITEM_SIZES
