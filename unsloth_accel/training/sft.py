"""Supervised fine-tuning: its rows and TRL's SFTTrainer around them.

accelerate launch --config_file RUN_DIR/accelerate.yaml -m unsloth_accel.training.sft RUN_DIR/run.planned.yaml
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import unsloth_accel  # noqa: F401  (first: sets what must be set before unsloth is imported)

from ..adapters import environment
from ..config.run_config import RunConfig
from .process import main
from .process import train as train  # for a program that trains in its own process
from .trls_trainer import trls_trainer

if TYPE_CHECKING:
    from trl import SFTConfig, SFTTrainer

    from ..data.prepare import Prepared


def config_fields(run: RunConfig) -> dict[str, Any]:
    """Return fields of SFTConfig beside those of `training` and those that every method's config has."""
    # The rows are tokenised already.
    return {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": run.model.max_seq_length}


def prepare_data(run: RunConfig, tokenizer: Any) -> Prepared:
    """Return `run`'s rows, tokenised; raises `ConfigError`, the same on every rank, where they can't be trained."""
    from ..data.prepare import prepare

    rows = prepare(run, tokenizer)
    for note in rows.notes if environment.rank() == 0 else ():
        print(f"data: {note}", flush=True)
    return rows


def make_trainer(run: RunConfig, model: Any, tokenizer: Any, config: SFTConfig, rows: Prepared) -> SFTTrainer:
    """Make TRL's trainer with the rows, packed where it packs; raises `ConfigError` for settings that it refuses."""
    from ..data.pack import pack
    from ..data.prepare import check_collator

    trainer: SFTTrainer = trls_trainer(run, model, tokenizer, config, rows)
    pack(trainer, run, rows)
    check_collator(trainer)
    return trainer


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
