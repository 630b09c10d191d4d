"""MultiGPUTrainer on a random Llama of one layer, in one process or in several: direct_trainer.py OUT.json

Rank 0 writes the weights after one SGD step of a batch of six uneven rows, by aggregation method, and the figures of
an epoch. In one process it writes what the methods come to on two and three ranks, computed without them.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from unsloth_accel.adapters import environment
from unsloth_accel.errors import ConfigError
from unsloth_accel.multigpu.aggregation import AggregationMethod
from unsloth_accel.multigpu.direct_trainer import MultiGPUTrainer
from unsloth_accel.multigpu.sharding import shard_batch

LENGTHS = (4, 12, 7, 3, 9, 5)
RATE = 0.5
SIZES = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}


def model() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=1, num_key_value_heads=2, pad_token_id=0))


def row(length: int, number: int) -> dict[str, torch.Tensor]:
    ids = (torch.arange(12) * (3 + number) + number) % 31 + 1
    mask = (torch.arange(12) < length).long()
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": torch.where(mask == 1, ids, -100)}


ROWS = [row(length, number) for number, length in enumerate(LENGTHS)]
BATCH = {name: torch.stack([one[name] for one in ROWS]) for name in ROWS[0]}


def flat(parameters: Any) -> list[float]:
    return torch.cat([one.detach().flatten() for one in parameters]).tolist()


def expected(ranks: int) -> dict[str, list[float]]:
    """The weights that each method comes to: gradients of each rank's rows alone, put together by hand."""
    gradients, tokens = [], []
    for part in shard_batch(BATCH, ranks).parts:
        one = model()
        one(**part).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in one.parameters()]))
        tokens.append(int((part["labels"][:, 1:] != -100).sum()))
    every = torch.stack(gradients)
    share = torch.tensor(tokens)[:, None] / sum(tokens)
    found = {
        "mean": every.mean(dim=0),
        "sum": every.sum(dim=0),
        "weighted_mean": (every * share).sum(dim=0),
        "median": every.quantile(0.5, dim=0),
    }
    start = torch.tensor(flat(model().parameters()))
    return {method: (start - RATE * gradient).tolist() for method, gradient in found.items()}


def trainer(method: str = "weighted_mean", **options: Any) -> MultiGPUTrainer:
    config = {"class": torch.optim.SGD, "kwargs": {"lr": RATE}}
    return MultiGPUTrainer(model(), None, config, AggregationMethod(method), max_grad_norm=0, **options)


found: dict[str, Any] = {"weights": {}}
for method in AggregationMethod:
    one = trainer(method.value)
    one.train_step(BATCH)
    found["weights"][method.value] = flat(one.model.parameters())
ranks = environment.world_size()
if ranks == 1:
    found["expected"] = {number: expected(number) for number in (2, 3)}

# Six rows, of which a step takes four: the last one has two.
whole = trainer(
    gradient_accumulation_steps=4 // ranks if ranks < 3 else 1,
    scheduler_config={"class": torch.optim.lr_scheduler.StepLR, "kwargs": {"step_size": 1, "gamma": 0.5}},
)
if ranks < 3:
    found["before"] = whole.evaluate(DataLoader(ROWS, batch_size=1))
    epoch = whole.train_epoch(DataLoader(ROWS, batch_size=1))
    found["epoch"] = {name: value for name, value in epoch.items() if "second" not in name}
    found["ranks"] = len(epoch["seconds_by_rank"])
    found["after"] = whole.evaluate(DataLoader(ROWS, batch_size=4))
    found["epoch weights"] = flat(whole.model.parameters())
clipped = trainer()
clipped.max_grad_norm = 1e-3
found["clipped"] = clipped.train_step(BATCH)["grad_norm"]
start = torch.tensor(flat(model().parameters()))
found["moved"] = float((torch.tensor(flat(clipped.model.parameters())) - start).norm())
few = trainer(gradient_accumulation_steps=2)
found["few rows"] = few.train_step({name: value[:1] for name, value in BATCH.items()})["rows"]
few.cleanup()
found["errors"] = []
wrong: list[dict[str, Any]] = [{"num_gpus": 5}] if ranks > 1 else []
for options in wrong:
    try:
        MultiGPUTrainer(model(), **options)
    except ConfigError as error:
        found["errors"].append(str(error))
if environment.rank() == 0:
    Path(sys.argv[1]).write_text(json.dumps(found), encoding="utf-8")
