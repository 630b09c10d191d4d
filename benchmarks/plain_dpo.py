"""What a user of Unsloth and TRL writes to train pairs (DPO) on several GPUs, without this package.

accelerate launch --multi_gpu --num_processes 2 --mixed_precision bf16 benchmarks/plain_dpo.py MODEL ROWS SETTINGS OUT

SETTINGS is a file of JSON with DPOConfig's fields. With BENCHMARK_GATE it waits once all is imported, as
`benchmarks.worker` does.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def main(model_name: str, rows: str, settings: str, out: str) -> None:
    from unsloth import FastLanguageModel  # isort: skip
    import torch
    from datasets import load_dataset
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    gate, rank = os.environ.get("BENCHMARK_GATE"), os.environ.get("RANK", "0")
    if gate:
        Path(f"{gate}.ready-{rank}").touch()
    while gate and not Path(gate).exists():
        time.sleep(0.05)

    class Clock(TrainerCallback):
        """The time of each log, which read the loss and so waited for the GPU."""

        def __init__(self) -> None:
            self.times: list[float] = []
            self.logs: list[dict[str, Any]] = []

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.times.append(time.perf_counter())
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" in (logs or {}):
                self.times.append(time.perf_counter())
                self.logs.append(logs)

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
    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    if rank == "0":
        found = {
            "seconds": [round(late - early, 4) for early, late in itertools.pairwise(clock.times)],
            "loss": [float(log["loss"]) for log in clock.logs],
            "grad_norm": [float(log["grad_norm"]) for log in clock.logs],
            "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3) if torch.cuda.is_available() else None,
        }
        Path(out).write_text(json.dumps(found), encoding="utf-8")
    # With NCCL's threads alive a process may abort at its very end; gloo's may hang in being ended.
    if torch.cuda.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
