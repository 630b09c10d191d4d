"""The `lora` section: Unsloth's spelling, and what Unsloth and PEFT would refuse."""

from pathlib import Path
from typing import Any

import pytest
from conftest import write_yaml

from unsloth_accel.config.lora_fields import given_to_peft, reads_the_base
from unsloth_accel.config.read_run import from_dict, load
from unsloth_accel.config.run_config import LoraConfig
from unsloth_accel.errors import ConfigError


def lora(**values: Any) -> LoraConfig:
    return from_dict({"model": {"name": "x/y"}, "lora": values}, to_plan=True).lora


def test_unsloth_spells_two_of_them_otherwise(tmp_path: Path) -> None:
    assert lora(lora_alpha=32, lora_dropout=0.1) == LoraConfig(alpha=32, dropout=0.1)
    file = write_yaml(tmp_path / "run.yaml", {"model": {"name": "x/y"}, "lora": {"alpha": 8, "lora_dropout": 0.2}})
    assert load(file, ["lora.lora_alpha=4"], to_plan=True).lora == LoraConfig(alpha=4, dropout=0.2)
    with pytest.raises(ConfigError, match=r"lora\.lora_alpha.*did you mean lora\.alpha"):
        lora(lora_alpha=32, alpha=16)


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"init_lora_weights": "pissa_niter_4"}, "drawn anew"),
        ({"init_lora_weights": "corda"}, "a batch of rows"),
        ({"init_lora_weights": "zero"}, "no way to begin.*one of: true, false, gaussian"),
        ({"init_lora_weights": 1}, "no way to begin"),
        ({"init_lora_weights": "orthogonal", "r": 3}, r"an even rank.*lora\.r=4"),
        ({"bias": "some"}, "one of: none, all, lora_only"),
        ({"loftq_config": {"loftq_bits": 4}}, "would be ignored"),
        ({"init_lora_weights": "loftq", "loftq_config": {"loftq_bit": 4}}, "has no loftq_bit.*did you mean loftq_bits"),
        ({"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": "4"}}, "loftq_bits: 4"),
        ({"modules_to_save": ["norm"]}, "names norm; Unsloth trains no others whole"),
        ({"target_parameters": "mlp.experts.down_proj"}, "a list of names"),
        ({"layers_to_transform": 3}, "a list of blocks' numbers"),
        ({"layers_to_transform": [-1]}, "a list of blocks' numbers"),
        ({"layers_pattern": "layers"}, "which is not given"),
    ],
)
def test_what_would_fail_is_told(values: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        lora(**values)


def test_what_is_as_usual_is_not_given() -> None:
    assert given_to_peft(lora(r=8, alpha=4)) == {}
    said = {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}, "layers_to_transform": [0, 1]}
    assert given_to_peft(lora(**said)) == {**said, "loftq_config": {"loftq_bits": 4, "loftq_iter": 1}}
    assert given_to_peft(lora(init_lora_weights="loftq"))["loftq_config"] == {"loftq_bits": 4, "loftq_iter": 1}


@pytest.mark.parametrize(
    ("values", "whole"), [({}, False), ({"use_dora": True}, True), ({"init_lora_weights": "pissa"}, True)]
)
def test_weights_that_begin_as_the_bases_need_it_whole(values: dict[str, Any], whole: bool) -> None:
    given = lora(**values)
    reads = reads_the_base(use_dora=given.use_dora, init_lora_weights=given.init_lora_weights)
    assert reads is whole
