"""training.resume=if_any: what a launch that a scheduler repeats does, by what its output_dir holds."""

from __future__ import annotations

from dataclasses import replace

from ..config.read_run import load
from ..config.run_config import IF_ANY, RunConfig
from ..errors import ConfigError
from .checkpoints import find_checkpoints, is_finished, newest
from .own_files import is_of_a_run
from .run_directory import PLANNED_YAML, RunDirectory

_LENGTH = ("max_steps", "num_train_epochs")


def decided(run: RunConfig) -> RunConfig:
    """Return `run` with training.resume decided where it is `if_any`: true where its output_dir holds a whole
    checkpoint; else false, and what an attempt left that no run can go on from gives way (training.overwrite)."""
    if run.training.get("resume") != IF_ANY:
        return run
    whole, broken = newest(run.output_dir)
    anew = {"overwrite": True} if broken and not whole and is_of_a_run(run.output_dir) else {}
    return replace(run, training={**run.training, "resume": whole is not None, **anew})


def is_done(run: RunConfig) -> bool:
    """Return whether `run`, with training.resume=if_any, has nothing left to do: its adapter is there, and was made
    with as many steps and epochs as it asks for."""
    files = RunDirectory(run.output_dir)
    if run.training.get("resume") != IF_ANY or not is_of_a_run(run.output_dir) or not is_finished(run.output_dir):
        return False
    try:
        made = load(files.adapter / PLANNED_YAML)
    except ConfigError:  # of an earlier version, or gone: what lies beside it will do
        return not find_checkpoints(run.output_dir)
    return all(made.training.get(key) == run.training.get(key) for key in _LENGTH)
