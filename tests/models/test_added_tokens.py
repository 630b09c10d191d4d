"""Added tokens: the rows that the embeddings have with them, what is trained then, and where it can't be."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_adapter
from safetensors.torch import save_file

from unsloth_accel.config.read_run import from_dict
from unsloth_accel.config.start_adapter import ADAPTER_WEIGHTS
from unsloth_accel.errors import ConfigError
from unsloth_accel.models import lora_size
from unsloth_accel.models.added_tokens import trained_rows, with_added_tokens
from unsloth_accel.models.lora_targets import targets
from unsloth_accel.models.spec import ModelSpec
from unsloth_accel.validation.model_fit import model_fit_problems

ROWS, WIDTH = 320, 64
"""Embedding of `conftest.CONFIG`, whose head is tied to it."""


def write_tokenizer(model: Path, tokens: int) -> None:
    words = {f"w{number}": number for number in range(tokens)}
    (model / "tokenizer.json").write_text(json.dumps({"model": {"vocab": words}, "added_tokens": []}), encoding="utf-8")


@pytest.mark.parametrize(
    ("tokens", "added", "rows"),
    [
        (ROWS, ["<a>", "<b>"], ROWS + 2),
        (ROWS, ["<a>", "w3"], ROWS + 1),
        (ROWS - 5, ["<a>", "<b>"], ROWS),  # rows that no token had
        (ROWS - 1, ["<a>", "<b>"], ROWS + 1),
        (None, ["<a>"], ROWS + 1),  # no tokenizer's files
        (ROWS, [], ROWS),
    ],
)
def test_rows_and_trained_parameters(
    description: dict[str, Any], tokens: int | None, added: list[str], rows: int
) -> None:
    model = Path(description["model"]["name"])
    if tokens:
        write_tokenizer(model, tokens)
    description["model"]["added_tokens"] = added
    run, base = from_dict(description), ModelSpec.load(str(model))
    spec = with_added_tokens(run, base)
    assert spec.vocab_size == rows
    assert spec.num_parameters - base.num_parameters == (rows - ROWS) * WIDTH
    plain = from_dict({**description, "model": {"name": str(model)}})
    more = [targets(run, spec, on_cpu=cpu).parameters - targets(plain, base).parameters for cpu in (True, False)]
    assert more == ([2 * rows * WIDTH, rows * WIDTH] if added else [0, 0]), "on a GPU Unsloth keeps the two tied"
    assert targets(run, spec).saved_twice == (rows * WIDTH if added else 0)
    assert targets(run, spec).whole == (("embed_tokens", "lm_head") if added else ())


def test_modules_are_gone_through_once(description: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    gone: list[ModelSpec] = []
    through = lora_size._modules
    monkeypatch.setattr(lora_size, "_modules", lambda spec: gone.append(spec) or through(spec))
    description["lora"] = {"modules_to_save": ["embed_tokens", "lm_head"]}
    targets(from_dict(description), ModelSpec.load(description["model"]["name"]))
    assert len(gone) == 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"method": "reward"}, "score head in place of lm_head"),
        ({"method": "grpo", "training": {"use_vllm": True}}, "training.use_vllm=false"),
    ],
)
def test_what_cant_train_them(description: dict[str, Any], values: dict[str, Any], words: str) -> None:
    description["model"]["added_tokens"] = ["<a>"]
    run = from_dict({**description, **values})
    with pytest.raises(ConfigError, match=re.escape(words)):
        targets(run, ModelSpec.load(description["model"]["name"]))


def test_tokens_that_are_there_already_are_told(description: dict[str, Any]) -> None:
    write_tokenizer(Path(description["model"]["name"]), ROWS)
    description["model"]["added_tokens"] = ["<a>", "w3"]
    (problem,) = model_fit_problems(from_dict(description))
    assert problem.severity == "warning"
    assert "w3 is a token of the model's tokenizer already" in str(problem)
    description["training"] = {"eos_token": "<a>"}
    assert [one.severity for one in model_fit_problems(from_dict(description))] == ["warning"]


@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_goes_on_with_as_many_tables_as_it_has(
    tied: bool, description: dict[str, Any], tmp_path: Path
) -> None:
    base, both = description["model"]["name"], ["embed_tokens", "lm_head"]
    said = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True} if tied else {"modules_to_save": both}
    adapter = write_adapter(tmp_path / "adapter", base_model_name_or_path=base, **said)
    lora = {"target_modules": ["q_proj", "v_proj", *both]}
    run = from_dict({**description, "model": {"name": str(adapter)}, "lora": lora})
    spec = ModelSpec.load(base)
    plain = spec.lora_parameters(["q_proj", "v_proj"], run.lora.r)
    for on_cpu in (True, False):
        assert targets(run, spec, on_cpu=on_cpu).parameters - plain == (1 if tied else 2) * ROWS * WIDTH


def test_embeddings_beside_experts_alone_are_counted(tmp_path: Path) -> None:
    spec = ModelSpec.load("Qwen/Qwen3-30B-A3B")
    names = ["gate_proj", "up_proj", "down_proj"]
    given = {"model": {"name": spec.name}, "data": {"path": "x"}, "output_dir": str(tmp_path)}
    plain, more = (
        targets(from_dict({**given, "lora": {"target_modules": names, "modules_to_save": whole}}), spec).parameters
        for whole in ([], ["embed_tokens", "lm_head"])
    )
    assert more - plain == 2 * spec.vocab_size * spec.hidden_size


def test_an_adapter_brings_its_rows_and_no_others(description: dict[str, Any], tmp_path: Path) -> None:
    base = description["model"]["name"]
    said = {"base_model_name_or_path": base, "modules_to_save": ["embed_tokens", "lm_head"]}
    adapter = write_adapter(tmp_path / "adapter", **said)
    name = "base_model.model.model.embed_tokens.weight"
    save_file({name: torch.zeros(ROWS + 3, WIDTH)}, adapter / ADAPTER_WEIGHTS)
    assert trained_rows(adapter) == ROWS + 3
    description["model"] = {"name": str(adapter)}
    description["lora"] = {}
    assert with_added_tokens(from_dict(description), ModelSpec.load(base)).vocab_size == ROWS + 3
    write_tokenizer(adapter, ROWS)
    (adapter / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    description["model"]["added_tokens"] = ["w3"]
    assert targets(from_dict(description), ModelSpec.load(base)).whole
    description["model"]["added_tokens"] = ["<new>"]
    with pytest.raises(ConfigError, match=r"was trained without '<new>'.*merge"):
        targets(from_dict(description), ModelSpec.load(base))
