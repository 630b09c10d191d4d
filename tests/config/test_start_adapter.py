"""A run that begins with an adapter: what is taken from it, what contradicts it, and what no run can go on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import write_adapter
from plans import CPU

from unsloth_accel.config.read_run import from_dict
from unsloth_accel.config.run_config import PROJECTIONS, RunConfig
from unsloth_accel.config.start_adapter import find_adapter, tokenizer_of_model
from unsloth_accel.errors import ConfigError
from unsloth_accel.models.spec import ModelSpec
from unsloth_accel.planning.planner import plan


@pytest.fixture
def adapter(description: dict[str, Any], tmp_path: Path) -> Path:
    """An adapter on the model that `description` names."""
    return write_adapter(tmp_path / "adapter", base_model_name_or_path=description["model"]["name"])


def begun(description: dict[str, Any], name: Path | str, **lora: Any) -> RunConfig:
    return from_dict({**description, "model": {"name": str(name)}, "lora": lora})


def refused(description: dict[str, Any], name: Path | str, **lora: Any) -> str:
    with pytest.raises(ConfigError) as told:
        begun(description, name, **lora)
    return str(told.value)


def test_what_is_left_out_is_the_adapters(description: dict[str, Any], adapter: Path) -> None:
    lora = begun(description, adapter).lora
    assert (lora.r, lora.alpha, lora.dropout, lora.use_rslora) == (8, 24, 0.1, False)
    assert lora.target_modules == ["q_proj", "v_proj"]
    assert begun(description, adapter, r=8, target_modules=["q_proj", "v_proj"], dropout=0.0).lora.dropout == 0


def test_what_contradicts_is_refused_each_with_its_fix(description: dict[str, Any], adapter: Path) -> None:
    told = refused(description, adapter, r=16, alpha=16, use_rslora=True, target_modules="all-linear").split("\n")
    assert len(told) == 4
    assert told[0].startswith(f"error: lora.r=16: the adapter {adapter}, which the run begins with, has 8: its weights")
    assert told[0].endswith(f"for another one unsloth-accel merge {adapter} MERGED, and model.name=MERGED")
    write_adapter(adapter, base_model_name_or_path=description["model"]["name"], target_modules=PROJECTIONS[::-1])
    assert begun(description, adapter, target_modules="all-linear").lora.r == 8
    write_adapter(adapter, base_model_name_or_path=description["model"]["name"], layers_to_transform=[0, 1])
    assert begun(description, adapter, layers_to_transform=[1, 0]).lora.layers_to_transform == [1, 0]
    assert "lora.layers_to_transform=[[0]]" in refused(description, adapter, layers_to_transform=[[0]])


def test_modules_that_are_trained_whole(description: dict[str, Any], adapter: Path) -> None:
    """run.yaml names them among the targets; of two tied ones PEFT's config may keep one."""
    base = description["model"]["name"]
    write_adapter(adapter, base_model_name_or_path=base, modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    assert begun(description, adapter).lora.target_modules == ["q_proj", "v_proj", "embed_tokens"]
    both = ["q_proj", "v_proj", "lm_head", "embed_tokens"]
    begun(description, adapter, target_modules=both)
    write_adapter(adapter, base_model_name_or_path=base, modules_to_save=["embed_tokens"])
    assert "lora.target_modules" in refused(description, adapter, target_modules=both)


def test_embeddings_that_an_adapter_has_not(description: dict[str, Any], adapter: Path) -> None:
    assert "lora.modules_to_save=['lm_head']: the adapter" in refused(description, adapter, modules_to_save=["lm_head"])
    with pytest.raises(ConfigError) as told:
        from_dict({**description, "model": {"name": str(adapter), "added_tokens": ["<call>"]}, "lora": {}})
    assert "model.added_tokens=['<call>']: need embeddings that learn them" in str(told.value)
    assert "lora." not in str(told.value)


def test_experts_go_by_the_names_of_their_modules(description: dict[str, Any], adapter: Path) -> None:
    """Unsloth gives LoRA to their fused parameters, where run.yaml names projections."""
    attention, base = ["q_proj", "k_proj", "v_proj", "o_proj"], description["model"]["name"]
    experts = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    write_adapter(adapter, base_model_name_or_path=base, target_modules=attention, target_parameters=experts)
    assert {*begun(description, adapter).lora.target_modules} == {*PROJECTIONS}
    begun(description, adapter, target_modules=PROJECTIONS)
    begun(description, adapter, target_modules="all-linear")
    write_adapter(adapter, base_model_name_or_path=base, target_modules=["q_proj"], target_parameters=experts[:1])
    begun(description, adapter, target_modules=["q_proj", "gate_proj"])
    assert "lora.target_modules" in refused(description, adapter, target_modules=["q_proj"])


def test_the_plan_is_its_bases_and_says_so(description: dict[str, Any], adapter: Path) -> None:
    base = description["model"]["name"]
    made = plan(begun(description, adapter), CPU)
    assert made.spec == ModelSpec.load(base)
    assert (made.to_dict()["adapter"], made.to_dict()["model"]["name"]) == (str(adapter), base)
    assert f"adapter    {adapter}, rank 8, alpha 24" in str(made)
    again = from_dict(made.resolved())  # what the processes read
    assert (again.model.name, again.lora) == (str(adapter), made.run.lora)
    write_adapter(adapter, base_model_name_or_path=base, target_modules=r".*\.(q|v)_proj")
    pattern = plan(begun(description, adapter), CPU)
    assert pattern.run.lora.target_modules == r".*\.(q|v)_proj"
    assert from_dict(pattern.resolved()).lora == pattern.run.lora
    assert pattern.memory == made.memory
    with pytest.raises(ConfigError, match=r"lora\.r=16: the adapter"):  # a run that was made without reading
        plan(RunConfig(model=made.run.model, output_dir="-"), CPU)


def test_where_its_base_and_its_tokenizer_are(
    description: dict[str, Any], tmp_path: Path, adapter: Path, no_hub: None
) -> None:
    base = description["model"]["name"]
    assert tokenizer_of_model(str(adapter)) == base
    (adapter / "tokenizer_config.json").touch()
    assert tokenizer_of_model(str(adapter)) == str(adapter)
    assert tokenizer_of_model(base) == base
    write_adapter(adapter, base_model_name_or_path="../model")  # beside it, whatever the working directory
    found = find_adapter(str(adapter))
    assert found is not None
    assert found.base == base
    cached = tmp_path / "hub" / "models--someone--adapter"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("1a")
    write_adapter(cached / "snapshots" / "1a", base_model_name_or_path=base)
    assert begun(description, "someone/adapter").lora.r == 8
    assert find_adapter("someone/other") is None
    (adapter / "model.safetensors").touch()  # a whole model with an adapter beside it
    assert find_adapter(str(adapter)) is None


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"base_model_name_or_path": ""}, "names no base model. Fix: write base_model_name_or_path into it"),
        ({"base_model_name_or_path": "/gone/model"}, "its base model, /gone/model, is not there. Fix: write its place"),
        ({"peft_type": "IA3"}, "is an adapter of the kind IA3"),
        ({"init_lora_weights": "pissa"}, "is an adapter of pissa on a base that this changed"),
        ({"lora_alpha": 0.5}, "lora_alpha=0.5; a run has whole numbers. Fix: unsloth-accel merge"),
        ({"base_model_name_or_path": "../adapter"}, "is an adapter on another one"),
    ],
)
def test_what_no_run_can_begin_with(
    said: dict[str, Any], words: str, description: dict[str, Any], adapter: Path
) -> None:
    write_adapter(adapter, **{"base_model_name_or_path": description["model"]["name"]} | said)
    assert words in refused(description, adapter)


def test_an_adapter_without_its_files(description: dict[str, Any], adapter: Path) -> None:
    (adapter / "adapter_config.json").write_text("{", encoding="utf-8")
    assert "its adapter_config.json can't be read" in refused(description, adapter)
    (adapter / "adapter_model.safetensors").unlink()
    assert "its weights, adapter_model.safetensors, are missing" in refused(description, adapter)
