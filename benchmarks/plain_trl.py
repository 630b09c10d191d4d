"""What a user of TRL and PEFT writes without Unsloth, on one GPU: LoRA r=16 on full rows, timed.

python benchmarks/plain_trl.py MODEL ROWS PER_DEVICE LENGTH STEPS OUT [--checkpointing]
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any


def main(model: str, rows: str, per_device: str, length: str, steps: str, out: str, *flags: str) -> None:
    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    times, losses = [0.0], []
    began = time.perf_counter()

    class Clock(TrainerCallback):
        """The time of each log, which waits for the GPU."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            nonlocal began
            began = time.perf_counter()
            torch.cuda.reset_peak_memory_stats()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" in (logs or {}):
                times.append(time.perf_counter() - began)
                losses.append(logs["loss"])

    checkpointing = "--checkpointing" in flags
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, device_map={"": 0}),
        processing_class=AutoTokenizer.from_pretrained(model),
        train_dataset=load_dataset("json", data_files=rows, split="train"),
        peft_config=LoraConfig(
            r=16,
            lora_alpha=16,
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            task_type="CAUSAL_LM",
        ),
        args=SFTConfig(
            output_dir=f"{out}.d",
            max_steps=int(steps),
            max_length=int(length),
            per_device_train_batch_size=int(per_device),
            gradient_accumulation_steps=1,
            gradient_checkpointing=checkpointing,
            logging_steps=1,
            learning_rate=2e-4,
            optim="adamw_torch_fused",
            bf16=True,
            save_strategy="no",
            report_to="none",
        ),
        callbacks=[Clock()],
    )
    trainer.train()
    found = {
        "checkpointing": checkpointing,
        "seconds": [round(late - early, 4) for early, late in itertools.pairwise(times)],
        "loss": losses,
        "memory_gib": {"training": round(torch.cuda.max_memory_allocated() / 2**30, 3)},
    }
    Path(out).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
