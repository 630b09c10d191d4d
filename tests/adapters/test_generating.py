"""Trainers whose model writes completions: known, or refused with the reason; padding kept apart from the end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from unsloth_accel.adapters.generating import pad_apart, refuse_asynchronous, text_of
from unsloth_accel.errors import ConfigError


def tokenizer(**tokens: Any) -> Any:
    usual = {"pad_token": "<end>", "eos_token": "<end>", "unk_token": None, "bos_token": "<begin>"}
    made = SimpleNamespace(**usual | tokens)
    made.pad_token_id, made.eos_token_id = made.pad_token, made.eos_token
    return made


def test_what_ends_completions_does_not_pad_them() -> None:
    made = tokenizer()
    assert "<begin> pads completions from here on" in pad_apart(made)
    assert made.pad_token == "<begin>"
    assert pad_apart(tokenizer(pad_token="<pad>")) == ""
    alone = tokenizer(bos_token="<end>")
    assert "does not learn where to end" in pad_apart(alone)
    assert alone.pad_token == "<end>"


def test_completions_from_a_queue_are_refused_with_the_reason() -> None:
    kind = type("AsyncGRPOTrainer", (), {})
    for refused in (kind, type("UnslothAsync", (kind,), {})):
        with pytest.raises(ConfigError, match=r"deals out what a server wrote.*Fix: trl\.GRPOTrainer"):
            refuse_asynchronous(refused())
    refuse_asynchronous(SimpleNamespace())


def test_messages_are_told_by_what_they_say() -> None:
    assert text_of("a") == "a"
    assert text_of([{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]) == "a\n\n"
