"""training.resume=if_any: what a launch that a scheduler repeats does, by what its output_dir holds."""

from __future__ import annotations

from dataclasses import replace

from ..config.lora_fields import as_meant
from ..config.read_run import load
from ..config.run_config import IF_ANY, RunConfig
from ..errors import ConfigError, Problem
from .checkpoints import find_checkpoints, is_finished, newest
from .own_files import is_of_a_run
from .resume_facts import facts_of_run, lacking
from .run_directory import PLANNED_YAML, RunDirectory

_LENGTH = ("max_steps", "num_train_epochs")
_COMPARED = ("model.", "lora.", "data.", "batch.", "training.")
_NO_MATTER = (
    "model.keep_activations",
    *(f"training.{name}" for name in ("resume", "overwrite", "save_", "logging_", "hub_", "push_to_hub")),
)
"""Keys below these that no adapter depends on."""


def decided(run: RunConfig) -> RunConfig:
    """Return `run` with training.resume decided where it is `if_any`: true where its output_dir holds a whole
    checkpoint; else false, and what an attempt left that no run can go on from gives way (training.overwrite)."""
    if run.training.get("resume") != IF_ANY:
        return run
    whole, broken = newest(run.output_dir)
    anew = {"overwrite": True} if broken and not whole and is_of_a_run(run.output_dir) else {}
    return replace(run, training={**run.training, "resume": whole is not None, **anew})


def is_done(run: RunConfig) -> bool:
    """Return whether `run`, with training.resume=if_any, has nothing left to do: its adapter is there, was made with as
    many steps and epochs as it asks for, and nothing that comes after it is lacking, or there is no checkpoint from
    which that could be made."""
    files = RunDirectory(run.output_dir)
    if run.training.get("resume") != IF_ANY or not is_of_a_run(run.output_dir) or not is_finished(run.output_dir):
        return False
    try:
        made = load(files.adapter / PLANNED_YAML)
    except ConfigError:  # of an earlier version, or gone: what lies beside it will do
        return not find_checkpoints(run.output_dir)
    if any(made.training.get(key) != run.training.get(key) for key in _LENGTH):
        return False
    return not lacking(run) or newest(run.output_dir)[0] is None


def left_out(run: RunConfig) -> list[Problem]:
    """Return warnings for a run that `is_done`: what is lacking of its end, and what it is described with otherwise."""
    files, found = RunDirectory(run.output_dir), []
    if what := lacking(run):
        consequence = f"was ended before {what}, and there is no checkpoint to go on from."
        fix = "use the adapter as it is, or training.overwrite=true in place of training.resume to train anew"
        found.append(Problem(key="output_dir", value=run.output_dir, consequence=consequence, fix=fix))
    try:
        made = facts_of_run(load(files.adapter / PLANNED_YAML))
    except ConfigError:
        return [replace(one, severity="warning") for one in found]
    whole, _ = newest(run.output_dir)
    if whole and (rows := whole.made_with.get("data.path")):  # which lie where they lay, and may be others by now
        made["data.path"] = f"rows with fingerprint {rows}"
    others = [
        key
        for key, value in facts_of_run(run).items()
        if key.startswith(_COMPARED) and not key.startswith(_NO_MATTER)
        if value not in (None, "auto") and as_meant(key, made.get(key)) != as_meant(key, value)
        if not (key == "lora.target_modules" and isinstance(value, str))  # which the plan made a list of
    ]
    if others:
        consequence = f"was made with {'another' if len(others) == 1 else 'other'} {', '.join(others)}; it is left so."
        fix = "another output_dir, or training.overwrite=true in place of training.resume"
        found.append(Problem(key="output_dir", value=run.output_dir, consequence=consequence, fix=fix))
    return [replace(one, severity="warning") for one in found]
