"""In each launched process: how DDP is set up for a dense model, and for one whose vision tower no row reaches.

ddp_settings.py DENSE VISION ROWS OUT: two checkpoints' directories; writes OUT, a JSON file.
"""

import json
import re
import sys
import warnings
from typing import Any

import unsloth_accel  # isort: skip
from unsloth import FastLanguageModel  # isort: skip
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from unsloth_accel.errors import UnslothAccelError


def trainer_of(directory: str, out: str, modules: tuple[str, ...] = ("q_proj", "v_proj"), **fields: Any) -> SFTTrainer:
    model, tokenizer = FastLanguageModel.from_pretrained(
        directory, max_seq_length=64, dtype="float32", load_in_4bit=False
    )
    model = FastLanguageModel.get_peft_model(model, r=4, target_modules=list(modules))
    rows = Dataset.from_list([{"text": "a text of some words" * (1 + i % 3)} for i in range(16)])
    args = SFTConfig(
        **{"output_dir": out, "max_steps": 2, "per_device_train_batch_size": 2, "bf16": False, **fields},
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        max_length=64,
        disable_tqdm=True,
        logging_steps=1,
    )
    return SFTTrainer(model=model, processing_class=tokenizer, args=args, train_dataset=rows)


def seen(trainer: SFTTrainer) -> dict[str, Any]:
    """Train, and say what Accelerate made of the model."""
    unsloth_accel.adapt(trainer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    ddp = trainer.model_wrapped
    said = [str(one.message) for one in caught]
    return {
        "kind": type(ddp).__name__,
        "find_unused_parameters": getattr(ddp, "find_unused_parameters", None),
        "buffers": len(list(getattr(ddp, "modules_buffers", ()))),
        "gradient_as_bucket_view": getattr(ddp, "gradient_as_bucket_view", None),
        "warnings": [words for words in said if re.search(r"DDP|unused|buffers|ready twice", words)],
        "loss": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }


def refused(trainer: SFTTrainer) -> str:
    try:
        seen(trainer)
    except UnslothAccelError as error:
        return str(error)
    return ""


def main(dense: str, vision: str, out: str) -> None:
    from unsloth_accel.adapters.ddp_settings import checkpoints_reentrantly, gradients_in_buckets

    found: dict[str, Any] = {"dense": seen(trainer_of(dense, out)), "vision": seen(trainer_of(vision, out))}
    told = {"ddp_find_unused_parameters": True, "ddp_broadcast_buffers": True}
    found["dense, told to search and send"] = seen(trainer_of(dense, out, **told))
    embeddings = trainer_of(dense, out, ("q_proj", "embed_tokens", "lm_head"))
    gradients_in_buckets(embeddings.accelerator)
    found["trained embeddings"] = seen(embeddings)
    checkpointed = [checkpoints_reentrantly(embeddings.model)]
    embeddings.model.gradient_checkpointing_enable({"use_reentrant": True})
    found["reentrant"] = [*checkpointed, checkpoints_reentrantly(embeddings.model)]
    found["static graph"] = refused(trainer_of(dense, out, ddp_static_graph=True, gradient_accumulation_steps=2))
    found["vision, told not to search"] = refused(trainer_of(vision, out, ddp_find_unused_parameters=False))
    if embeddings.accelerator.is_main_process:
        with open(f"{out}.json", "w", encoding="utf-8") as file:
            json.dump(found, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
