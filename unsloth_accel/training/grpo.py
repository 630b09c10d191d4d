"""Completions that are scored: a run's prompts, its rewards, and TRL's trainer around them (GRPO).

accelerate launch --config_file accelerate.yaml -m unsloth_accel.training.grpo run.planned.yaml
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import unsloth_accel  # noqa: F401  (first: sets what must be set before unsloth is imported)

from ..adapters import environment
from ..adapters.generating import pad_apart
from ..capabilities.probe import available
from ..config.run_config import RunConfig
from ..config.trainer_settings import settings
from ..errors import ConfigError, Problem, counted
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
        **({"chat_template_kwargs": run.data.chat_template_kwargs} if run.data.chat_template_kwargs else {}),
        "reward_weights": [one.weight for one in run.rewards.functions],
        **({"per_device_eval_batch_size": held_out} if held_out else {}),
    }


def make_trainer(run: RunConfig, model: Any, tokenizer: Any, config: Any, rows: Prepared) -> Trainer:
    """Make TRL's trainer with the rows and rewards; raises as `trls_trainer`."""
    if (told := pad_apart(tokenizer)) and environment.rank() == 0:
        print(f"unsloth_accel: {told}", flush=True)
    _check_prompts(rows.train, config)
    # As asked: for dr_grpo Unsloth's config turns it off, on GPUs alone (unsloth/models/rl.py: `check_dr_grpo`).
    if (scale := settings(run).get("scale_rewards")) is not None and available("scaled rewards as asked"):
        config.scale_rewards = scale
    functions, _ = reward_functions(run.rewards, tokenizer)
    return trls_trainer(run, model, tokenizer, config, rows, reward_funcs=functions)


def _check_prompts(prompts: Any, config: Any) -> None:
    """Raise `ConfigError` where there are fewer prompts than are answered at a time: a batch that isn't whole is left
    out (trl/trainer/utils.py: `RepeatSampler`), so there would be no step."""
    needed = config.generation_batch_size // config.num_generations
    if not hasattr(prompts, "__len__") or len(prompts) >= needed:
        return
    consequence = f"{needed} are answered at a time, and incomplete batches are left out, so there is no step."
    fix = f"{needed} or more; or a smaller batch.global_size (or training.steps_per_generation, if you give it)"
    raise ConfigError(Problem(key="data.path", value=counted(len(prompts), "prompt"), consequence=consequence, fix=fix))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
