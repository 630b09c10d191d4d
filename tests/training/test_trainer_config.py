"""The fields of a run reach TRL's config, and no secret leaves it."""

import pickle
from pathlib import Path
from typing import Any, get_type_hints
from unittest.mock import MagicMock

import pytest

from unsloth_accel.config.read_run import from_dict
from unsloth_accel.config.trainer_fields import training_fields
from unsloth_accel.config.trainer_settings import settings
from unsloth_accel.methods import METHODS, USUAL_METHOD
from unsloth_accel.secret import HIDDEN, is_secret
from unsloth_accel.training.trainer_config import trainer_config

TOKEN = "hf_aSecretThatNobodyShouldSee"


def test_a_token_reaches_the_trainer_and_nothing_that_it_writes(description: dict[str, Any]) -> None:
    training = {"hub_token": TOKEN, "run_name": f"my {TOKEN}", "lr_scheduler_kwargs": {"token": TOKEN}}
    training |= {"per_device_train_batch_size": 1, "bf16": False}
    described = {**description, "training": training, "distributed": {"device": "cpu"}}
    config = trainer_config(from_dict(described), METHODS[USUAL_METHOD], {})
    assert config.hub_token == TOKEN
    assert config.run_name == config.lr_scheduler_kwargs["token"] == HIDDEN
    written = [str(config), repr(config), config.to_json_string(), str(config.to_sanitized_dict())]
    assert TOKEN not in "".join(written)
    assert TOKEN.encode() not in pickle.dumps(config)
    assert pickle.loads(pickle.dumps(config)).hub_token is None


def test_every_field_that_may_hold_a_secret_is_known() -> None:
    """Fields whose names say so; a new one of TRL's is either a secret or joins those that are none."""
    names = training_fields(METHODS[USUAL_METHOD].config_sources)
    telling = {name for name in names if name.endswith(("token", "key", "password", "secret", "credentials"))}
    assert telling - {"eos_token", "pad_token"} == {"hub_token"}
    assert is_secret("hub_token")


def test_what_is_checked_is_what_the_processes_have(description: dict[str, Any]) -> None:
    """Our defaults and the config's, read from its source, are those of the config that a process makes."""
    described = {**description, "training": {"adam_beta2": 0, "bf16": False}, "distributed": {"device": "cpu"}}
    run = from_dict(described)
    made = trainer_config(run, METHODS[USUAL_METHOD], {})
    changed = {"per_device_train_batch_size", "disable_tqdm", "output_dir", "use_cpu", "gradient_checkpointing"}
    # What the config itself makes of others, and Unsloth's own defaults.
    changed |= {"debug", "report_to", "max_length", "dataloader_pin_memory", "accelerator_config", "save_total_limit"}
    # Set elsewhere, as gradient_checkpointing is; with unsloth imported, by another test too, its config has its own.
    changed |= {"gradient_checkpointing_kwargs"}
    said = {name: value for name, value in settings(run).items() if name not in changed and hasattr(made, name)}
    other = {name: (value, getattr(made, name)) for name, value in said.items() if getattr(made, name) != value}
    assert other == {}
    assert made.save_total_limit == settings(run)["save_total_limit"]
    assert len(said) > 100


def test_a_run_that_wants_no_watch_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`adapt`, by which a script's ranks are watched, is told what the run says of hangs."""
    from unsloth_accel.training import adapt, attach

    class ToldError(Exception):
        pass

    def noted(trainer: object, *, hang_after: float | None = None) -> None:
        raise ToldError(hang_after)

    monkeypatch.setattr(adapt, "adapt", noted)
    values = {"model": {"name": "tiny"}, "data": {"path": "rows.jsonl"}, "output_dir": str(tmp_path)}
    run = from_dict(values | {"batch": {"on_out_of_memory": "stop"}, "logging": {"hang_after": 0}})
    with pytest.raises(ToldError, match=r"^0"):
        attach.attach(MagicMock(), run, MagicMock(), METHODS["sft"])


def test_the_types_of_adapt_can_be_read() -> None:
    """Documentation tools and checks at runtime read those of a public function."""
    from unsloth_accel.training.adapt import adapt

    hints = get_type_hints(adapt)
    assert hints["return"] is hints["trainer"]
