"""Files of other tools, and what becomes of them."""

from pathlib import Path
from typing import Any

import yaml

from unsloth_accel.config.translate import Translation, translate

LLAMA_FACTORY = {
    "model_name_or_path": "org/model",
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "lora_rank": 4,
    "dataset": "mine",
    "template": "llama3",
    "max_samples": 10,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "lora_target": "q_proj, v_proj",
    "warmup_ratio": 0.1,
    "plot_loss": True,
    "output_dir": "saves/x",
    "report_to": ["wandb"],
    "run_name": None,
}
AXOLOTL = {
    "base_model": "org/model",
    "adapter": "qlora",
    "sequence_len": 1024,
    "datasets": [{"path": "org/rows", "type": "chat_template", "field_messages": "conversations"}],
    "val_set_size": 0.05,
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "lora_target_linear": True,
    "evals_per_epoch": 2,
    "saves_per_epoch": 1,
    "num_epochs": 2,
    "sample_packing": True,
    "optimizer": "adamw_8bit",
    "bf16": "auto",
    "wandb_project": "p",
    "wandb_entity": "",
    "special_tokens": {"pad_token": "<pad>"},
}
TRL = {
    "model_name_or_path": "org/model",
    "torch_dtype": "bfloat16",
    "use_peft": True,
    "load_in_4bit": True,
    "dataset_name": "org/rows",
    "dataset_config": "part",
    "max_seq_length": 512,
    "per_device_train_batch_size": 2,
    "evaluation_strategy": "no",
    "packing": True,
    "packing_strategy": "ffd",
    "chat_template": "{% for message in messages %}{{ message.content }}{% endfor %}",
}
ACCELERATE = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "FSDP", "num_processes": 4}


def made(tmp_path: Path, values: dict[str, Any], *overrides: str, gpus: int | None = None) -> Translation:
    """What becomes of a file with these keys."""
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return translate([tmp_path / "theirs.yaml"], overrides=overrides, gpus=gpus)


def note(translation: Translation, key: str) -> str:
    (line,) = (line for line in translation.lines if line.key == key)
    return line.outcome.note
