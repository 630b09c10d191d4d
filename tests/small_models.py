"""Small models of every family, by transformers and by us."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from transformers import AutoConfig, AutoModelForCausalLM

from unsloth_accel.errors import ConfigError, Problem
from unsloth_accel.models.spec import ModelSpec, from_config

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


def saved_model(name: str, path: Path, **options: Any) -> Any:
    model = AutoModelForCausalLM.from_config(config(name), dtype=torch.bfloat16)
    model.save_pretrained(path, **options)
    return model
