"""Keys of the chat template: what is a name and what a file, other tools' names for them, and what they can't be."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from unsloth_accel.config.installed_source import source_text
from unsloth_accel.config.read_run import from_dict, load
from unsloth_accel.config.template_fields import PLACE, template_names
from unsloth_accel.errors import ConfigError

KWARGS = "chat_template_kwargs"


def test_the_names_are_unsloths() -> None:
    """Read without importing it: each that its table gets by a text, and those of its one loop."""
    written = set(re.findall(r'^CHAT_TEMPLATES\["([^"]+)"\]', source_text(PLACE), re.MULTILINE))
    assert len(written) > 30
    assert {*template_names()} == written | {"llama-3.2", "llama-3.3", "llama-32", "llama-33"}


def test_reading_a_run_imports_no_unsloth(description: dict[str, Any]) -> None:
    before = "unsloth" in sys.modules
    description["model"]["chat_template"] = "qwen3-thinking"
    assert from_dict(description).model.chat_template == "qwen3-thinking"
    assert ("unsloth" in sys.modules) is before


@pytest.mark.parametrize(
    ("model", "data", "words"),
    [
        ({"chat_template": "chatlm"}, {}, "did you mean chatml?"),
        ({"chat_template": "none.jinja"}, {}, "name a .jinja file"),
        ({"chat_template": "some/where"}, {}, "neither a file nor a name"),
        ({}, {"response_marker": "A:"}, "give data.instruction_marker too, or neither"),
        ({}, {"instruction_marker": "Q:"}, "give data.response_marker too, or neither"),
        ({}, {"instruction_marker": "Q:", "response_marker": "Q:"}, "nothing tells answers from questions"),
        ({}, {"instruction_marker": "### Q to A:", "response_marker": "### Q"}, "or its beginning"),
        ({}, {"instruction_marker": "Q:", "response_marker": " \n"}, "no text that could be found"),
        ({}, {"instruction_marker": "Q:", "response_marker": "A\\n"}, "no end of line"),
        ({}, {"chat_template_kwargs": {"tokenize": False}}, "decided for all rows"),
        ({"added_tokens": ["<a>", "<a>"]}, {}, "names '<a>' twice"),
        ({"added_tokens": [" "]}, {}, "names a token without text"),
        ({}, {"chat_template_kwargs": {"chat_template": "{{ messages }}"}}, "model.chat_template=FILE.jinja"),
        ({"added_tokens": "<a>"}, {}, "list[str] is needed"),
        ({"added_tokens": [{"a": 1}]}, {}, "list[str] is needed"),
        ({"added_tokens": [["a"]]}, {}, "list[str] is needed"),
    ],
)
def test_what_they_cant_be(
    description: dict[str, Any], model: dict[str, Any], data: dict[str, Any], words: str
) -> None:
    description["model"] |= model
    description["data"] |= data
    with pytest.raises(ConfigError, match=re.escape(words)):
        from_dict(description)


def test_a_marker_of_a_wrong_type_is_told_alone(description: dict[str, Any]) -> None:
    description["data"] |= {"instruction_marker": "[user]", "response_marker": ["assistant"]}
    with pytest.raises(ConfigError) as told:
        from_dict(description)
    assert [problem.key for problem in told.value.problems] == ["data.response_marker"]


def test_trls_names_are_taken(description: dict[str, Any], file: Path, tmp_path: Path) -> None:
    template = tmp_path / "t.jinja"
    template.write_text("{{ messages }}", encoding="utf-8")
    training = {"chat_template_path": str(template), KWARGS: {"enable_thinking": False}}
    words = {**training, KWARGS: "{enable_thinking: false}"}
    overrides = [f"training.{key}={value}" for key, value in words.items()]
    for run in (from_dict({**description, "training": training}), load(file, overrides)):
        assert run.model.chat_template == str(template)
        assert run.data.chat_template_kwargs == {"enable_thinking": False}
        assert not {*training} & {*run.training}
    description["model"]["chat_template"] = "chatml"
    with pytest.raises(ConfigError, match=r"set model\.chat_template instead"):
        from_dict({**description, "training": training})


def test_added_tokens_are_trained(description: dict[str, Any]) -> None:
    description["model"]["added_tokens"] = ["<a>"]
    assert from_dict(description).lora.modules_to_save == ["embed_tokens", "lm_head"]
    description["lora"] = {"modules_to_save": ["lm_head"]}
    assert from_dict(description).lora.modules_to_save == ["lm_head", "embed_tokens"]
