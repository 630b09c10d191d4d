"""Rules about the numbers of a run: those that end every process, and those that train nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ...config.trainer_fields import field_options
from .document import Document, Finding
from .rule_registry import rule
from .run_settings import given, method_of, number, settings_of, values_of

MOST = 2**31


@dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers that a setting takes."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def holds(self, value: float) -> bool:
        return (
            -math.inf < value < math.inf  # math.isfinite raises for a whole number that no float holds
            and (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def words(self, value: float) -> str:
        """Return in words what `value` isn't; a bound that is only there to keep numbers sane, where it is broken."""
        bounds = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        told = {word: bound for word, bound in bounds.items() if bound is not None and (bound < MOST or value >= bound)}
        return " and ".join(f"{word} {bound:.10g}" for word, bound in told.items()) or "finite"


_WHOLE, _POSITIVE, _SEED = Range(least=0, most=MOST), Range(least=1, most=MOST), Range(least=0, below=2**32)
RANGES = {
    "training.learning_rate": Range(least=0),
    "training.weight_decay": Range(least=0),
    **dict.fromkeys(("training.adam_beta1", "training.adam_beta2"), Range(least=0, below=1)),
    "training.adam_epsilon": Range(least=0),
    "training.max_grad_norm": Range(),
    "training.warmup_steps": Range(least=0, most=MOST),
    "training.label_smoothing_factor": Range(least=0, below=1),
    "training.neftune_noise_alpha": Range(least=0),
    "training.num_train_epochs": Range(most=MOST),
    "training.max_steps": Range(most=MOST),
    "training.eval_delay": Range(least=0),
    **dict.fromkeys(("training.seed", "training.data_seed", "lora.random_state"), _SEED),
    "training.per_device_eval_batch_size": _POSITIVE,
    "training.eval_accumulation_steps": _POSITIVE,
    "training.torch_empty_cache_steps": _POSITIVE,
    "training.pad_to_multiple_of": _POSITIVE,
    "training.dataset_num_proc": _POSITIVE,
    "training.dataloader_num_workers": _WHOLE,
    "training.dataloader_prefetch_factor": _POSITIVE,
    "training.ddp_timeout": Range(least=1, most=MOST),
    "training.ddp_bucket_cap_mb": _POSITIVE,
    "training.num_generations": Range(least=2, most=MOST),
    **dict.fromkeys(
        (
            "training.num_generations_eval",
            "training.max_completion_length",
            "training.steps_per_generation",
            "training.generation_batch_size",
            "training.num_iterations",
        ),
        _POSITIVE,
    ),
    "training.temperature": Range(above=0, most=MOST),
    "training.beta": Range(least=0),
    "lora.alpha": Range(least=1, most=MOST),
    "evaluation.samples": _WHOLE,
    "logging.rank_sync_steps": _WHOLE,
}
_INSTEAD = {"training.learning_rate": 2e-4, "lora.alpha": 16, "lora.random_state": 3407, "training.seed": 42}
_STEPS = {"logging_steps": "logging_strategy", "eval_steps": "eval_strategy", "save_steps": "save_strategy"}


@rule("run-number", on=("run",))
def run_number(config: Document) -> Iterator[Finding]:
    """A number that torch, numpy or transformers refuses in every process, or that leaves the adapter as it was: a
    negative learning rate, a beta of 1, a seed below 0, lora.alpha 0.

    Reference: torch/optim/adam.py: "Invalid learning rate"; transformers/trainer_utils.py: `np.random.seed(seed)`;
    transformers/training_args.py: "must be an integer bigger than 0"; peft/tuners/lora/layer.py: `lora_alpha / r`.
    """
    defaults = field_options(method_of(config).config_sources, "default")
    values = given(config)
    for key, allowed in RANGES.items():
        section, _, name = key.partition(".")
        found = values if section == "training" else values_of(config).get(section)
        value = number(found.get(name) if isinstance(found, dict) else None)
        if value is not None and not allowed.holds(value):
            instead = _INSTEAD.get(key, defaults.get(name))
            usual = f"{key}: {instead}, or " if number(instead) is not None else "remove it, or "
            words = allowed.words(value)
            yield config.problem(key, f"must be {words}.", f"{usual}a number that is {words}")


@rule("run-steps", on=("run",))
def run_steps(config: Document) -> Iterator[Finding]:
    """Steps between logs, evaluations and checkpoints are whole, or a share of the run below 1, and not 0: others end
    every process, at once or at its first step.

    Reference: transformers/training_args.py: TrainingArguments._validate_args, "must be an integer if bigger than 1",
    "requires non-zero --logging_steps".
    """
    values, said = settings_of(config), given(config)
    for name, strategy in _STEPS.items():
        value = number(values.get(name))
        if name not in said or values.get(strategy) != "steps" or value is None:
            continue
        if value == 0 and name != "eval_steps":  # which takes logging_steps then
            fix = f"training.{name}: 1, or training.{strategy}: 'no'"
            yield config.problem(f"training.{name}", "no step is a multiple of it; every process fails.", fix)
        elif not value <= 1 and value % 1:  # of infinity and nan, too
            fix = f"training.{name}: {round(value) if value < MOST else 500}"
            yield config.problem(f"training.{name}", "is no whole number of steps; every process fails.", fix)


@rule("run-learns-nothing", "warning", on=("run",))
def run_learns_nothing(config: Document) -> Iterator[Finding]:
    """A learning rate of 0 changes no weight; one above 1 makes the weights useless within a few steps.

    Reference: unsloth/models/rl.py: "Your learning rate of".
    """
    rate = number(settings_of(config).get("learning_rate"))
    if rate == 0:
        yield config.problem("training.learning_rate", "no weight would change.", "training.learning_rate: 2.0e-4")
    elif rate is not None and 1 < rate < math.inf:
        consequence = "is far above what LoRA trains with: the weights would be useless within a few steps."
        yield config.problem("training.learning_rate", consequence, "training.learning_rate: 2.0e-4")
