from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_models import problem_of, saved_model, spec
from transformers import AutoConfig, AutoModelForCausalLM

from unsloth_accel.errors import ConfigError
from unsloth_accel.models.known_names import known_models
from unsloth_accel.models.spec import ModelSpec

pytestmark = pytest.mark.usefixtures("no_hub")


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
    with pytest.raises(ConfigError, match=r"its weights, adapter_model\.safetensors, are missing"):
        ModelSpec.load(tmp_path)
    with pytest.raises(ConfigError, match="is a file"):
        ModelSpec.load(tmp_path / "adapter_config.json")


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
