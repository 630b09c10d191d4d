from __future__ import annotations

import json

import pytest
import torch
from small_models import CONFIGS
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from unsloth_accel.models.architectures import ARCHITECTURES
from unsloth_accel.models.spec import from_config

pytestmark = pytest.mark.usefixtures("no_hub")


def test_every_architecture_has_a_config() -> None:
    assert len(CONFIGS) >= 16
    assert {json.loads(path.read_text())["model_type"] for path in CONFIGS.values()} == set(ARCHITECTURES.names)


@pytest.mark.parametrize("model_type", ARCHITECTURES.names)
def test_defaults_are_those_of_transformers(model_type: str) -> None:
    theirs = CONFIG_MAPPING[model_type]()
    for key, value in ARCHITECTURES[model_type].defaults.items():
        given = getattr(theirs, key)
        assert (theirs.num_attention_heads if value is None else value) == given, key


@pytest.mark.parametrize("model_type", ARCHITECTURES.names)
def test_a_config_that_leaves_everything_out_is_read_as_transformers_reads_it(model_type: str) -> None:
    values = {"model_type": model_type, "num_hidden_layers": 2}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values))
    expected = {key: tuple(parameter.shape) for key, parameter in model.named_parameters()}
    assert {tensor.name: tensor.shape for tensor in from_config(values, name="x").tensors} == expected
