"""A training loop of one's own, with Unsloth and Accelerate, on any number of processes: a plain script to copy.

One process:     python examples/accelerate_loop.py
Two on a CPU:    accelerate launch --config_file accelerate_configs/cpu_ddp.yaml examples/accelerate_loop.py
One per GPU:     accelerate launch --config_file accelerate_configs/ddp.yaml examples/accelerate_loop.py
Sharded:         accelerate launch --config_file accelerate_configs/fsdp2_native.yaml examples/accelerate_loop.py
"""

import argparse
import json
import math
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

# The order matters: unsloth_accel sets what must be set before unsloth, and unsloth patches what comes after it.
# isort: off
import unsloth_accel
from unsloth import FastLanguageModel
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader
from transformers import get_cosine_schedule_with_warmup, set_seed
# isort: on

SEED = 3407
parser = argparse.ArgumentParser()
parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
parser.add_argument("--data", default="examples/data/elements-train.jsonl")
parser.add_argument("--eval-data", default="examples/data/elements-eval.jsonl")
parser.add_argument("--output", default="runs/accelerate_loop")
parser.add_argument("--steps", type=int, default=10)
parser.add_argument("--per-device", type=int, default=4, help="rows per process and micro-batch")
parser.add_argument("--accumulation", type=int, default=1, help="micro-batches per optimizer step")
parser.add_argument("--learning-rate", type=float, default=1e-3)
parser.add_argument("--max-grad-norm", type=float, default=1.0)
parser.add_argument("--max-seq-length", type=int, default=256)
parser.add_argument(
    "--dtype", choices=["float32", "float16", "bfloat16"], help="what the hardware likes best by default"
)
options = parser.parse_args()

# Strategy, processes and precision come from the config that `accelerate launch` was given. The seedable sampler draws
# the same order of rows on any number of processes, and of each step, which the loaders know whole, every process gets
# its part.
in_parts = DataLoaderConfiguration(split_batches=True, use_seedable_sampler=True, data_seed=SEED)
accelerator = Accelerator(dataloader_config=in_parts)
set_seed(SEED)
rows_per_process = options.per_device * options.accumulation
with unsloth_accel.sharded_loading(load_in_4bit=False):  # under fsdp2 each GPU loads only what it keeps
    model, tokenizer = FastLanguageModel.from_pretrained(
        options.model,
        max_seq_length=options.max_seq_length,
        load_in_4bit=False,
        dtype=getattr(torch, options.dtype) if options.dtype else None,
    )
model = FastLanguageModel.get_peft_model(
    model,
    r=16,
    lora_alpha=32,
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
)


def rows(path: str) -> list[list[int]]:
    """Token ids of each row of a JSON Lines file, `messages` or `text`."""
    found = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        text = row["text"] if "text" in row else tokenizer.apply_chat_template(row["messages"], tokenize=False)
        found.append(tokenizer(text, add_special_tokens=False)["input_ids"][: options.max_seq_length])
    return found


def collate(batch: list[list[int]]) -> dict[str, torch.Tensor]:
    """Rows padded on the right to the longest; padding is neither attended to nor learned."""
    padded = tokenizer.pad({"input_ids": batch}, padding=True, padding_side="right", return_tensors="pt")
    labels = padded["input_ids"].masked_fill(padded["attention_mask"] == 0, -100)
    return {"input_ids": padded["input_ids"], "attention_mask": padded["attention_mask"], "labels": labels}


def micro_batches_of(step: list[list[int]]) -> list[dict[str, torch.Tensor]]:
    """This process's rows of an optimizer step, in micro-batches."""
    return [collate(step[start : start + options.per_device]) for start in range(0, len(step), options.per_device)]


def forget_repeated(micro_batches: list[dict[str, torch.Tensor]]) -> None:
    """Take the labels from the rows with which accelerate fills up an epoch's last step: they were in it already."""
    if train_loader.end_of_dataloader and train_loader.remainder > 0:
        own = train_loader.remainder - accelerator.process_index * rows_per_process
        for batch in micro_batches:
            batch["labels"][max(own, 0) :] = -100
            own -= len(batch["labels"])


def tokens_in(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """How many tokens of a batch are learned; the first of each row has nothing before it to be predicted from."""
    return (batch["labels"][:, 1:] != -100).sum()


def steps_of_epochs(loader: Any) -> Any:
    """Steps without end, their rows shuffled anew in every epoch."""
    epoch = 0
    while True:
        loader.set_epoch(epoch)
        yield from loader
        epoch += 1


def held_out_loss() -> float:
    """Mean loss per token of the held-out rows, in nats, over all ranks."""
    model.eval()
    parts = []
    for batch in eval_loader:  # one row per process: gather_for_metrics then drops those that fill up the last batch
        tokens = tokens_in(batch)
        with torch.no_grad():
            loss = model(**batch).loss.float()
        parts.append(accelerator.gather_for_metrics(torch.stack([loss * tokens, tokens])[None]))
    model.train()
    total, count = torch.cat(parts).sum(dim=0).tolist()
    return float(total / count)


rows_per_step = rows_per_process * accelerator.num_processes
train_loader = DataLoader(rows(options.data), batch_size=rows_per_step, shuffle=True, collate_fn=micro_batches_of)
eval_loader = DataLoader(rows(options.eval_data), batch_size=accelerator.num_processes, collate_fn=collate)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=options.learning_rate)
scheduler = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=2, num_training_steps=options.steps)
model, optimizer, scheduler, train_loader, eval_loader = unsloth_accel.prepare(
    accelerator, model, optimizer, scheduler, train_loader, eval_loader
)

accelerator.print(f"held-out loss before  {held_out_loss():.6f}")
model.train()
for step, micro_batches in enumerate(islice(steps_of_epochs(train_loader), options.steps), 1):
    forget_repeated(micro_batches)
    # Every token of the step weighs the same, whichever rank and micro-batch it is in: divide by the tokens of all.
    tokens = accelerator.reduce(torch.stack([tokens_in(batch) for batch in micro_batches]).sum(), "sum")
    losses = []
    for number, batch in enumerate(micro_batches, 1):
        last = number == len(micro_batches)
        with nullcontext() if last else accelerator.no_sync(model):  # ranks exchange gradients once per step
            loss = model(**batch, num_items_in_batch=tokens).loss
            accelerator.backward(loss * accelerator.num_processes)  # gradients are averaged over ranks, not summed
        losses.append(loss.detach().float())
    norm = accelerator.clip_grad_norm_(model.parameters(), options.max_grad_norm)
    rate = scheduler.get_last_lr()[0]
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    loss = accelerator.gather(torch.stack(losses).sum()).sum()
    figures = f"loss {loss.item():.6f}  grad_norm {float(norm):.6f}  rate {rate:.6f}  tokens {int(tokens)}"
    accelerator.print(f"step {step}  {figures}")
    if not math.isfinite(loss.item()):
        raise SystemExit(f"the loss of step {step} is {loss.item()}")

accelerator.print(f"held-out loss after   {held_out_loss():.6f}")
unsloth_accel.save(model, f"{options.output}/adapter", tokenizer=tokenizer)
if accelerator.device.type == "cuda":
    accelerator.end_training()  # NCCL warns when a process leaves without it
