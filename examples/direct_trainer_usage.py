"""The interface of unsloth-multigpu: MultiGPUTrainer, a loop without TRL.

python examples/direct_trainer_usage.py       (with several GPUs it prints the commands that launch it)
"""

import argparse
import json
from pathlib import Path

# The order matters: unsloth_accel sets what must be set before unsloth.
# isort: off
import unsloth_accel  # noqa: F401
from unsloth import FastLanguageModel
import torch
from torch.utils.data import DataLoader
from unsloth_accel.multigpu.core import AggregationMethod, MultiGPUTrainer
# isort: on

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
parser.add_argument("--data", default="examples/data/elements-train.jsonl")
parser.add_argument("--output", default="runs/direct_trainer_usage")
parser.add_argument("--gpus", type=int, default=2)
parser.add_argument("--rows", type=int, default=64, help="rows to train on and as many to hold out")
parser.add_argument("--per-device", type=int, default=4, help="rows per process and micro-batch")
parser.add_argument("--accumulation", type=int, default=1)
parser.add_argument("--aggregation", default="weighted_mean", choices=[method.value for method in AggregationMethod])
options = parser.parse_args()

torch.manual_seed(3407)
model, tokenizer = FastLanguageModel.from_pretrained(options.model, max_seq_length=256, load_in_4bit=False)
model = FastLanguageModel.get_peft_model(model, r=16, lora_alpha=32, target_modules=["q_proj", "k_proj", "v_proj"])


def collate(texts: list[str]) -> dict[str, torch.Tensor]:
    """Rows padded on the right to the longest; padding is neither attended to nor learned."""
    batch = tokenizer(texts, padding=True, padding_side="right", truncation=True, max_length=256, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}


lines = Path(options.data).read_text(encoding="utf-8").splitlines()[: 2 * options.rows]
texts = [tokenizer.apply_chat_template(json.loads(line)["messages"], tokenize=False) for line in lines]
train_loader = DataLoader(texts[: options.rows], batch_size=options.per_device, shuffle=True, collate_fn=collate)
eval_loader = DataLoader(texts[options.rows :], batch_size=options.per_device, collate_fn=collate)
trainer = MultiGPUTrainer(
    model=model,
    num_gpus=options.gpus,
    optimizer_config={"class": torch.optim.AdamW, "kwargs": {"lr": 1e-3, "weight_decay": 0.01}},
    aggregation_method=AggregationMethod(options.aggregation),
    gradient_accumulation_steps=options.accumulation,
)
trainer.setup()
before = trainer.evaluate(eval_loader)
figures = trainer.train_epoch(train_loader)
after = trainer.evaluate(eval_loader)
trainer.accelerator.print(json.dumps({"before": before["loss"], "after": after["loss"], **figures}))
trainer.save(f"{options.output}/adapter", tokenizer=tokenizer)
trainer.cleanup()
