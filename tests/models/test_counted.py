"""Families without a record of their own: transformers' class, built without weights, against what it would train."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from other_models import DENSE, MIXED, TEXT, TOWERS, built, counted, counted_spec, values
from peft import LoraConfig, get_peft_model
from small_models import CONFIGS, meta_model
from small_models import spec as known_spec

from unsloth_accel.config.read_run import from_dict
from unsloth_accel.errors import ConfigError
from unsloth_accel.models import build_without_weights
from unsloth_accel.models import counted as road
from unsloth_accel.models.build_without_weights import build, describe
from unsloth_accel.models.counted import Counted
from unsloth_accel.models.locate import read_config
from unsloth_accel.models.lora_targets import targets
from unsloth_accel.models.safetensors_header import Stored
from unsloth_accel.models.spec import ModelSpec, from_config

pytestmark = pytest.mark.usefixtures("no_hub")
ALL = [*DENSE, *MIXED, *TOWERS]


@pytest.mark.parametrize("name", CONFIGS)
def test_both_roads_count_a_known_family_alike(name: str) -> None:
    known = known_spec(name)
    told = Counted.of(describe(meta_model(name)))
    other = from_config(json.loads(CONFIGS[name].read_text()), name=name, counted=told)
    assert set(other.tensors) == set(known.tensors)
    assert {**other.sizes(), "moe_intermediate_size": 0} == {**known.sizes(), "moe_intermediate_size": 0}
    assert other.decoder_layer_class == known.decoder_layer_class
    assert other.active_parameters == known.active_parameters
    for in_4bit in (False, True):
        assert other.weight_bytes(in_4bit) == known.weight_bytes(in_4bit)
    # On the safe side of the width that was measured.
    width = known.moe_intermediate_size * known.experts_per_token or known.intermediate_size
    assert width <= other.block_width <= 3 * width + 3 * known.num_heads * known.head_dim


@pytest.mark.parametrize("model_type", ALL)
def test_every_parameter_is_counted_once(model_type: str) -> None:
    model, spec = built(model_type), counted_spec(model_type)
    assert {t.name: t.shape for t in spec.tensors} == {n: tuple(p.shape) for n, p in model.named_parameters()}
    assert spec.embedding_parameters == model.get_input_embeddings().weight.numel()
    assert spec.num_layers == 2
    assert spec.decoder_layer_class in model._no_split_modules
    assert bool(spec.tower_parameters) == (model_type in TOWERS)
    assert (spec.num_experts, spec.experts_per_token) in ((0, 0), (4, 2))
    assert spec.source == "transformers' class"


@pytest.mark.parametrize("model_type", ALL)
def test_lora_on_its_projections_is_pefts(model_type: str) -> None:
    """But for a mixture's MLP, whose names PEFT turns into LoRA on the fused experts as well."""
    spec = counted_spec(model_type)
    reached = {weight.name for weight in spec.linear_weights if not (spec.num_experts and ".mlp." in weight.name)}
    leaves = sorted({name.rpartition(".")[2] for name in reached})
    exact = "|".join(name.replace(".", r"\.") for name in sorted(reached))
    adapted = get_peft_model(build(values(model_type), None), LoraConfig(target_modules=exact, r=4))
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    assert spec.lora_parameters(leaves, 4) == trained


def test_lora_of_a_mixture_counts_shared_and_fused_experts() -> None:
    spec = counted_spec("glm4_moe")  # one dense block and one of four experts, with one shared
    found = targets(from_dict({"model": {"name": "x"}, "lora": {"r": 4}}, to_plan=True), spec)
    fused = sum(4 * experts * (a + b) for experts, a, b in (tensor.shape for tensor in spec.fused_experts))
    assert found.parameters == spec.lora_parameters("all-linear", 4) + fused
    assert fused == 4 * 4 * ((48 + 64) + (64 + 24))


def test_a_router_gets_no_lora() -> None:
    spec = counted_spec("llama4_text")  # whose routers are linear layers that return two tensors
    assert sum(tensor.name.endswith(".router.weight") for tensor in spec.tensors) == 2
    assert not [weight.name for weight in spec.linear_weights if weight.name.endswith("router")]


def test_towers_get_no_lora_and_no_token_passes_them() -> None:
    spec = counted_spec("gemma3")
    assert all(weight.name.startswith("model.language_model.layers.") for weight in spec.linear_weights)
    assert spec.active_parameters == spec.num_parameters - spec.tower_parameters
    with pytest.raises(ConfigError, match="matches no module"):
        spec.lora_parameters(["fc1"], 4)  # of the vision tower only


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "paligemma"}, "sees later tokens of a row, too: a PaliGemmaConfig trained on text alone"),
        ({"model_type": "t5"}, "predicts no next token: transformers builds no causal language model of a T5Config"),
        ({"model_type": "granite", **TEXT, "hidden_size": "x"}, "can't be built by transformers"),
        ({"model_type": "gemma3n"}, "needs the package timm, which is not installed here. Fix: pip install timm"),
    ],
)
def test_what_transformers_refuses_is_told(config: dict[str, Any], words: str) -> None:
    with pytest.raises(Exception) as raised:  # noqa: PT011  (of many kinds)
        build(config, None)
    refusal = road._refusal(type(raised.value).__name__, str(raised.value), config, "config.json")
    assert words in str(refusal)


def test_weights_that_contradict_a_counted_config() -> None:
    shapes = [(tensor.name, tensor.shape) for tensor in counted("granite").tensors]
    stored = [Stored(name=name, shape=shape, dtype="bfloat16", bytes=0) for name, shape in shapes]
    assert len(counted_spec("granite", stored=stored).problems) == 1
    assert "the weights hold" in str(counted_spec("granite", stored=stored[1:]).problems[1])
    stored[1] = Stored(name=shapes[1][0], shape=(3, 3), dtype="bfloat16", bytes=0)
    with pytest.raises(ConfigError, match=r"and the weights hold \[3, 3\]"):
        counted_spec("granite", stored=stored)


def test_a_model_is_built_once_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "config.json").write_text(json.dumps(values("granite")), encoding="utf-8")
    found = ModelSpec.load(tmp_path)
    assert found.tensors == counted_spec("granite").tensors
    road._built.cache_clear()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a second process"))
    monkeypatch.setattr(build_without_weights, "build", lambda *_: pytest.fail("nor here"))
    assert ModelSpec.load(tmp_path) == found


def test_without_torch_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(road, "_NEEDED", ("torch", "no-such-package"))
    (tmp_path / "config.json").write_text(json.dumps(values("granite")), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"known without no-such-package.*Fix: pip install no-such-package"):
        ModelSpec.load(tmp_path)


def _dense(model_type: str, *sizes: int, **others: Any) -> dict[str, Any]:
    """Return a config.json of vocabulary, hidden, intermediate, layers, heads, key-value heads."""
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    sized = dict(zip((*keys, "num_key_value_heads"), sizes, strict=True))
    return {"model_type": model_type, **sized, "tie_word_embeddings": model_type == "cohere", **others}


def _qwen3_vl(
    hidden: int, inner: int, layers: int, heads: int, width: int, mlp: int, depth: int, deep: list[int], tied: bool
) -> dict[str, Any]:
    text = _dense("qwen3_vl_text", 151936, hidden, inner, layers, heads, 8, head_dim=128, tie_word_embeddings=tied)
    vision = {"hidden_size": width, "intermediate_size": mlp, "depth": depth, "deepstack_visual_indexes": deep}
    vision |= {"num_heads": 16, "out_hidden_size": hidden, "num_position_embeddings": 2304}
    return {"model_type": "qwen3_vl", "text_config": text, "vision_config": vision, "tie_word_embeddings": tied}


PUBLISHED: dict[str, tuple[int, dict[str, Any]]] = {
    "openai-community/gpt2": (124_439_808, {"model_type": "gpt2"}),
    "openai-community/gpt2-medium": (
        354_823_168,
        {"model_type": "gpt2", "n_embd": 1024, "n_layer": 24, "n_head": 16},
    ),
    "HuggingFaceTB/SmolLM3-3B": (3_075_098_624, {"model_type": "smollm3"}),
    "allenai/OLMo-2-1124-7B": (7_298_617_344, _dense("olmo2", 100352, 4096, 11008, 32, 32, 32)),
    "allenai/OLMo-2-1124-13B": (13_716_198_400, _dense("olmo2", 100352, 5120, 13824, 40, 40, 40)),
    "allenai/OLMo-2-0325-32B": (32_234_279_936, _dense("olmo2", 100352, 5120, 27648, 64, 40, 8)),
    "CohereForAI/aya-23-8B": (8_028_033_024, _dense("cohere", 256000, 4096, 14336, 32, 32, 8)),
    "stabilityai/stablelm-2-1_6b": (
        1_644_515_328,
        _dense("stablelm", 100352, 2048, 5632, 24, 32, 32, use_qkv_bias=True),
    ),
    "Qwen/Qwen1.5-MoE-A2.7B": (
        14_315_784_192,
        _dense("qwen2_moe", 151936, 2048, 5632, 24, 16, 16)
        | {"num_experts": 60, "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632},
    ),
    "deepseek-ai/DeepSeek-V2-Lite": (
        15_706_484_224,
        _dense("deepseek_v2", 102400, 2048, 10944, 27, 16, 16, q_lora_rank=None, first_k_dense_replace=1)
        | {"n_routed_experts": 64, "n_shared_experts": 2, "moe_intermediate_size": 1408},
    ),
    "Qwen/Qwen3-VL-2B-Instruct": (2_127_532_032, _qwen3_vl(2048, 6144, 28, 16, 1024, 4096, 24, [5, 11, 17], True)),
    "Qwen/Qwen3-VL-4B-Instruct": (4_437_815_808, _qwen3_vl(2560, 9728, 36, 32, 1024, 4096, 24, [5, 11, 17], True)),
    "Qwen/Qwen3-VL-8B-Instruct": (8_767_123_696, _qwen3_vl(4096, 12288, 36, 32, 1152, 4304, 27, [8, 16, 24], False)),
    "Qwen/Qwen3-VL-32B-Instruct": (33_357_390_064, _qwen3_vl(5120, 25600, 64, 64, 1152, 4304, 27, [8, 16, 24], False)),
}
"""Sizes as their repositories' safetensors metadata has them, and the values of config.json on which they depend."""


@pytest.mark.parametrize("hub_id", PUBLISHED)
def test_a_counted_model_has_the_published_size(hub_id: str) -> None:
    count, config = PUBLISHED[hub_id]
    spec = from_config(config, name=hub_id, counted=Counted.of(describe(build(config, None))))
    assert spec.num_parameters == count


OWN_CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path({place!r}).touch()


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_a_models_own_code_runs_only_where_it_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    directory, ran = tmp_path / "model", tmp_path / "ran"
    directory.mkdir()
    (directory / "own.py").write_text(OWN_CODE.format(place=str(ran)), encoding="utf-8")
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    described = _dense("own", 96, 64, 96, 2, 4, 2) | {"auto_map": names}
    (directory / "config.json").write_text(json.dumps(described), encoding="utf-8")
    guessed = ModelSpec.load(directory)
    assert "it brings its own code. Fix: model.trust_remote_code=true" in " ".join(map(str, guessed.unloadable))
    assert guessed.source == "config.json's fields"
    assert not ran.exists()
    found = ModelSpec.load(directory, trust_remote_code=True)
    assert ran.exists()
    assert not found.unloadable
    assert (found.decoder_layer_class, found.num_layers) == ("LlamaDecoderLayer", 2)
    assert found.num_parameters == from_config({**described, "model_type": "llama"}, name="x").num_parameters


def test_a_layer_of_groups_gets_no_lora() -> None:
    """DeepSeek-V4's `o_a_proj` is a Linear that divides its input, as PEFT's factors beside it don't."""
    import torch

    from unsloth_accel.models.build_without_weights import _maps

    class Grouped(torch.nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return input.unflatten(-1, (2, -1))

    class Scaled(torch.nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    layers = (torch.nn.Linear, Scaled, Grouped)
    assert [_maps(layer(4, 6, device="meta")) for layer in layers] == [True, True, False]


def test_a_number_is_no_name_of_a_target() -> None:
    """PEFT would take it for every module of that name: a decoder block, too."""
    from unsloth_accel.models.lora_targets import _end

    assert _end("model.layers.3.mlp.adapters.0") == "adapters.0"
    assert _end("model.layers.3.mlp.up_proj") == "up_proj"


def test_a_float_that_json_has_no_name_for_is_read_as_transformers_writes_it(tmp_path: Path) -> None:
    """Else transformers doesn't build the model to be counted, and its weights are taken for an unknown one's."""
    from transformers import AutoConfig

    described = values("nemotron_h") | {"time_step_limit": [0.0, float("inf")]}
    AutoConfig.for_model(**described).save_pretrained(tmp_path)
    assert "__float__" in (tmp_path / "config.json").read_text(encoding="utf-8")
    assert read_config(tmp_path / "config.json")["time_step_limit"][1] == float("inf")
    assert ModelSpec.load(tmp_path).num_parameters == counted_spec("nemotron_h").num_parameters
