"""What a user of Unsloth and TRL writes for several GPUs, without this package: TRL's defaults, `accelerate launch`.

accelerate launch --multi_gpu --num_processes 2 --mixed_precision bf16 benchmarks/plain_unsloth.py MODEL ROWS STEPS OUT
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def main(model_name: str, rows: str, steps: str, out: str) -> None:
    from unsloth import FastLanguageModel  # isort: skip
    import torch
    from datasets import load_dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Clock(TrainerCallback):
        """The time at the end of each step, without waiting for the GPU, and each log."""

        def __init__(self) -> None:
            self.times: list[float] = []
            self.logs: list[dict[str, Any]] = []

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.times.append(time.perf_counter())

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            # The log read the loss, and so waited for the GPU.
            graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
            self.logs.append({"step": state.global_step, "at": time.perf_counter(), **(logs or {}), "graphs": graphs})

    model, tokenizer = FastLanguageModel.from_pretrained(model_name, max_seq_length=2048, load_in_4bit=False)
    model = FastLanguageModel.get_peft_model(
        model,
        r=16,
        lora_alpha=16,
        lora_dropout=0,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        use_gradient_checkpointing="unsloth",
        random_state=3407,
    )
    settings: dict[str, Any] = {} if torch.cuda.is_available() else {"use_cpu": True}
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=load_dataset("json", data_files=rows, split="train"),
        args=SFTConfig(
            output_dir=f"{out}.d",
            max_steps=int(steps),
            # TRL's own defaults, in whose place Unsloth puts smaller batches and a log of every step.
            per_device_train_batch_size=8,
            gradient_accumulation_steps=1,
            logging_steps=10,
            learning_rate=2e-4,
            save_strategy="no",
            report_to="none",
            **settings,
        ),
    )
    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    if os.environ.get("RANK", "0") == "0":
        found = {
            "times": clock.times,
            "logs": clock.logs,
            "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3) if torch.cuda.is_available() else None,
            "per_device_batch": trainer.args.per_device_train_batch_size,
            "optimizer": str(trainer.args.optim),
            "padding_free": bool(getattr(trainer.data_collator, "padding_free", False)),
            "find_unused_parameters": trainer.args.ddp_find_unused_parameters,
        }
        Path(out).write_text(json.dumps(found), encoding="utf-8")
    if torch.distributed.is_initialized():  # with its threads alive a process may abort at its very end
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
