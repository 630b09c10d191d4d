"""The adapter of a reward model, whose head gives a text one number: how it is known, and loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CODE = """\
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

base = AutoModelForSequenceClassification.from_pretrained({base!r}, num_labels=1)
model = PeftModel.from_pretrained(base, {place!r})
tokenizer = AutoTokenizer.from_pretrained({place!r})"""


def has_score(config: Mapping[str, Any]) -> bool:
    """Return whether `config`, the values of an adapter_config.json, is that of a reward model's adapter."""
    return bool(config.get("task_type") == "SEQ_CLS")


def score_code(config: Mapping[str, Any], place: str) -> str:
    """Return Python that loads the adapter at `place`, a directory or repository, with its base; empty where `config`
    isn't a reward model's."""
    if not has_score(config):
        return ""
    return _CODE.format(base=str(config.get("base_model_name_or_path") or "BASE"), place=place)
