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
from ..errors import ConfigError, Problem, first_line
from ..methods import METHODS
from ..planning.groups import eval_rows
from ..registry import imported
from ..rewards import reward_functions
from .process import main
from .process import train as train  # for a program that trains in its own process
from .sft import prepare_data as prepare_data

if TYPE_CHECKING:
    from transformers import Trainer

    from ..data.prepare import Prepared


def config_fields(run: RunConfig) -> dict[str, Any]:
    """Return fields of the config beside those of `training` and those that every method's config has."""
    held_out = eval_rows(run, environment.world_size())
    return {
        "remove_unused_columns": False,  # rewards read the other columns
        "reward_weights": [one.weight for one in run.rewards.functions],
        **({"per_device_eval_batch_size": held_out} if held_out else {}),
    }


def make_trainer(run: RunConfig, model: Any, tokenizer: Any, config: Any, rows: Prepared) -> Trainer:
    """Make TRL's trainer with the rows and rewards; raises `ConfigError` for settings that it refuses."""
    if (told := pad_apart(tokenizer)) and environment.rank() == 0:
        print(f"unsloth_accel: {told}", flush=True)
    functions, _ = reward_functions(run.rewards, tokenizer)
    try:
        trainer: Trainer = imported(METHODS[run.method].trainer_class)(
            model=model,
            processing_class=tokenizer,
            reward_funcs=functions,
            args=config,
            train_dataset=rows.train,
            eval_dataset=rows.held_out,
        )
    except (ValueError, NotImplementedError) as error:  # fields that contradict each other
        consequence, fix = f"TRL refuses it: {first_line(error)}", "correct the setting that it names"
        raise ConfigError(Problem(key="training", consequence=consequence, fix=fix)) from None
    trainer.data_report = rows.report
    return trainer


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
