"""What a run's lora section trains of a model; or why PEFT can't."""

from __future__ import annotations

from typing import Any

import pytest

from unsloth_accel.config.read_run import from_dict
from unsloth_accel.errors import ConfigError
from unsloth_accel.models.lora_targets import Targets, targets
from unsloth_accel.models.spec import ModelSpec

pytestmark = pytest.mark.usefixtures("no_hub")

MIXTURE, DENSE = "Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-0.6B"


def chosen(model: str, **lora: Any) -> Targets:
    values = {"model": {"name": model}, "data": {"path": "-"}, "output_dir": "-", "lora": lora}
    return targets(from_dict(values, to_plan=True), ModelSpec.load(model))


@pytest.mark.parametrize(
    ("model", "lora", "key", "words"),
    [
        (MIXTURE, {"use_dora": True}, "lora.use_dora", "no DoRA"),
        (MIXTURE, {"dropout": 0.1}, "lora.dropout", "no dropout"),
        (MIXTURE, {"init_lora_weights": "pissa"}, "lora.init_lora_weights", "no such start"),
        (MIXTURE, {"layers_to_transform": [1]}, "lora.layers_to_transform", "experts of every block"),
        (DENSE, {"target_parameters": ["input_layernorm.weight"]}, "lora.target_parameters", "is no matrix"),
        (DENSE, {"target_parameters": ["mlp.down_proj.weight"]}, "lora.target_parameters", "take down_proj from"),
        (DENSE, {"layers_to_transform": [1], "layers_pattern": "layer"}, "lora.layers_pattern", "did you mean layers?"),
    ],
)
def test_what_peft_lacks_is_refused(model: str, lora: dict[str, Any], key: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        chosen(model, **lora)
    (problem,) = refused.value.problems
    assert problem.key == key
    assert words in str(refused.value)


def test_the_fix_leaves_the_experts_out() -> None:
    """Their modules' names, too, out of which PEFT makes LoRA of the fused experts."""
    attention = ("q_proj", "k_proj", "v_proj", "o_proj")
    for lora in ({"use_dora": True}, {"dropout": 0.1}, {"init_lora_weights": "pissa"}, {"layers_to_transform": [1]}):
        assert chosen(MIXTURE, target_parameters=[], **lora).modules == attention
    alone = chosen(MIXTURE, target_modules=list(attention))
    assert chosen(MIXTURE, target_parameters=[]).parameters == alone.parameters
    assert chosen(DENSE, target_parameters=[]) == chosen(DENSE)


def test_experts_of_a_block_are_named_with_it() -> None:
    own = {"layers_to_transform": [1], "target_parameters": ["layers.1.mlp.experts.gate_up_proj"]}
    without = chosen(MIXTURE, layers_to_transform=[1], target_parameters=[])
    assert chosen(MIXTURE, **own).parameters - without.parameters == 16 * 128 * (2048 + 2 * 768)
