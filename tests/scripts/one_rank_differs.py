"""Train a run.yaml; rank 1 is given what DIFFERENCE (in the environment) says: another file, or other rows.

Before the other rows, plain Trainers are trained whose ranks draw, batch or label their rows otherwise, or as they may;
rank 0 prints as JSON what came of each.
"""

from __future__ import annotations

import gc
import json
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import unsloth_accel
from unsloth_accel.adapters import environment
from unsloth_accel.adapters.rank_checks import GuardError
from unsloth_accel.config.read_run import load
from unsloth_accel.training import process

kind, value = os.environ["DIFFERENCE"].split("=", 1)
different = environment.rank() == 1
if kind == "data.path":
    sys.exit(process.main(sys.argv[1], *([f"data.path={value}"] if different else [])))
environment.show_own_errors_plainly()
sft = process.build_trainer(load(sys.argv[1]))

import torch  # noqa: E402
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, Sampler  # noqa: E402
from transformers import Trainer, TrainingArguments, set_seed  # noqa: E402

gc.freeze()  # each training collects garbage when it starts: half a second for all that Unsloth imports
ROWS = 26
PLACE = tempfile.mkdtemp()


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.weights = torch.nn.Embedding(64, 64)

    def forward(self, input_ids: Any, labels: Any = None, **_: Any) -> Any:
        logits = self.weights(input_ids)
        return {"loss": torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


class Rows(Dataset[Any]):
    """Rows of four tokens; `other` has others, `chance` draws them anew each time."""

    def __init__(self, other: bool = False, chance: bool = False) -> None:
        self.shift, self.chance = int(other), chance

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> Any:
        if row >= ROWS:  # where it is iterated
            raise IndexError(row)
        shift = random.randrange(9) if self.chance else self.shift
        return {"input_ids": [(row + shift + place) % 64 for place in range(4)]}


class Stream(IterableDataset[Any]):
    """An endless stream, each rank's own."""

    def __iter__(self) -> Iterator[Any]:
        yield from (Rows()[(environment.rank() + number) % ROWS] for number in range(1000))


class Order(Sampler[int]):
    """All rows in order; from the pass `begin` on another order on rank 1, in its last two rows."""

    def __init__(self, begin: int) -> None:
        self.begin, self.passes = begin, 0

    def __len__(self) -> int:
        return ROWS

    def __iter__(self) -> Iterator[int]:
        self.passes += 1
        turned = different and self.passes >= self.begin
        yield from (*range(ROWS - 2), *((ROWS - 1, ROWS - 2) if turned else (ROWS - 2, ROWS - 1)))


def collate(rows: Any, hidden: int = 0) -> Any:
    ids = torch.tensor([row["input_ids"] for row in rows])
    labels = ids.clone()
    labels[:, :hidden] = -100
    return {"input_ids": ids, "labels": labels}


own = random.Random(environment.rank())


def by_chance(rows: Any) -> Any:
    """Labels hidden at random, by the process's generator and by one of the rank's own."""
    batch = collate(rows)
    hidden = [random.random() < 0.3 or own.random() < 0.3 for _ in range(batch["labels"].numel())]
    batch["labels"][torch.tensor(hidden).view(-1, 4)] = -100
    batch["labels"][:, 0] = batch["input_ids"][:, 0]
    return batch


def trained(
    *,
    rows: Any = None,
    collator: Any = collate,
    sampler: Any = None,
    loader: Any = None,
    seed: int | None = None,
    **arguments: Any,
) -> str:
    """What two epochs of a plain Trainer come to; the step at which it was stopped, and why."""
    settings = {"num_train_epochs": 2, "per_device_train_batch_size": 2, "report_to": "none", "use_cpu": True}
    settings |= {"save_strategy": "no", "remove_unused_columns": False, "disable_tqdm": True}
    args = TrainingArguments(PLACE, **(settings | arguments))
    rows = Rows() if rows is None else rows
    trainer = unsloth_accel.adapt(Trainer(Model(), args, data_collator=collator, train_dataset=rows))
    if sampler is not None:
        trainer._get_train_sampler = lambda *_: sampler
    if loader is not None:
        trainer.get_train_dataloader = lambda: loader(trainer)
    if seed is not None:
        set_seed(seed)
    try:
        trainer.train()
    except GuardError as error:
        return f"step {trainer.state.global_step}: {error}"
    return "trained"


def prepared(batch: int) -> Any:
    return lambda trainer: trainer.accelerator.prepare(DataLoader(Rows(), batch_size=batch, collate_fn=collate))


def own_shares(trainer: Any) -> Any:
    """A loader that Accelerate never sees, as each rank takes every other row by itself."""
    return DataLoader(
        Rows(), batch_size=2, collate_fn=collate, sampler=DistributedSampler(Rows(), 2, environment.rank())
    )


rank = environment.rank()
seen = {
    "stopped": {
        "seeded by rank": trained(seed=rank),
        "an order that ends otherwise": trained(sampler=Order(begin=1)),
        "an order that ends otherwise in the second epoch": trained(sampler=Order(begin=2)),
        "other labels": trained(collator=lambda rows: collate(rows, hidden=2 * rank)),
        "other rows": trained(rows=Rows(other=different)),
        "other batches": trained(loader=prepared(2 + rank)),
    },
    "let be": {
        "seeded alike": trained(seed=5),
        "a seed of its own": trained(seed=rank, data_seed=3),
        "a generator that accelerate keeps in step": trained(
            seed=rank, accelerator_config={"use_seedable_sampler": False}
        ),
        "rank 0 reads": trained(seed=rank, accelerator_config={"dispatch_batches": True}),
        "batches split": trained(seed=5, accelerator_config={"split_batches": True}),
        "a stream": trained(rows=Stream(), max_steps=3),
        "streams of the ranks": trained(rows=Stream(), max_steps=3, accelerator_config={"dispatch_batches": False}),
        "by length": trained(seed=5, train_sampling_strategy="group_by_length"),
        "balanced by transformers": trained(seed=5, train_sampling_strategy="batch_rebalance"),
        "labels by chance": trained(collator=by_chance),
        "rows by chance": trained(rows=Rows(chance=True)),
        "workers on one rank": trained(dataloader_num_workers=rank),
        "shared out by the script": trained(loader=own_shares),
    },
}
set_seed(rank)
try:
    sft.train()
except GuardError as error:
    seen["stopped"]["rows shared out by tokens"] = f"step {sft.state.global_step}: {error}"
if rank == 0:
    print(json.dumps(seen), flush=True)

if different:
    sft.train_dataset = sft.train_dataset.select(range(int(value)))
    sft.args.learning_rate *= 2
sft.train()
