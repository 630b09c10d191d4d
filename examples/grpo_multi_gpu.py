"""The interface of unsloth-multigpu: a GRPO script on several GPUs, by two calls.

    python examples/grpo_multi_gpu.py             (with several GPUs it prints the commands that launch it)

The reward is for answers of the right length in characters, so that it can be seen to work without a judge.
"""

import argparse
import json
from pathlib import Path
from typing import Any

# The order matters: unsloth_accel sets what must be set before unsloth, and unsloth patches trl.
# isort: off
import unsloth_accel as ump
from unsloth import FastLanguageModel
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer
# isort: on

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
parser.add_argument("--data", default="examples/data/elements-train.jsonl")
parser.add_argument("--output", default="runs/grpo_multi_gpu")
parser.add_argument("--gpus", type=int, default=2)
parser.add_argument("--max-steps", type=int, default=10)
parser.add_argument("--per-device", type=int, default=4, help="answers per process and micro-batch")
parser.add_argument("--answers", type=int, default=4, help="answers per question, which are compared to each other")
parser.add_argument("--characters", type=int, default=80, help="the length that is rewarded")
parser.add_argument("--max-new-tokens", type=int, default=48)
options = parser.parse_args()

ump.enable_grpo_support()
ump.enable_multi_gpu(num_gpus=options.gpus, batch_size_per_gpu=options.per_device)
rows = [json.loads(line) for line in Path(options.data).read_text(encoding="utf-8").splitlines()]
questions = Dataset.from_list([{"prompt": row["messages"][:-1]} for row in rows])
model, tokenizer = FastLanguageModel.from_pretrained(options.model, max_seq_length=512, load_in_4bit=False)
if tokenizer.pad_token == tokenizer.eos_token and tokenizer.unk_token:
    tokenizer.pad_token = tokenizer.unk_token  # on GPUs Unsloth leaves what pads completions out, so their end as well
model = FastLanguageModel.get_peft_model(
    model,
    r=16,
    lora_alpha=32,
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
)


def right_length(completions: list[Any], **columns: Any) -> list[float]:
    """0 for an answer of the right length, minus one for every hundred characters too many or too few."""
    return [-abs(len(answer[-1]["content"]) - options.characters) / 100 for answer in completions]


trainer = GRPOTrainer(
    model=model,
    processing_class=tokenizer,
    reward_funcs=right_length,
    train_dataset=questions,
    args=GRPOConfig(
        output_dir=options.output,
        max_steps=options.max_steps,
        num_generations=options.answers,
        max_completion_length=options.max_new_tokens,
        learning_rate=1e-4,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
    ),
)
trainer.train()
trainer.save_model(f"{options.output}/adapter")
if trainer.is_world_process_zero():
    print(ump.get_multi_gpu_status())
ump.disable_multi_gpu()
