"""The config of a run's trainer: the fields of `training`, and what run.yaml says elsewhere."""

from __future__ import annotations

from typing import Any

from ..config.run_config import RunConfig
from ..config.trainer_fields import checkpointing_fields
from ..config.trainer_settings import given_fields
from ..errors import ConfigError, Problem
from ..methods import Method
from ..registry import imported
from ..secret import is_secret, shown
from .load_model import CHECKPOINTING


def trainer_config(run: RunConfig, method: Method, own: dict[str, Any]) -> Any:
    """Make the method's config, with `own` fields of the method; making it forms the process group.

    Raises `ConfigError` for a field that it refuses.
    """
    checkpointing = bool(CHECKPOINTING[run.model.gradient_checkpointing])
    fields = {
        # Elsewhere than in a field of its own no secret is of use to the Trainer, and trackers would write it down.
        **{key: value if is_secret(key) else shown(value) for key, value in given_fields(run).items()},
        **own,
        "output_dir": run.output_dir,
        "push_to_hub": False,  # adapters.pushing does it
        **dict.fromkeys(checkpointing_fields(method.config_sources), checkpointing),
        "report_to": run.logging.report_to,
        "disable_tqdm": True,
    }
    if run.distributed.device == "cpu":
        fields["use_cpu"] = True
    imported(method.trainer_class)  # now, so that it stays the one that this config belongs to
    try:
        return imported(method.config_class)(**fields)
    except (TypeError, ValueError) as error:
        fix = "correct the field of `training` that it names"
        consequence = f"{method.config_name} refuses it: {error}"
        raise ConfigError(Problem(key="training", consequence=consequence, fix=fix)) from None
