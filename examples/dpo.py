"""Teach a manner by pairs of answers (DPO) with Unsloth and TRL on any number of processes: a plain script to copy.

One process:          python examples/dpo.py
Two on a CPU:         accelerate launch --config_file accelerate_configs/cpu_ddp.yaml examples/dpo.py
One per GPU:          accelerate launch --config_file accelerate_configs/ddp.yaml --num_processes 8 examples/dpo.py
With checks first:    unsloth-accel launch --config_file accelerate_configs/ddp.yaml examples/dpo.py
"""

import argparse

# The order matters: unsloth_accel sets what must be set before unsloth, and unsloth patches trl.
# isort: off
import unsloth_accel
from unsloth import FastLanguageModel
from datasets import load_dataset
from trl import DPOConfig, DPOTrainer
# isort: on

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
parser.add_argument("--data", default="examples/data/answers-train.jsonl")
parser.add_argument("--output", default="runs/dpo")
parser.add_argument("--max-steps", type=int, default=16)
parser.add_argument("--per-device", type=int, default=4, help="pairs per process and step")
parser.add_argument("--accumulation", type=int, default=1)
parser.add_argument("--learning-rate", type=float, default=1e-4)
options = parser.parse_args()

model, tokenizer = FastLanguageModel.from_pretrained(options.model, max_seq_length=128, load_in_4bit=False)
model = FastLanguageModel.get_peft_model(
    model,
    r=16,
    lora_alpha=32,
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
)
trainer = DPOTrainer(
    model=model,  # the reference is this model without its adapter
    processing_class=tokenizer,
    train_dataset=load_dataset("json", data_files=options.data, split="train"),
    args=DPOConfig(
        output_dir=options.output,
        max_length=128,
        max_steps=options.max_steps,
        per_device_train_batch_size=options.per_device,
        gradient_accumulation_steps=options.accumulation,
        learning_rate=options.learning_rate,  # TRL's default is 1e-6, Unsloth's on a GPU 5e-5
        logging_steps=1,
        report_to="none",
        save_strategy="no",
    ),
)
trainer = unsloth_accel.adapt(trainer)  # stops the run if its processes are not the ones asked for, or not in step
trainer.train()
trainer.save_model(f"{options.output}/adapter")
