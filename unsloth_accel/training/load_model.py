"""Loading of a run's model by Unsloth, and its adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..config.run_config import PROJECTIONS, RunConfig

CHECKPOINTING: dict[str, str | bool] = {"unsloth": "unsloth", "true": True, "false": False}
"""Value that Unsloth takes for each `model.gradient_checkpointing`."""


def load_model(run: RunConfig) -> tuple[Any, Any]:
    """Load model and tokenizer; where the strategy divides the weights each process loads its part."""
    import torch
    import unsloth

    from ..adapters.ddp_settings import device_map
    from ..adapters.fsdp2.loading import sharded_loading

    name = run.model.name
    # Absolute, so that the saved adapter finds its base model from any directory.
    name = str(Path(name).resolve()) if Path(name).is_dir() else name
    placed = device_map() if run.distributed.device != "cpu" else None
    with sharded_loading(run.model.load_in_4bit):
        model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
            model_name=name,
            max_seq_length=run.model.max_seq_length,
            dtype=getattr(torch, run.model.dtype) if run.model.dtype else None,
            load_in_4bit=run.model.load_in_4bit,
            trust_remote_code=run.model.trust_remote_code,
            **({"device_map": placed} if placed else {}),
        )
    return model, tokenizer


def add_adapter(model: Any, run: RunConfig) -> Any:
    """Return `model` with the run's LoRA adapter."""
    import unsloth

    modules = run.lora.target_modules
    return unsloth.FastLanguageModel.get_peft_model(
        model,
        r=run.lora.r,
        lora_alpha=run.lora.alpha,
        lora_dropout=run.lora.dropout,
        target_modules=PROJECTIONS if modules == "all-linear" else list(modules),
        use_rslora=run.lora.use_rslora,
        use_gradient_checkpointing=CHECKPOINTING[run.model.gradient_checkpointing],
        random_state=run.lora.random_state,
    )
