"""A script that makes TRL's GRPOTrainer itself, with `enable_grpo_support` alone: MODEL OUTPUT."""

import sys

# isort: off
import unsloth_accel
from unsloth import FastLanguageModel
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer
# isort: on


def evens(completion_ids: list[list[int]], **columns: object) -> list[float]:
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


model_name, output = sys.argv[1:]
unsloth_accel.enable_grpo_support()
unsloth_accel.enable_grpo_support()  # once is enough
model, tokenizer = FastLanguageModel.from_pretrained(
    model_name, max_seq_length=128, load_in_4bit=False, dtype=torch.float32
)
model = FastLanguageModel.get_peft_model(model, r=8)
trainer = GRPOTrainer(
    model=model,
    processing_class=tokenizer,
    reward_funcs=evens,
    train_dataset=Dataset.from_list([{"prompt": f"Question {number}?"} for number in range(16)]),
    args=GRPOConfig(
        output_dir=output,
        max_steps=2,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=12,
        learning_rate=1e-2,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
    ),
)
trainer.train()
