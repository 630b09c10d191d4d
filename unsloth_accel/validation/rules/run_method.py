"""Rules about the words of methods, and about those that learn from preferences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ...config.installed_source import compared_words
from ...config.trainer_fields import field_options
from .document import Document, Finding, Repair
from .rule_registry import rule
from .run_settings import given, method_of, number, settings_of, sources_of
from .run_words import word_fix

MOST_TIMES = 50
"""Times TRL's learning rate for a preference method from which on a rate is worth a word."""


@rule("run-reference-model", on=("run",))
def run_reference_model(config: Document) -> Iterator[Finding]:
    """sync_ref_model with LoRA: TRL refuses it in every process, since no reference model is kept beside the base.

    Reference: trl/trainer/dpo_trainer.py: "You passed `sync_ref_model=True` while using a PEFT model".
    """
    if given(config).get("sync_ref_model"):
        consequence = "with LoRA the base itself is the reference, and can't be changed: every process fails."
        yield config.problem("training.sync_ref_model", consequence, "training.sync_ref_model: false")


@rule("run-reference-of-a-stream", on=("run",))
def run_reference_of_a_stream(config: Document) -> Iterator[Finding]:
    """precompute_ref_log_probs with data.streaming: TRL refuses it in every process, once the model is loaded.

    Reference: trl/trainer/dpo_trainer.py: "`precompute_ref_log_probs=True` is not supported with IterableDataset".
    """
    if given(config).get("precompute_ref_log_probs") and config.get("data.streaming") is True:
        consequence = "needs all rows beforehand, and data.streaming reads them as it trains: every process fails."
        yield config.problem("training.precompute_ref_log_probs", consequence, "data.streaming: false")


_WORDS = (
    *("loss_type", "f_divergence_type", "importance_sampling_level", "scale_rewards", "multi_objective_aggregation"),
    "vllm_importance_sampling_mode",
)
"""Fields of methods whose configs take any word, and whose trainers compare it with each that they know."""


@rule("run-method-word", on=("run",))
def run_method_word(config: Document) -> Iterator[Finding]:
    """A loss, a divergence, or another word of a method that the installed TRL's trainer doesn't know: its config takes
    any, and every process fails in its first step.

    Reference: trl/trainer/dpo_trainer.py: "Unknown loss type", "Unknown f_divergence_type"; trl/trainer/
    grpo_trainer.py: "Unknown importance sampling level", "Invalid value for scale_rewards".
    """
    sources = sources_of(config)
    choices, usual = field_options(sources, "choices"), field_options(sources, "default")
    file = sources[-1].partition(":")[0].replace("_config.py", "_trainer.py")
    for name in _WORDS if file.startswith("trl/") else ():
        value, known = given(config).get(name), compared_words(file, name)
        if name in choices or (name in usual and usual[name] not in known):
            continue  # told by run-unknown-word; not every word is in a comparison
        if name.startswith("vllm") and not settings_of(config).get("use_vllm"):
            continue
        words = value if isinstance(value, list) else [value] if isinstance(value, str) else []
        for word in words if known else ():
            if word not in known:
                fix, near = word_fix(word, known)
                listed = [near if one == word else one for one in words] if isinstance(value, list) else near
                consequence = "unknown value; every process fails in its first step."
                found = config.problem(f"training.{name}", consequence, fix)
                repair = Repair(kind="set", key=f"training.{name}", value=listed)
                yield replace(found, repairs=(repair,)) if near else found


@rule("run-preference-rate", "warning", on=("run",))
def run_preference_rate(config: Document) -> Iterator[Finding]:
    """A learning rate 50 times TRL's own or more for a method that learns from preferences, where such rates of
    fine-tuning make answers fall apart while the margin still grows.

    Reference: trl/trainer/dpo_config.py: `learning_rate`, 1e-6.
    """
    method = method_of(config)
    usual = number(field_options(method.config_sources, "default").get("learning_rate"))
    rate = number(settings_of(config).get("learning_rate"))
    if not {"preference", "unpaired-preference"} & {*method.row_kinds} or usual is None or rate is None:
        return
    if MOST_TIMES * usual <= rate <= 1:
        times = f"{rate / usual:,.0f} times TRL's rate for {method.name}, {usual:g}"
        consequence = f"is {times}: the model may forget how to write."
        fix = f"training.learning_rate: {10 * usual:g}, or nothing, if the held-out figures stay good"
        yield config.problem("training.learning_rate", consequence, fix)
