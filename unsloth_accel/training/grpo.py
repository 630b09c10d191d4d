"""Completions that are scored: a run's prompts, its rewards, and TRL's trainer around them (GRPO).

accelerate launch --config_file accelerate.yaml -m unsloth_accel.training.grpo run.planned.yaml
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import unsloth_accel  # noqa: F401  (first: sets what must be set before unsloth is imported)

from ..adapters import environment
from ..adapters.generating import pad_apart
from ..config.run_config import RunConfig
from ..config.trainer_settings import settings
from ..planning.groups import eval_rows
from ..rewards import reward_functions
from .process import main
from .process import train as train  # for a program that trains in its own process
from .sft import prepare_data as prepare_data
from .trls_trainer import trls_trainer

if TYPE_CHECKING:
    from transformers import Trainer

    from ..data.prepare import Prepared


def config_fields(run: RunConfig) -> dict[str, Any]:
    """Return fields of the config beside those of `training` and those that every method's config has."""
    held_out = eval_rows(run, environment.world_size())
    values = settings(run)
    # As TRL has it where none is given; Unsloth would take 0.28 with a dapo that is written out, and 5 with cispo
    # (unsloth/models/rl.py: `check_dr_grpo`).
    clipped = "epsilon_high" in values and values["epsilon_high"] is None
    return {
        **({"epsilon_high": values["epsilon"]} if clipped else {}),
        "remove_unused_columns": False,  # rewards read the other columns
        "reward_weights": [one.weight for one in run.rewards.functions],
        **({"per_device_eval_batch_size": held_out} if held_out else {}),
    }


def make_trainer(run: RunConfig, model: Any, tokenizer: Any, config: Any, rows: Prepared) -> Trainer:
    """Make TRL's trainer with the rows and rewards; raises as `trls_trainer`."""
    if (told := pad_apart(tokenizer)) and environment.rank() == 0:
        print(f"unsloth_accel: {told}", flush=True)
    functions, _ = reward_functions(run.rewards, tokenizer)
    return trls_trainer(run, model, tokenizer, config, rows, reward_funcs=functions)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
