"""A model with a score head in plain transformers and PEFT: on a CPU Unsloth loads language models only.

Unsloth 2026.10.9: `num_labels` is an argument of its loader on GPUs (unsloth/models/llama.py) and none of that on a CPU
(unsloth_zoo/cpu/loader.py). The model and its adapter have the names and the configuration of Unsloth's, so that
everything after goes the same way.
"""

from __future__ import annotations

import warnings
from typing import Any

from ..adapters import environment


def load_score_model(name: str, tokenizer: str, *, dtype: Any, remote_code: bool) -> tuple[Any, Any]:
    """Return model and tokenizer; the new head's weights are of chance."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    if environment.rank() == 0:
        print("loading    by transformers and PEFT: on a CPU Unsloth has no models with a score head", flush=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForSequenceClassification.from_pretrained(
            name, num_labels=1, dtype=dtype, trust_remote_code=remote_code
        )
    return model, AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=remote_code, padding_side="right")


def add_score_adapter(model: Any, *, seed: int, checkpointing: bool, **said: Any) -> Any:
    """Return `model` with a LoRA adapter, as `get_peft_model` is told, and its head trained whole.

    The head goes into the adapter's file: PEFT adds it to `modules_to_save`.
    """
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import set_seed

    set_seed(seed)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return get_peft_model(model, LoraConfig(task_type=TaskType.SEQ_CLS, **said))
