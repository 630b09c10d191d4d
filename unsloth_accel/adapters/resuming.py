"""Starting to train: the ranks agree, and a checkpoint to go on from is whole and fits.

Mends, in transformers 5.17:
- Going on from a run whose learning rate had reached its end, with more steps, makes the first step at the old end, 0,
  since the Trainer restores the rate with the optimizer and the schedule sets it only after a step. Here before it.
- Going on from a checkpoint with max_steps behind it makes one step more, as the Trainer looks after a step only. Here
  it makes none, so that a run whose final save failed gets the adapter that it had.
- logging_steps, eval_steps and save_steps of a run that goes on are the checkpoint's, whatever the run says now. Here
  they are the run's.
- An evaluation that a stop left out (`callbacks.StepAgreement`) is never made: another checkpoint may be the best
  one, and early stopping count otherwise. Here it is made before the first step.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifacts.checkpoints import EVALUATION_LEFT, Checkpoint, newest
from ..artifacts.resume_facts import difference, steps_problem
from ..artifacts.run_directory import RunDirectory
from ..capabilities.probe import available
from ..errors import ConfigError, Problem, counted, raise_errors
from . import environment, rank_agreement
from .checkpointing import BestCheckpoint, made_with, steps_per_epoch
from .hook_types import Arguments, Control, State, TrainerCallback

if TYPE_CHECKING:
    from transformers import Trainer


def check_before_training(trainer: Trainer) -> None:
    """Make `trainer.train` compare the ranks first, and refuse a checkpoint that is cut short or of another run."""
    train, epochs = trainer.train, SameEpochs(trainer)
    trainer.add_callback(epochs)

    def checked(resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        rank_agreement.check_same(rank_agreement.facts_of(trainer))
        found = _resumable(trainer, resume_from_checkpoint) if resume_from_checkpoint else None
        epochs.expect(found)
        resume_from_checkpoint = str(found.path) if found else resume_from_checkpoint
        return train(resume_from_checkpoint, *args, **kwargs)

    trainer.train = checked
    if available("no step past the end"):
        _stop_at_the_end(trainer)
    trainer.add_callback(RateOfSchedule())
    trainer.add_callback(StepsAsAsked())


def _stop_at_the_end(trainer: Trainer) -> None:
    run_epoch, finalize = trainer._run_epoch, trainer._finalize_training

    def run(*args: Any, **kwargs: Any) -> None:
        _evaluate_what_was_left(trainer)
        if trainer.control.should_training_stop:  # early, after that evaluation
            return
        if trainer.state.global_step >= trainer.state.max_steps:
            if environment.rank() == 0:
                print(f"nothing is left of {counted(trainer.state.max_steps, 'step')}: no step is made", flush=True)
            trainer.control.should_training_stop = True
            return
        run_epoch(*args, **kwargs)

    def ended(*args: Any, **kwargs: Any) -> Any:
        _evaluate_what_was_left(trainer)  # of the last epoch's end, after which no other begins
        return finalize(*args, **kwargs)

    trainer._run_epoch, trainer._finalize_training = run, ended


def _evaluate_what_was_left(trainer: Trainer) -> None:
    """Make the evaluation that a stop left out after the step of the checkpoint that `trainer` goes on from."""
    state, args = trainer.state, trainer.args
    if state.stateful_callbacks.pop(EVALUATION_LEFT, None) is None or args.eval_strategy == "no":
        return
    metrics = trainer._evaluate(None, None)
    trainer._determine_best_metric(metrics=metrics, trial=None)
    checkpoint = RunDirectory(str(args.output_dir)).checkpoint(state.global_step)
    if state.best_global_step == state.global_step and checkpoint.is_dir():
        state.best_model_checkpoint = str(checkpoint)
    for one in trainer.callback_handler.callbacks:
        if isinstance(one, BestCheckpoint):
            one.saved(state)


class SameEpochs(TrainerCallback):
    """Refuses to go on from a checkpoint where an epoch has another number of steps now: the Trainer would go on with
    other rows. Only now are the loader and so its length known."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.checkpoint: Checkpoint | None = None

    def expect(self, checkpoint: Checkpoint | None) -> None:
        """Take the next training as one that goes on from `checkpoint`."""
        self.checkpoint = checkpoint

    def on_train_begin(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        problem = steps_problem(self.checkpoint, steps_per_epoch(self.trainer)) if self.checkpoint else None
        if problem is not None:
            raise ConfigError(problem)


class RateOfSchedule(TrainerCallback):
    """Sets the learning rate of a resumed run's first step to what its schedule says for that step.

    Changes no bit where the schedule is the checkpoint's own.
    """

    def on_train_begin(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        schedule: Any = kwargs.get("lr_scheduler")
        schedule = getattr(schedule, "scheduler", schedule)
        if not state.global_step or not hasattr(schedule, "lr_lambdas"):
            return
        groups = schedule.optimizer.param_groups
        for group, base, factor in zip(groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
            group["lr"] = base * factor(schedule.last_epoch)
        if available("the learning rate of a resumed run's first log"):
            schedule._last_lr = [group["lr"] for group in groups]


class StepsAsAsked(TrainerCallback):
    """Has a resumed run log, evaluate and save as its arguments say: the Trainer takes the checkpoint's steps."""

    def on_train_begin(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        if state.global_step:  # else they are the arguments', or what a callback of the user's own has made of them
            state.compute_steps(args, state.max_steps)


def _resumable(trainer: Trainer, asked: str | bool) -> Checkpoint:
    """The checkpoint to go on from: the one asked for, or the newest whole one of output_dir for True.

    Raises `ConfigError` where there is none, it is cut short, or it was made with another run.
    """
    key = "resume_from_checkpoint"
    if asked is True:
        found, broken = newest(trainer.args.output_dir)
        told = "; ".join(f"{other.path.name}: {other.fault}" for other in broken)
        if found is None:
            consequence = f"no whole checkpoint is in {trainer.args.output_dir}{f' ({told})' if told else ''}."
            raise ConfigError(Problem(key=key, value=True, consequence=consequence, fix="start without it"))
        if broken and environment.rank() == 0:
            print(f"unsloth_accel: warning: {told}; going on from {found.path.name}", file=sys.stderr, flush=True)
        rank_agreement.check_same({key: found.path.name}, "checkpoints")
    else:
        found = Checkpoint(Path(str(asked)))
        if found.fault is not None:
            whole, _ = newest(found.path.parent)
            fix = f"{whole.path}, the newest whole one" if whole else "start without it"
            raise ConfigError(Problem(key=key, value=str(asked), consequence=f"{found.fault}.", fix=fix))
    problems = difference(found, made_with(trainer))
    for problem in problems:
        if problem.severity == "warning" and environment.rank() == 0:
            print(f"unsloth_accel: {problem}", file=sys.stderr, flush=True)
    raise_errors(problems)
    return found
