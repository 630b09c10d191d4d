"""ModelSpec against transformers on the meta device, PEFT, and checkpoints that transformers wrote."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from unsloth_accel.errors import ConfigError, Problem
from unsloth_accel.models import locate
from unsloth_accel.models.architectures import ARCHITECTURES
from unsloth_accel.models.locate import known_models
from unsloth_accel.models.spec import ITEM_SIZES, ModelSpec, from_config, nf4_bytes

CONFIGS = {path.stem: path for path in sorted((ROOT / "tests" / "model_configs").glob("*.json"))}
DENSE = [name for name in CONFIGS if not name.startswith(("mixtral", "qwen3-moe"))]
EXPERTS = [name for name in CONFIGS if name not in DENSE]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
PROJECTIONS = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]


@cache
def config(name: str) -> Any:
    values = json.loads(CONFIGS[name].read_text())
    return AutoConfig.for_model(**values)


def meta_model(name: str) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config(name))


@cache
def spec(name: str) -> ModelSpec:
    return from_config(json.loads(CONFIGS[name].read_text()), name=name)


def problem_of(error: pytest.ExceptionInfo[ConfigError]) -> Problem:
    assert len(error.value.problems) == 1
    return error.value.problems[0]


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


# --- shapes, against transformers


def test_every_architecture_has_a_config() -> None:
    assert len(CONFIGS) >= 16
    assert {json.loads(path.read_text())["model_type"] for path in CONFIGS.values()} == set(ARCHITECTURES)


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


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_defaults_are_those_of_transformers(model_type: str) -> None:
    theirs = CONFIG_MAPPING[model_type]()
    for key, value in ARCHITECTURES[model_type].defaults.items():
        given = getattr(theirs, key)
        assert (theirs.num_attention_heads if value is None else value) == given, key


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_config_that_leaves_everything_out_is_read_as_transformers_reads_it(model_type: str) -> None:
    values = {"model_type": model_type, "num_hidden_layers": 2}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values))
    expected = {key: tuple(parameter.shape) for key, parameter in model.named_parameters()}
    assert {tensor.name: tensor.shape for tensor in from_config(values, name="x").tensors} == expected


def test_active_parameters_are_those_of_the_experts_that_a_token_uses() -> None:
    found = spec("mixtral")  # 2 layers, 4 experts of which 2 are used, hidden 32, inner 48
    assert found.num_parameters - found.active_parameters == 2 * 2 * (2 * 48 * 32 + 32 * 48)
    assert spec("llama").active_parameters == spec("llama").num_parameters
    # Alibaba's and Mistral's published 3.3 and 12.9 billion.
    assert ModelSpec.load("Qwen/Qwen3-30B-A3B").active_parameters == 3_353_032_704
    assert ModelSpec.load("mistralai/Mixtral-8x7B-v0.1").active_parameters == 12_879_925_248


# --- LoRA, against PEFT


def peft_parameters(name: str, **values: Any) -> int:
    model = get_peft_model(meta_model(name), LoraConfig(task_type="CAUSAL_LM", **values))
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("name", CONFIGS)
def test_lora_of_all_linear_is_pefts(name: str) -> None:
    assert spec(name).lora_parameters("all-linear", 4) == peft_parameters(name, target_modules="all-linear", r=4)


@pytest.mark.parametrize("name", DENSE)
def test_dora_and_saved_modules_are_pefts(name: str) -> None:
    saved = ["lm_head", "embed_tokens"]
    ours = spec(name).lora_parameters("all-linear", 3, use_dora=True, modules_to_save=saved)
    theirs = peft_parameters(
        name, target_modules="all-linear", r=3, use_dora=True, use_rslora=True, modules_to_save=saved
    )
    assert ours == theirs


LISTS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"target_modules": PROJECTIONS}),
    ("llama", {"target_modules": ["q_proj", "mlp.down_proj"], "use_dora": True}),
    ("llama", {"target_modules": ["model.layers.1.self_attn.v_proj"]}),
    ("llama", {"target_modules": r".*layers\.0.*\.(q|k)_proj"}),
    ("llama", {"target_modules": ["q_proj", "up_proj"], "layers": [1]}),
    ("llama", {"target_modules": PROJECTIONS, "modules_to_save": ["norm"]}),
    ("llama", {"target_modules": PROJECTIONS, "modules_to_save": ["mlp", "gate_proj"]}),
    ("llama-tied", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    ("llama-tied", {"target_modules": ["q_proj", "embed_tokens", "lm_head"], "use_dora": True}),
    ("llama-tied", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    ("qwen3", {"target_modules": PROJECTIONS, "use_dora": True}),
    ("phi", {"target_modules": ["q_proj", "dense", "fc1"]}),
    ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"], "use_dora": True}),
    ("gpt-oss", {"target_modules": ATTENTION, "use_dora": True}),
    ("mixtral", {"target_modules": ATTENTION, "use_dora": True}),
    ("mixtral", {"target_modules": [*ATTENTION, "gate", "w1", "w2", "w3"]}),
    ("mixtral", {"target_modules": ["q_proj", "w2"], "modules_to_save": ["embed_tokens"]}),
    ("mixtral", {"target_modules": r".*\.(q_proj|w1|w3)"}),
    ("qwen3-moe", {"target_modules": PROJECTIONS}),
    ("qwen3-moe-mixed", {"target_modules": PROJECTIONS}),
    ("qwen3-moe-mixed", {"target_modules": r".*\.(q_proj|gate_proj|up_proj)"}),
    ("qwen3-moe", {"target_modules": ["q_proj", "down_proj"], "layers": [0]}),
]


@pytest.mark.parametrize("r", [1, 8])
@pytest.mark.parametrize(("name", "values"), LISTS)
def test_lora_of_named_modules_is_pefts(name: str, values: dict[str, Any], r: int) -> None:
    theirs = {"layers_to_transform" if key == "layers" else key: value for key, value in values.items()}
    assert spec(name).lora_parameters(r=r, **values) == peft_parameters(name, r=r, **theirs)


@pytest.mark.parametrize(
    ("name", "values", "key", "words"),
    [
        ("llama", {"target_modules": ["q_porj", "v_proj"]}, "lora.target_modules", "did you mean q_proj?"),
        ("llama", {"target_modules": ["query_key_value"]}, "lora.target_modules", "matches no module"),
        ("phi3", {"target_modules": ["q_proj", "o_proj"]}, "lora.target_modules", "qkv_proj"),
        ("llama", {"target_modules": "q_proj"}, "lora.target_modules", "matches no module's whole name"),
        ("llama", {"target_modules": "*"}, "lora.target_modules", "no regular expression"),
        ("llama", {"target_modules": []}, "lora.target_modules", "names nothing"),
        ("llama", {"target_modules": ["mlp"]}, "lora.target_modules", "no linear layer"),
        ("llama", {"target_modules": ["q_proj"], "layers": [7]}, "lora.target_modules", "in none of the layers [7]"),
        ("llama", {"target_modules": "all-linear", "layers": [1]}, "lora.target_modules", "list of names"),
        ("gpt-oss", {"target_modules": ["gate_up_proj"]}, "lora.target_modules", "parameter of its own"),
        ("mixtral", {"target_modules": ["q_proj", "w1"]}, "lora.target_modules", "w1 and w3"),
        ("mixtral", {"target_modules": "all-linear", "use_dora": True}, "lora.use_dora", "no DoRA"),
        ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lmhead"]}, "lora.modules_to_save", "lm_head"),
        ("llama", {"target_modules": ["lm_head"], "modules_to_save": ["lm_head"]}, "lora.target_modules", "too"),
        ("llama", {"target_modules": ["q_proj"], "r": 0}, "lora.r", "1 or more"),
    ],
)
def test_bad_targets_are_refused(name: str, values: dict[str, Any], key: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        spec(name).lora_parameters(**{"r": 4, **values})
    assert problem_of(error).key == key
    assert words in str(error.value)


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


@pytest.mark.parametrize("name", known_models())
def test_every_known_shape_is_transformers_and_has_its_size(name: str) -> None:
    model = known_models()[name]
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**model["config"]))
    expected = {key: tuple(parameter.shape) for key, parameter in theirs.named_parameters()}
    for hub_id in model["hub_ids"]:
        found = ModelSpec.load(hub_id)
        assert found.num_parameters == model["num_parameters"]
        assert {tensor.name: tensor.shape for tensor in found.tensors} == expected


def test_no_hub_id_has_two_shapes() -> None:
    ids = [hub_id.lower() for model in known_models().values() for hub_id in model["hub_ids"]]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("suffix", ["-bnb-4bit", "-unsloth-bnb-4bit"])
def test_quantized_ids_have_the_shape_of_what_was_quantized(suffix: str) -> None:
    found, plain = ModelSpec.load(f"unsloth/Qwen3-8B{suffix}"), ModelSpec.load("unsloth/qwen3-8b")
    assert (found.quantization, plain.quantization) == ("bnb-4bit", None)
    assert found.tensors == plain.tensors
    assert found.weight_bytes(False) == plain.weight_bytes(True) < plain.weight_bytes(False) / 2


# --- bytes


def test_nf4_bytes_are_those_of_bitsandbytes() -> None:
    # numel: packed, absmax, absmax of absmax; measured on the QuantState of bitsandbytes 0.50.2's quantize_4bit
    # (compress_statistics=True), whose two codes and offset take 64 + 1024 + 4 bytes.
    measured = {16384: (8192, 256, 1), 16448: (8224, 257, 2), 307200: (153600, 4800, 19), 100: (50, 2, 1)}
    for numel, (packed, absmax, nested) in measured.items():
        assert nf4_bytes(numel) == packed + absmax + 4 * nested + 1092


def test_four_bit_leaves_embeddings_norms_lm_head_and_experts() -> None:
    found = spec("llama")
    linear = [weight.out_features * weight.in_features for weight in found.linear_weights]
    assert found.weight_bytes(False) == 2 * found.num_parameters
    assert found.weight_bytes(False, dtype_bytes=4) == 4 * found.num_parameters
    assert found.weight_bytes(True) == 2 * (found.num_parameters - sum(linear)) + sum(map(nf4_bytes, linear))
    experts = sum(tensor.bytes for tensor in spec("mixtral").tensors if ".experts." in tensor.name)
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


# --- local directories


def saved_model(name: str, path: Path, **options: Any) -> Any:
    model = AutoModelForCausalLM.from_config(config(name), dtype=torch.bfloat16)
    model.save_pretrained(path, **options)
    return model


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gemma3-text", "phi", "mixtral", "qwen3-moe-mixed", "gpt-oss"])
@pytest.mark.parametrize("size", ["1GB", "20KB"])
def test_a_saved_checkpoint(tmp_path: Path, name: str, size: str) -> None:
    model = saved_model(name, tmp_path, max_shard_size=size)
    files = list(tmp_path.glob("*.safetensors"))
    assert (len(files) > 1) == (size == "20KB")
    found = ModelSpec.load(tmp_path)
    assert (found.source, found.problems) == ("safetensors headers", ())
    assert {t.name: t.shape for t in found.tensors} == {n: tuple(p.shape) for n, p in model.named_parameters()}
    assert found.stored_bytes == 2 * found.num_parameters == sum(tensor.bytes for tensor in found.tensors)
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
    dtypes = {tensor.name: (tensor.dtype, tensor.bytes) for tensor in ModelSpec.load(tmp_path).tensors}
    assert dtypes["model.norm.weight"] == ("float32", 128)
    assert dtypes["lm_head.weight"] == ("bfloat16", 2 * 96 * 32)


def test_a_quantized_checkpoint_has_logical_shapes_and_stored_bytes(tmp_path: Path) -> None:
    model = saved_model("llama", tmp_path)
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        packed = "_proj" in name
        tensors[name] = torch.zeros(parameter.numel() // 2, 1, dtype=torch.uint8) if packed else parameter.detach()
        if packed:
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
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"brand_new.*gemma2, gemma3_text"):
        ModelSpec.load(tmp_path)


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


def header(entries: Any, data: bytes = b"") -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


DAMAGED = {
    "empty": b"",
    "short": b"\x10\0\0",
    "huge length": (2**63).to_bytes(8, "little") + b"{}",
    "longer than the file": (500).to_bytes(8, "little") + b"{}",
    "garbage": header(b"\xff\xfe garbage"),
    "deep": header(b"[" * 100_000),
    "a list": header([1, 2]),
    "LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "no shape": header({"x": {"dtype": "F32", "data_offsets": [0, 4]}}, b"1234"),
    "an entry that is a word": header({"x": "F32"}),
    "negative": header({"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"1234"),
    "wrong size": header({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234"),
    "unhashable dtype": header({"x": {"dtype": [], "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
    "truncated": header({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"1234"),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_weights_name_the_file(tmp_path: Path, content: bytes) -> None:
    shutil.copy(CONFIGS["llama"], tmp_path / "config.json")
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        ModelSpec.load(tmp_path)
    assert problem_of(error).key == str(file)


def test_shards_that_are_missing_or_cut_short(tmp_path: Path) -> None:
    saved_model("llama", tmp_path, max_shard_size="20KB")
    first, *_, last = sorted(tmp_path.glob("*.safetensors"))
    last.write_bytes(last.read_bytes()[:-10])
    with pytest.raises(ConfigError, match="cut short") as error:
        ModelSpec.load(tmp_path)
    assert problem_of(error).key == str(last)
    first.unlink()
    with pytest.raises(ConfigError, match=f"the first is {first.name}"):
        ModelSpec.load(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    for content in ("{", "[]", '{"weight_map": {}}', '{"weight_map": {"x": 3}}', '{"weight_map": {"x": "../y"}}'):
        index.write_text(content)
        with pytest.raises(ConfigError, match="no weight_map"):
            ModelSpec.load(tmp_path)
    index.unlink()
    with pytest.raises(ConfigError, match="is missing, so the shards"):
        ModelSpec.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "can't be read"),
        ("[1]", "no mapping"),
        ("{}", "no model_type"),
        ('{"model_type": 3}', "no model_type"),
        ('{"model_type": "bert"}', "no known architecture"),
        ('{"model_type": "gemma3", "text_config": {}}', "holds a vision model"),
        ('{"model_type": "llama", "hidden_size": "x"}', "hidden_size='x': is no whole number"),
        ('{"model_type": "llama", "hidden_size": 4096.0}', "is no whole number"),
        ('{"model_type": "llama", "num_attention_heads": 0}', "num_attention_heads=0: must be at least 1"),
        ('{"model_type": "llama", "num_attention_heads": 7}', "doesn't divide hidden_size"),
        ('{"model_type": "llama", "num_key_value_heads": 5}', "doesn't divide num_attention_heads"),
        ('{"model_type": "llama", "num_hidden_layers": 1000000000}', "num_hidden_layers"),
        ('{"model_type": "llama", "tie_word_embeddings": "yes"}', "true or false"),
        ('{"model_type": "llama", "dtype": "float17"}', "is no dtype"),
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


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("./absent", "no such directory"),
        ("a/b/c", "no such directory"),
        ("x\0y", "no such directory"),
        ("no-owner", "no such directory"),
    ],
)
def test_names_that_are_no_model(name: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        ModelSpec.load(name)
    assert problem_of(error).key == "model.name"
    assert words in str(error.value)


def test_directories_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        ModelSpec.load(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds an adapter"):
        ModelSpec.load(tmp_path)
    with pytest.raises(ConfigError, match="is a file"):
        ModelSpec.load(tmp_path / "adapter_config.json")


# --- hub ids


def cached_snapshot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hub_id: str) -> Path:
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    repository = tmp_path / "hub" / f"models--{hub_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abc")
    return snapshot


def test_the_cache_comes_before_the_known_shapes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    snapshot = cached_snapshot(monkeypatch, tmp_path, "unsloth/Qwen3-8B")
    saved_model("qwen3", snapshot, max_shard_size="20KB")
    assert ModelSpec.load("unsloth/Qwen3-8B").source == "safetensors headers"
    assert ModelSpec.load("unsloth/Qwen3-8B", revision="0123abc").tensors == spec("qwen3").tensors
    # An unfinished download is no fault: what is missing comes when the model is loaded.
    next(snapshot.glob("*.safetensors")).unlink()
    found = ModelSpec.load("unsloth/Qwen3-8B")
    assert (found.source, found.num_parameters) == ("config.json", spec("qwen3").num_parameters)
    (snapshot / "config.json").unlink()
    assert ModelSpec.load("unsloth/Qwen3-8B").source == "known shapes"
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE"):
        ModelSpec.load("unsloth/Qwen3-8B", revision="other")


def test_an_unknown_hub_id_downloads_config_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    asked: list[tuple[Any, ...]] = []

    def download(repo_id: str, filename: str, revision: str | None, etag_timeout: float) -> str:
        asked.append((repo_id, filename, revision))
        shutil.copy(CONFIGS["phi3"], tmp_path / "config.json")
        return str(tmp_path / "config.json")

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    found = ModelSpec.load("someone/new-model", revision="v2")
    assert asked == [("someone/new-model", "config.json", "v2")]
    assert (found.source, found.tensors) == ("config.json", spec("phi3").tensors)


def test_without_a_network_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    import huggingface_hub

    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE"):
        ModelSpec.load("someone/new-model")
    monkeypatch.delenv("HF_HUB_OFFLINE")

    def fail(*args: Any, **kwargs: Any) -> str:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(ConfigError, match=r"Name or service not known.*run once online"):
        ModelSpec.load("someone/new-model")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *args, **kwargs: time.sleep(30))
    monkeypatch.setattr(locate, "HUB_TIMEOUT", 0.1)
    started = time.monotonic()
    with pytest.raises(ConfigError, match="no answer from the hub"):
        ModelSpec.load("someone/new-model")
    assert time.monotonic() - started < 5


# --- light


def test_it_needs_no_torch_and_little_time(tmp_path: Path) -> None:
    saved_model("llama", tmp_path)
    program = f"""
import sys, time
from unsloth_accel.models.spec import ModelSpec
for name in ({str(tmp_path)!r}, "unsloth/Llama-3.3-70B-Instruct", "unsloth/Qwen3-30B-A3B"):
    spec = ModelSpec.load(name)
    spec.lora_parameters("all-linear", 16), spec.weight_bytes(True), spec.active_parameters, spec.layer_parameters
heavy = {{"torch", "transformers", "safetensors", "huggingface_hub", "numpy", "peft"}} & set(sys.modules)
print(time.process_time(), sorted(heavy))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    seconds, heavy = done.stdout.split(maxsplit=1)
    assert heavy.strip() == "[]"
    assert float(seconds) < 0.3


def test_item_sizes_are_torchs() -> None:
    assert {name: getattr(torch, name).itemsize for name in ITEM_SIZES} == ITEM_SIZES
