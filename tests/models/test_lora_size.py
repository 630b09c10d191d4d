from __future__ import annotations

from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from small_models import ATTENTION, CONFIGS, DENSE, PROJECTIONS, meta_model, spec

pytestmark = pytest.mark.usefixtures("no_hub")


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
