"""Embeddings that learn at a rate of their own, by Unsloth's own optimizer around any trainer."""

from __future__ import annotations

from pathlib import Path

import pytest

from unsloth_accel.config.read_run import from_dict
from unsloth_accel.errors import ConfigError


def test_embeddings_and_head_are_a_group_of_their_own(tmp_path: Path) -> None:
    import unsloth  # noqa: F401  (before transformers)
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    from unsloth_accel.adapters.embedding_rate import embeddings_learn_at

    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2))
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]))
    args = TrainingArguments(str(tmp_path), learning_rate=1e-3, weight_decay=0.1, use_cpu=True, report_to=[])
    trainer = Trainer(model=adapted, args=args)
    embeddings_learn_at(trainer, 1e-5)
    groups = trainer.create_optimizer().param_groups
    assert [(group["lr"], len(group["params"])) for group in groups] == [(1e-3, 2), (1e-5, 2)]
    assert all(parameter.shape == (32, 16) for parameter in groups[1]["params"])


@pytest.mark.parametrize(
    ("lora", "rate", "words"),
    [
        ({}, 1e-5, "trains neither embed_tokens nor lm_head. Fix: remove it, or lora.modules_to_save"),
        ({"target_modules": ["q_proj"]}, 1e-5, "has nothing to act on"),
        ({"modules_to_save": ["lm_head"]}, 0.0, "is no learning rate"),
        ({"target_modules": ["q_proj", "lm_head"]}, -1.0, "is no learning rate"),
        ({"modules_to_save": ["lm_head"]}, 1e-5, ""),
        ({"target_modules": ["q_proj", "embed_tokens"]}, 1e-5, ""),
    ],
)
def test_a_rate_for_nothing_is_refused(lora: dict[str, list[str]], rate: float, words: str) -> None:
    given = {"model": {"name": "m"}, "data": {"path": "a"}, "output_dir": "o", "lora": lora}
    given["training"] = {"embedding_learning_rate": rate}
    if not words:
        assert from_dict(given).training["embedding_learning_rate"] == rate
        return
    with pytest.raises(ConfigError, match=r"training\.embedding_learning_rate") as caught:
        from_dict(given)
    assert words in str(caught.value)
