"""Packs tokenised rows, after the trainer is built: only then is it known whether it will keep packed rows apart.

Unsloth turns packing off for models and devices that can't (on a CPU, without FlashAttention, always). Rows packed
before would be trained as one, each reading those before it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, Problem
from ..files import why_unwritten
from .rows import no_step
from .stored_rows import stored

if TYPE_CHECKING:
    from datasets import Dataset

    from ..config.run_config import RunConfig
    from .prepare import Prepared

DIVIDING = ("wrapped", "bfd_split")
"""TRL's packing strategies that divide longer rows among packed ones instead of cutting them."""


def pack(trainer: Any, run: RunConfig, rows: Prepared) -> None:
    """Give `trainer`, if it packs, its rows packed; once per machine, like tokenising.

    Raises `ConfigError` where it does not, and rows were left whole for it to divide.
    """
    asked, strategy = run.training.get("packing"), run.training.get("packing_strategy", "bfd")
    if not trainer.args.packing:
        if asked and strategy in DIVIDING and run.data.too_long == "cut":
            key, fix = "training.packing_strategy", "training.packing=false, or without packing_strategy"
            consequence = "Unsloth turns packing off here, so longer rows would be neither divided nor cut."
            raise ConfigError(Problem(key=key, value=strategy, consequence=consequence, fix=fix))
        if asked:
            rows.report["packing"] = "turned off by Unsloth: a step has rows as they are, and so fewer tokens"
            print(f"data: packing {rows.report['packing']}", flush=True)
        return
    limit = run.model.max_seq_length
    if rows.train_directory:
        trainer.train_dataset = packed(trainer.train_dataset, rows.train_directory, limit, strategy)
        rows.report["packed"] = count = len(trainer.train_dataset)
        size = run.batch.rows(limit) or 1
        if run.training.get("dataloader_drop_last") and count < size:
            raise ConfigError(no_step(count, size))
    eval_packing = run.training.get("eval_packing")
    if rows.held_out_directory and (asked if eval_packing is None else eval_packing):
        trainer.eval_dataset = packed(trainer.eval_dataset, rows.held_out_directory, limit, strategy)


def packed(dataset: Dataset, directory: Path, limit: int, strategy: str) -> Dataset:
    """`dataset` in rows of up to `limit` tokens, by TRL; kept beside the unpacked rows in `directory`."""
    from trl import pack_dataset

    try:
        return stored(directory / f"packed-{strategy}", lambda: (pack_dataset(dataset, limit, strategy), {}))[0]
    except OSError as error:
        reason, fix = why_unwritten(error, directory)
        print(f"data: packed rows stay in memory, {directory} can't be written: {reason}. Fix: {fix}", flush=True)
        return pack_dataset(dataset, limit, strategy)
