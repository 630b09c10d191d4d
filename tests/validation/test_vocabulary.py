"""A tokenizer with more tokens than the model has embeddings: found on the files, an error where a row needs one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import write_adapter

from unsloth_accel.config.read_run import from_dict
from unsloth_accel.errors import Problem
from unsloth_accel.validation.inputs import input_problems

ROWS = 320
"""Rows of the embedding of `conftest.CONFIG`."""


@pytest.fixture
def model(description: dict[str, Any]) -> Path:
    """The model's directory, with a tokenizer of two tokens more than the embedding has rows."""
    made = Path(description["model"]["name"])
    added = [{"id": ROWS - 1 + index, "content": f"<|{name}|>"} for index, name in enumerate(("in", "a", "b"))]
    write(made / "tokenizer.json", {"model": {"vocab": {"x": 0}}, "added_tokens": added})
    write(made / "tokenizer_config.json", {"eos_token": {"content": "<|in|>"}})
    return made


def write(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values), encoding="utf-8")


def found(description: dict[str, Any], *rows: Any, **training: Any) -> list[Problem]:
    Path(description["data"]["path"]).write_text("".join(json.dumps(row) + "\n" for row in rows * 8), encoding="utf-8")
    return input_problems(from_dict({**description, "training": training}))


def chat(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "c"}]}


def test_an_error_where_a_row_needs_one_else_a_warning(description: dict[str, Any], model: Path) -> None:
    (told,) = found(description, {"text": "plain <|in|>"})
    assert told.severity == "warning"
    assert "its tokenizer has 322 tokens and its embedding 320 rows: a row with one of <|a|>, <|b|>" in told.consequence
    (told,) = found(description, {"text": "x <|b|> <|a|>"})
    assert told.severity == "error"
    assert "<|b|>, token 321, occurs in what is trained" in told.consequence
    assert "give the embedding 322 rows" in told.fix
    (told,) = found(description, chat("<|b|>"))
    assert told.severity == "error"


def test_tokens_that_the_template_and_the_end_bring(description: dict[str, Any], model: Path, tmp_path: Path) -> None:
    assert [one.severity for one in found(description, {"text": "x"}, eos_token="<|a|>")] == ["error"]
    template = tmp_path / "own.jinja"
    template.write_text("<|a|>")
    assert [one.severity for one in found(description, chat("x"), chat_template_path=str(template))] == ["error"]
    assert [one.severity for one in found(description, {"text": "x"}, chat_template_path=str(template))] == ["warning"]
    write(model / "tokenizer_config.json", {"eos_token": "<|b|>"})
    assert [one.severity for one in found(description, {"text": "x"})] == ["error"]
    write(model / "tokenizer_config.json", {"chat_template": "{{ '<|b|>' }}"})
    assert [one.severity for one in found(description, chat("x"))] == ["error"]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("added_tokens.json", {"<|b|>": ROWS}),
        ("tokenizer_config.json", {"added_tokens_decoder": {str(ROWS): {"content": "<|b|>"}}}),
    ],
)
def test_each_file_that_numbers_tokens(name: str, values: Any, description: dict[str, Any]) -> None:
    model = Path(description["model"]["name"])
    write(model / name, values)
    (told,) = found(description, {"text": "<|b|>"})
    assert told.severity == "error"
    assert "its tokenizer has 321 tokens" in told.consequence


@pytest.mark.parametrize("words", [{"b": ROWS}, [["x", 0.5]] * ROWS + [["b", 0.5]]], ids=["BPE", "Unigram"])
def test_the_tokenizer_of_another_model(words: Any, description: dict[str, Any], model: Path) -> None:
    write(model / "tokenizer.json", {"model": {"vocab": words}})
    (told,) = found(description, {"text": "x"})
    assert told.severity == "error"
    assert "it is another model's" in told.consequence


def test_where_nothing_is_wrong_or_known(description: dict[str, Any], model: Path, tmp_path: Path) -> None:
    write(model / "tokenizer.json", {"added_tokens": [{"id": ROWS - 1, "content": "<|in|>"}], "model": None})
    assert found(description, {"text": "<|in|>"}) == []
    (model / "tokenizer.json").write_text("{", encoding="utf-8")
    assert found(description, {"text": "<|in|>"}) == []
    # An adapter's own tokenizer is the one that is used.
    adapter = write_adapter(tmp_path / "adapter", base_model_name_or_path=str(model))
    write(adapter / "tokenizer_config.json", {"added_tokens_decoder": {str(ROWS): {"content": "<|b|>"}}})
    (told,) = found({**description, "model": {"name": str(adapter)}}, {"text": "<|b|>"})
    assert told.severity == "error"
