"""Loops around `prepare` in two processes: rank 0 prints what came of each as JSON; the last is left to fail.

Gradients of rank 1 are tripled, or not, in a loop whose objects are prepared in one call, in several, or not all; rank
1 draws its rows in another order, or labels them otherwise; a scheduler is prepared and stepped with every micro-batch.
The last loop takes its loss from the model inside the wrapper, so that its ranks never exchange gradients.
"""

import json
import sys
from typing import Any

# isort: off
import unsloth_accel
from unsloth import FastLanguageModel
import torch
from accelerate import Accelerator
from transformers import get_cosine_schedule_with_warmup
# isort: on

from unsloth_accel.adapters.rank_checks import GuardError

STEPS = 6
accelerator = Accelerator()


def objects() -> tuple[Any, Any]:
    torch.manual_seed(1)
    model = torch.nn.Linear(4, 2)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def prepared(how: str) -> tuple[Any, Any]:
    model, optimizer = objects()
    if how == "model first":
        model = unsloth_accel.prepare(accelerator, model)
        return model, unsloth_accel.prepare(accelerator, optimizer)
    if how == "optimizer first":
        optimizer = unsloth_accel.prepare(accelerator, optimizer)
        return unsloth_accel.prepare(accelerator, model), optimizer
    if how == "prepared already":
        optimizer = accelerator.prepare(optimizer)
    if how == "never prepared":
        return unsloth_accel.prepare(accelerator, model), optimizer
    return tuple(unsloth_accel.prepare(accelerator, model, optimizer))  # type: ignore[return-value]


def trained(how: str, factor: float) -> str:
    """What a step comes to whose gradients are multiplied by `factor` on rank 1."""
    model, optimizer = prepared(how)
    try:
        for _ in range(2):
            accelerator.backward(model(torch.ones(1, 4)).sum())
            for parameter in model.parameters():
                parameter.grad *= factor if accelerator.process_index == 1 else 1.0
            optimizer.step()
            optimizer.zero_grad()
    except GuardError as error:
        return str(error)
    return "trained"


def rates(accumulation: int, *, apart: bool) -> list[float]:
    """The learning rate of each step of a loop as Accelerate's documentation has it."""
    accelerator.gradient_accumulation_steps = accumulation
    model, optimizer = objects()
    scheduler = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=1, num_training_steps=STEPS)
    if apart:
        scheduler = unsloth_accel.prepare(accelerator, scheduler)
        model, optimizer = unsloth_accel.prepare(accelerator, model, optimizer)
    else:
        model, optimizer, scheduler = unsloth_accel.prepare(accelerator, model, optimizer, scheduler)
    found = []
    for _ in range(STEPS * accumulation):
        with accelerator.accumulate(model):
            accelerator.backward(model(torch.ones(1, 4)).sum())
            if accelerator.sync_gradients:
                found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    accelerator.gradient_accumulation_steps = 1
    return found


class Order(torch.utils.data.Sampler[int]):
    """Eight rows; on rank 1 those of its last batch in another order, from the second pass on."""

    passes = 0

    def __len__(self) -> int:
        return 8

    def __iter__(self) -> Any:
        self.passes += 1
        last = (7, 6) if self.passes > 1 and accelerator.process_index == 1 else (6, 7)
        yield from (*range(6), *last)


def drawn(sampler: Any = None, factor: float = 1.0) -> str:
    """What a loop over a prepared loader comes to, whose rows are `factor` times as large on rank 1; rank 0 evaluates
    alone between its steps."""
    rows, held_out = torch.ones(8, 4), torch.ones(3, 4)
    rank = accelerator.process_index

    def collate(batch: Any) -> Any:
        return {"input_ids": torch.stack(batch), "labels": (torch.stack(batch) * (factor if rank else 1)).long()}

    accelerator.free_memory()  # of the loaders of a loop that was stopped
    model, optimizer = objects()
    loader = torch.utils.data.DataLoader(rows, batch_size=1, sampler=sampler, collate_fn=collate)
    loader = unsloth_accel.prepare(accelerator, loader)
    evaluation = torch.utils.data.DataLoader(held_out)
    model, optimizer, evaluation = unsloth_accel.prepare(accelerator, model, optimizer, evaluation)
    steps = 0
    try:
        for _ in range(3):
            for batch in loader:
                accelerator.backward((model(batch["input_ids"]) - batch["labels"].sum()).sum())
                optimizer.step()
                optimizer.zero_grad()
                steps += 1
                for _ in evaluation if rank == 0 else ():
                    pass
    except GuardError as error:
        return f"step {steps}: {error}"
    return "trained"


WAYS = ["together", "model first", "optimizer first", "prepared already", "never prepared"]
seen = {
    "tripled": {how: trained(how, 3.0) for how in WAYS},
    "alike": {how: trained(how, 1.0) for how in WAYS},
    "drawn": {"order": drawn(Order()), "labels": drawn(factor=2.0), "alike": drawn()},
    "rates": {f"{steps} {apart}": rates(steps, apart=apart) for steps in (1, 2) for apart in (False, True)},
}
if accelerator.is_main_process:
    print(json.dumps(seen), flush=True)

model, tokenizer = FastLanguageModel.from_pretrained(sys.argv[1], dtype=torch.float32, load_in_4bit=False)
model = FastLanguageModel.get_peft_model(model, r=4, target_modules=["q_proj", "v_proj"])
optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
model, optimizer = unsloth_accel.prepare(accelerator, model, optimizer)
row = tokenizer(["one", "two"][accelerator.process_index], return_tensors="pt")
accelerator.backward(accelerator.unwrap_model(model)(**row, labels=row["input_ids"]).loss)
optimizer.step()
print("stepped", flush=True)
