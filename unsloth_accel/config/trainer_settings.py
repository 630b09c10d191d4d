"""The settings that a run's trainer has: what `training` gives, our defaults, and those of the method's config.

The processes make their config of `given_fields`, and every check before them reads the same.
"""

from __future__ import annotations

from typing import Any

from ..methods import METHODS, method_or_usual
from .run_config import KEPT_CHECKPOINTS, RunConfig
from .trainer_fields import field_options, training_fields

_OWN: dict[str, Any] = {
    "logging_steps": 1,
    # Real tokens over all ranks, for tokens per second (adapters.token_count).
    "include_num_input_tokens_seen": "non_padding",
}
OTHERS_ON_GPUS = ("learning_rate", "weight_decay", "warmup_steps", "seed")
"""Fields that decide what is learned and have other defaults in Unsloth's configs than in TRL's, on GPUs alone
(unsloth/models/rl.py, `replacements`). Those of batch, optimizer and precision a plan decides."""


def given_fields(run: RunConfig) -> dict[str, Any]:
    """Return the fields of the trainer's config that `run` gives, with our own defaults."""
    kinds = training_fields(method_or_usual(run.method).config_sources)
    asked = {
        # Some take no whole number in a float's place: torch's AdamW has betas of one type.
        name: float(value) if kinds.get(name) is float and type(value) is int and not name.endswith("_steps") else value
        for name, value in run.trainer_fields().items()
    }
    fields = _OWN | kept_defaults(run) | _saving(run) | asked
    if run.data.holds_out and "per_device_train_batch_size" in fields:
        fields.setdefault("per_device_eval_batch_size", 2 * fields["per_device_train_batch_size"])
    return fields


def kept_defaults(run: RunConfig) -> dict[str, Any]:
    """Return TRL's defaults of `OTHERS_ON_GPUS`, and of the method's own, that `run` leaves out, so that GPUs train as
    a CPU does; none where TRL is not installed."""
    usual = field_options(method_or_usual(run.method).config_sources, "default")
    names = (*OTHERS_ON_GPUS, *method_or_usual(run.method).others_on_gpus)
    return {name: usual[name] for name in names if name in usual and name not in run.training}


def settings(run: RunConfig) -> dict[str, Any]:
    """Return the value of every field of the trainer's config, as the processes will have it; without those whose
    default code decides, and only what `run` gives where the config's package is not installed."""
    return {**field_options(method_or_usual(run.method).config_sources, "default"), **given_fields(run)}


def shared_out_by_tokens(run: RunConfig) -> bool:
    """Whether nothing that the run says keeps its rows from being shared out by tokens (`adapters.token_balance`)."""
    by_length = run.training.get("train_sampling_strategy") in ("group_by_length", "batch_rebalance")
    own_weights = run.training.get("average_tokens_across_devices") is False
    grouped = by_length or run.training.get("group_by_length")
    by_rows = METHODS[run.method].mean_over_rows or METHODS[run.method].generates
    return run.batch.balance == "tokens" and not (run.data.streaming or grouped or own_weights or by_rows)


def depends_on_ranks(run: RunConfig) -> str:
    """Return a sentence on why several processes don't train `run` quite as one does; empty where they do."""
    method, values = method_or_usual(run.method), settings(run)
    found = (why for setting, why in method.depends_with.items() if _says(values, setting))
    return method.depends_on_ranks or next(found, "")


def _says(values: dict[str, Any], setting: str) -> bool:
    name, _, value = setting.partition("=")
    return str(values.get(name)) == value if value else bool(values.get(name))


def _saving(run: RunConfig) -> dict[str, Any]:
    """Return when checkpoints are written where the run doesn't say it: by the clock (`callbacks.StepAgreement`)."""
    strategy = {} if "save_steps" in run.training else {"save_strategy": "no"}  # the Trainer's own is steps
    return strategy | ({"save_total_limit": KEPT_CHECKPOINTS} if run.save_minutes else {})
