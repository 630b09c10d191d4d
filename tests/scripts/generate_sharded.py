"""Generate from a tiny Unsloth model that FSDP2 shards in two gloo processes; prints what was seen as JSON.

Accelerate has no FSDP on a CPU, so the units are made here as it makes them: each block, the head, the root.
"""

import json
import os
import sys
from typing import Any

# isort: off
import unsloth_accel  # noqa: F401
from unsloth import FastLanguageModel
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from unsloth_accel.adapters.fsdp2.generation import generating, wrap_generate
# isort: on

directory = sys.argv[1]
dist.init_process_group("gloo")
rank = dist.get_rank()
model, tokenizer = FastLanguageModel.from_pretrained(directory, dtype=torch.float32, load_in_4bit=False)
model = FastLanguageModel.get_peft_model(model, r=4, target_modules=["q_proj", "v_proj", "down_proj"])
torch.manual_seed(0)
for name, parameter in model.named_parameters():
    if "lora_B" in name:
        torch.nn.init.normal_(parameter, std=0.5)
prompts = tokenizer(["one and two", "three, four, five, six"][rank], return_tensors="pt")


def answer(longest: int = 8, **more: Any) -> list[int]:
    # Other lengths on each rank.
    found: list[int] = model.generate(**prompts, max_new_tokens=longest + rank, do_sample=False, **more)[0].tolist()
    return found


def gradients() -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**prompts, labels=prompts["input_ids"]).loss.backward()
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            grad = parameter.grad
            if not isinstance(grad, DTensor):
                dist.all_reduce(grad)
                grad /= dist.get_world_size()
            found[name] = grad.full_tensor() if isinstance(grad, DTensor) else grad.clone()
    return found


FastLanguageModel.for_inference(model)
reference = answer()
FastLanguageModel.for_training(model)
whole = gradients()
model.zero_grad()

mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
decoder: Any = model.base_model.model.model
for block in decoder.layers:
    fully_shard(block, mesh=mesh)
fully_shard(model.base_model.model.lm_head, mesh=mesh)
fully_shard(model, mesh=mesh)


def sharded() -> bool:
    return all(isinstance(parameter, DTensor) for parameter in model.parameters())


seen: dict[str, Any] = {"sharded": sharded()}
FastLanguageModel.for_inference(model)
try:
    answer()
    seen["without"] = "worked"
except RuntimeError as error:
    seen["without"] = str(error)

# First of all under inference_mode: what FSDP2 makes when it gathers for the first time, it keeps.
wrap_generate(model)
with torch.inference_mode():
    seen["wrapped"] = answer() == reference
seen["sharded after generate"] = sharded()

with generating(model):
    seen["whole inside"] = not any(isinstance(parameter, DTensor) for parameter in model.parameters())
    with torch.inference_mode():
        seen["inside"] = answer(synced_gpus=False) == reference
        if rank == 0:  # as often as it likes
            answer(synced_gpus=False)
    with generating(model):
        pass
    seen["still whole"] = not any(isinstance(parameter, DTensor) for parameter in model.parameters())
seen["sharded after"] = sharded()

FastLanguageModel.for_training(model)
trained = gradients()
seen["gradients"] = max(float((trained[name] - whole[name]).abs().max()) for name in whole)
seen["largest"] = max(float(grad.abs().max()) for grad in whole.values())
seen["as many"] = trained.keys() == whole.keys()
FastLanguageModel.for_inference(model)
seen["after training"] = answer() == reference
print(f"seen {json.dumps(seen)}\n", end="", flush=True)
dist.barrier()
os._exit(0)  # torch 2.13 may hang in gloo's destructor
