"""Rules about evaluations while a run trains, and what depends on them: the best checkpoint, the metric, schedulers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ...config.installed_source import source_text
from .document import Document, Finding
from .rule_registry import rule
from .run_settings import given, method_of, number, settings_of, sources_of
from .run_words import word_fix


@rule("run-load-best", on=("run",))
def run_load_best(config: Document) -> Iterator[Finding]:
    """load_best_model_at_end needs checkpoints where evaluations are, or TrainingArguments fail in every process: the
    same word for both, and save_steps a multiple of eval_steps; or save_strategy best. Where nothing is said of
    checkpoints they are written by the clock, save_strategy no. Without evaluations no checkpoint is the best, and the
    last weights would be saved without a word.

    Reference: transformers/training_args.py: TrainingArguments._validate_args, "requires the save and eval strategy to
    match", "requires the saving steps to be a round multiple of the evaluation"; unsloth_accel/config/
    trainer_settings.py: `"save_strategy": "no"`.
    """
    values = settings_of(config)
    if values.get("load_best_model_at_end") is not True:
        return
    key = "training.load_best_model_at_end"
    save, evaluate = values.get("save_strategy"), values.get("eval_strategy")
    if evaluate == "no":
        consequence = "no evaluation while it trains, so no checkpoint is the best: the last weights would be saved."
        yield config.problem(key, consequence, "remove it, or training.eval_strategy and data.eval_path")
        return
    if save == "best" or evaluate not in ("steps", "epoch"):
        return
    every, steps = _evaluation_steps(values), number(values.get("save_steps"))
    if evaluate == "steps" and every and steps and steps > 0 and not _is_multiple(steps, every):
        last = "" if save == evaluate else " and training.save_strategy: steps"
        consequence = f"is not a multiple of eval_steps, {every:g}; every process fails."
        if save != evaluate:
            consequence = f"save_strategy is {save} and eval_strategy is {evaluate}; every process fails."
        more = (steps // every + 1) * every if steps >= 1 and every >= 1 and save == evaluate else every
        where = "training.save_steps" if save == evaluate else key
        yield config.problem(where, consequence, f"training.save_steps: {more:g}{last}")
    elif save != evaluate:
        consequence = f"save_strategy is {save} and eval_strategy is {evaluate}; every process fails."
        yield config.problem(key, consequence, f"training.save_strategy: {evaluate}")


def _evaluation_steps(values: dict[str, Any]) -> float | None:
    """Return the steps between evaluations, as TrainingArguments takes them."""
    return number(values.get("eval_steps")) or number(values.get("logging_steps"))


def _is_multiple(steps: float, every: float) -> bool:
    """Return whether TrainingArguments takes `steps` for a multiple; below 1 both are shares of the run."""
    if every <= 0 or steps % every == 0:
        return True
    return steps < 1 and every < 1 and (steps * 10**6) % (every * 10**6) == 0


@rule("run-best-metric", on=("run",))
def run_best_metric(config: Document) -> Iterator[Finding]:
    """save_strategy: best needs metric_for_best_model; without it the Trainer raises in every process.

    Reference: transformers/trainer.py: Trainer._validate_args, "`args.metric_for_best_model` must be provided".
    """
    values = settings_of(config)
    best = values.get("save_strategy") == "best"
    if best and not values.get("metric_for_best_model") and not values.get("load_best_model_at_end"):
        fix = f"training.metric_for_best_model: {method_of(config).score or 'loss'}"
        yield config.problem("training.save_strategy", "needs metric_for_best_model; every process fails.", fix)


_OF_EVERY_EVALUATION = ("loss", "runtime", "samples_per_second", "steps_per_second")


@rule("run-unknown-metric", on=("run",))
def run_unknown_metric(config: Document) -> Iterator[Finding]:
    """A metric_for_best_model that no evaluation gives: the first evaluation ends in a KeyError, in every process.

    Reference: transformers/trainer.py: "which is not found in the evaluation metrics"; trl/trainer/sft_trainer.py:
    `self._metrics[mode]`.
    """
    values = settings_of(config)
    told = values.get("metric_for_best_model")
    plateau = values.get("lr_scheduler_type") in ("reduce_lr_on_plateau", "greedy")
    used = values.get("load_best_model_at_end") or plateau or "early_stopping_patience" in given(config)
    if not isinstance(told, str) or not (used or values.get("save_strategy") == "best"):
        return
    *_, own = sources_of(config)
    trainer = source_text(own.partition(":")[0].replace("_config.", "_trainer."))
    found = re.findall(r'_metrics\[mode\]\["([\w/]+)"\]', trainer)
    known = tuple(dict.fromkeys((*_OF_EVERY_EVALUATION, *found)))
    if found and told.removeprefix("eval_") not in known:
        fix, _ = word_fix(told.removeprefix("eval_"), known)
        consequence = "no evaluation gives it: the first one ends every process."
        yield config.problem("training.metric_for_best_model", consequence, fix)


@rule("run-plateau-needs-evaluation", on=("run",))
def run_plateau_needs_evaluation(config: Document) -> Iterator[Finding]:
    """reduce_lr_on_plateau and greedy watch the evaluation; without one TrainingArguments fail in every process.

    Reference: transformers/training_args.py: TrainingArguments._validate_args, "requires an eval strategy".
    """
    values, key = settings_of(config), "training.lr_scheduler_type"
    if values.get("lr_scheduler_type") in ("reduce_lr_on_plateau", "greedy") and values.get("eval_strategy") == "no":
        held = config.get("data.eval_path") or config.get("data.eval_fraction")
        fix = "training.eval_strategy: steps" if held else "training.lr_scheduler_type: linear"
        yield config.problem(key, "needs an evaluation; every process fails.", fix)
