"""Let 0 to all blocks of a tiny model keep their activations, and fewer again: keep_blocks.py MODEL OUT.json.

OUT.json is a list with, for each number that was asked for, how many blocks keep theirs, how often each block was
computed in a step, its loss, whether loss and gradients are those of the first, what Unsloth has counted, and whether
its models for GPUs were imported.
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import unsloth_accel  # noqa: F401  # isort: skip
import unsloth  # noqa: F401  # isort: skip

import torch
import unsloth_zoo.gradient_checkpointing as checkpointing
from unsloth import FastLanguageModel

from unsloth_accel.adapters.kept_activations import COUNTS, blocks, keep, kept, told

ASKED = (0, 1, 2, 99, 1, 0)

torch.manual_seed(0)
model, _ = FastLanguageModel.from_pretrained(sys.argv[1], max_seq_length=96, load_in_4bit=False, dtype=torch.float32)
model = FastLanguageModel.get_peft_model(model, r=4, lora_dropout=0, target_modules=["q_proj", "down_proj"])
for name, weight in model.named_parameters():
    if "lora_B" in name:
        torch.nn.init.normal_(weight, std=0.1)
FastLanguageModel.for_training(model)
computed = [0] * len(blocks(model))


def count(index: int, *_: Any) -> None:
    computed[index] += 1


for index, block in enumerate(blocks(model)):
    block.self_attn.register_forward_pre_hook(partial(count, index))
tokens = torch.randint(0, 100, (2, 64))
first: list[torch.Tensor] = []
found = []
for asked in ASKED:
    for name in COUNTS:
        setattr(checkpointing, name, 7)  # as if counted on a GPU
    number = keep(model, asked)
    counts = {name: getattr(checkpointing, name) for name in COUNTS}
    FastLanguageModel.for_inference(model)
    FastLanguageModel.for_training(model)  # as after an evaluation, with which marks stay
    computed[:] = [0] * len(computed)
    model.zero_grad()
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    seen = [loss.detach(), *(weight.grad for weight in model.parameters() if weight.grad is not None)]
    first = first or seen
    same = len(seen) == len(first) and all(map(torch.equal, seen, first))
    found.append(
        {
            "asked": asked,
            "returned": number,
            "kept": kept(model),
            "told": told(model),
            "computed": list(computed),
            "loss": float(loss),
            "same": same,
            "gradients": len(seen) - 1,
            "counts": counts == COUNTS,
            "imported": "unsloth.models" in sys.modules,
        }
    )
Path(sys.argv[2]).write_text(json.dumps(found), encoding="utf-8")
