"""A model that learns answers without an end at which generation stops is warned of, with a fix that works."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import SMOLLM2, write_adapter
from row_files import CHAT, write

from unsloth_accel.config.read_run import from_dict
from unsloth_accel.config.run_config import RunConfig
from unsloth_accel.data.answer_end import unending_answers
from unsloth_accel.data.chat_template import choose_template
from unsloth_accel.errors import ConfigError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Tokenizer of a base model that ends text with another token than its chat template ends answers."""
    made = tmp_path / "base"
    made.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "chat_template.jinja"):
        if (SMOLLM2 / name).is_file():
            shutil.copy(SMOLLM2 / name, made)
    said = json.loads((made / "tokenizer_config.json").read_text(encoding="utf-8"))
    text = json.dumps(said | {"eos_token": "<|endoftext|>"})
    (made / "tokenizer_config.json").write_text(text, encoding="utf-8")
    (made / "generation_config.json").write_text('{"eos_token_id": 0}', encoding="utf-8")
    return made


def described(model: Path, row: dict[str, Any], **training: Any) -> RunConfig:
    rows = write(model / "rows.jsonl", [row])
    run = {"model": {"name": str(model)}, "data": {"path": str(rows)}, "training": training, "output_dir": "-"}
    return from_dict(run)


def found(run: RunConfig) -> str:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run.model.name)
    return str(unending_answers(run, choose_template(tokenizer, run)) or "")


def test_the_warning_and_its_fix(model: Path) -> None:
    told = found(described(model, CHAT))
    assert "the chat template ends an answer with <|im_end|>, and generation stops at <|endoftext|>" in told
    assert told.endswith("Fix: training.eos_token='<|im_end|>'")
    assert found(described(model, CHAT, eos_token="<|im_end|>")) == ""
    with pytest.raises(ConfigError, match="is no token of the model's tokenizer"):
        found(described(model, CHAT, eos_token="<|end|>"))
    with pytest.raises(ConfigError, match="pad_token"):
        found(described(model, CHAT, pad_token="<|pad|>"))


def test_rows_of_the_hub_are_read_from_its_cache(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they were for tokenising: without a network they can not be streamed."""
    from datasets import Dataset

    from unsloth_accel.data import hub

    rows = Dataset.from_list([CHAT])
    asked: list[bool] = []
    monkeypatch.setattr(hub, "load", lambda *where, streaming: asked.append(streaming) or rows)
    run = described(model, CHAT)
    run = replace(run, data=replace(run.data, path="someone/chats"))
    assert "<|im_end|>" in found(run)
    assert asked == [False]


def test_a_preview_of_a_stream_downloads_no_more_than_it_shows(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Dataset

    from unsloth_accel.data import hub
    from unsloth_accel.data.preview import preview_rows

    monkeypatch.setattr("unsloth_accel.data.preview.access_problems", lambda *where: [])
    asked: list[bool] = []
    rows = Dataset.from_list([CHAT])
    monkeypatch.setattr(hub, "load", lambda *where, streaming: asked.append(streaming) or rows)
    run = described(model, CHAT)
    preview_rows(replace(run, data=replace(run.data, path="someone/chats", streaming=True)), 1, 1)
    assert asked == [True, True]


def test_a_template_without_any_end(model: Path) -> None:
    template = model / "t.jinja"
    template.write_text("{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}")
    told = found(described(model, CHAT, chat_template_path=str(template)))
    assert "ends an answer with no token of its own" in told
    assert "Fix: a template that ends answers with {{ eos_token }}" in told
    template.write_text("{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}")
    assert found(described(model, CHAT, chat_template_path=str(template))) == ""


def test_where_nothing_is_wrong(model: Path) -> None:
    """Text ends with the eos_token; a model may stop at several tokens; a template that can't be tried says nothing."""
    assert found(described(model, {"text": "a"})) == ""
    assert found(described(model, {"prompt": "a", "completion": "b"})) == ""
    asked, answer = CHAT["messages"]
    assert "<|im_end|>" in found(described(model, {"prompt": [asked], "completion": [answer]}))
    assert "<|im_end|>" in found(described(model, CHAT))
    (model / "generation_config.json").write_text('{"eos_token_id": [0, 2]}', encoding="utf-8")
    assert found(described(model, CHAT)) == ""
    (model / "generation_config.json").unlink()  # then config.json decides, which is the instruct model's
    assert found(described(model, CHAT)) == ""
    template = model / "t.jinja"
    template.write_text("{{ raise_exception('no') }}")
    assert found(described(model, CHAT, chat_template_path=str(template))) == ""


def test_an_adapters_base_says_where_generation_stops(model: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", base_model_name_or_path=str(model))
    run = described(model, CHAT)
    run = replace(run, model=replace(run.model, name=str(adapter)))
    from transformers import AutoTokenizer

    assert "generation stops at <|endoftext|>" in str(unending_answers(run, AutoTokenizer.from_pretrained(model)))
