"""Preferences: pairs of answers, or answers with a label, and TRL's trainers around them (DPO, KTO, reward, ORPO).

accelerate launch --config_file accelerate.yaml -m unsloth_accel.training.preference_methods run.planned.yaml
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import unsloth_accel  # noqa: F401  (first: sets what must be set before unsloth is imported)

from ..adapters import environment
from ..adapters.reference import settle_reference
from ..config.run_config import RunConfig
from ..config.start_adapter import find_adapter
from .process import main
from .process import train as train  # for a program that trains in its own process
from .sft import prepare_data as prepare_data
from .trls_trainer import trls_trainer

if TYPE_CHECKING:
    from transformers import Trainer

    from ..data.prepare import Prepared


def config_fields(run: RunConfig) -> dict[str, Any]:
    """Return fields of the config beside those of `training` and those that every method's config has."""
    return {"max_length": run.model.max_seq_length}


def make_trainer(run: RunConfig, model: Any, tokenizer: Any, config: Any, rows: Prepared) -> Trainer:
    """Make TRL's trainer with the rows; raises `ConfigError` for settings that it refuses."""
    if getattr(config, "precompute_ref_log_probs", False) and environment.rank() == 0:
        print("reading all rows with the reference, before training", flush=True)
    trainer = trls_trainer(run, model, tokenizer, config, rows)
    settle_reference(trainer, is_new=find_adapter(run.model.name) is None)
    return trainer


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
