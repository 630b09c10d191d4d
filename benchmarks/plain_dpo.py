"""What a user of Unsloth and TRL writes to train pairs (DPO) on several GPUs, without this package.

accelerate launch --multi_gpu --num_processes 2 --mixed_precision bf16 benchmarks/plain_dpo.py MODEL ROWS SETTINGS OUT

SETTINGS is a file of JSON with DPOConfig's fields. It waits for its turns as `benchmarks.worker` does
(benchmarks.pauses, the only thing here that a user has not).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main(model_name: str, rows: str, settings: str, out: str) -> None:
    from unsloth import FastLanguageModel  # isort: skip
    import torch
    from datasets import load_dataset
    from trl import DPOConfig, DPOTrainer

    from benchmarks.pauses import pause_every_trainer, wait_at_gate

    pause_every_trainer()
    wait_at_gate()
    given = json.loads(Path(settings).read_text(encoding="utf-8"))
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name, max_seq_length=given["max_length"], load_in_4bit=False
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=16,
        lora_alpha=16,
        lora_dropout=0,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        use_gradient_checkpointing="unsloth",
        random_state=3407,
    )
    trainer = DPOTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=load_dataset("json", data_files=rows, split="train"),
        args=DPOConfig(output_dir=f"{out}.d", report_to="none", save_strategy="no", logging_steps=1, **given),
    )
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    if os.environ.get("RANK", "0") == "0":
        logs = [log for log in trainer.state.log_history if "loss" in log]
        found = {
            "loss": [float(log["loss"]) for log in logs],
            "grad_norm": [float(log["grad_norm"]) for log in logs],
            "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3) if torch.cuda.is_available() else None,
        }
        Path(out).write_text(json.dumps(found), encoding="utf-8")
    # With NCCL's threads alive a process may abort at its very end; gloo's may hang in being ended.
    if torch.cuda.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
