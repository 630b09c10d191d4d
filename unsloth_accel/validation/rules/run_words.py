"""Rules about the words of `training`: each is one that the installed transformers and TRL know, with what it needs."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ...config.installed_source import compared_words, enum_words, parameters, said_in, table
from ...config.trainer_fields import accepts, field_options, parameter_types, type_name
from ...errors import close_match
from .document import Document, Finding, Repair
from .rule_registry import RULES, rule
from .run_settings import alone, given, mapping, number, settings_of, sources_of
from .trying import changed

_ENUMS = {
    "optim": "transformers/training_args.py:OptimizerNames",
    "lr_scheduler_type": "transformers/trainer_utils.py:SchedulerType",
    "eval_strategy": "transformers/trainer_utils.py:IntervalStrategy",
    "logging_strategy": "transformers/trainer_utils.py:IntervalStrategy",
    "save_strategy": "transformers/trainer_utils.py:SaveStrategy",
    "hub_strategy": "transformers/trainer_utils.py:HubStrategy",
}
"""Enums that TrainingArguments makes of a field's word."""
_TABLES = dict.fromkeys(("log_level", "log_level_replica"), "transformers/utils/logging.py:log_levels")
"""Tables whose keys are words of a field; `passive` is TrainingArguments' own besides."""
_MEANT = {
    **dict.fromkeys(("adam", "adamw", "adamw_hf"), "adamw_torch"),
    "adamw_apex_fused": "adamw_torch_fused",
    "wsd": "warmup_stable_decay",
    "cosine_with_hard_restarts": "cosine_with_restarts",
    "sft": "nll",
    "bfd-requeue": "bfd_split",
}
"""Words of other versions and other tools, which nothing is spelt like."""
_MOST_SHOWN = 12


def word_fix(word: Any, known: Mapping[str, Any] | tuple[str, ...]) -> tuple[str, str | None]:
    """Return a fix for a word that is none of `known`, and the one of them that it is likely meant for."""
    said = str(word).lower().strip()
    near = next((one for one in (said, _MEANT.get(said)) if one in known), None) or close_match(said, known)
    if near:
        return f"did you mean {near}?", near
    words = list(known)
    return f"one of: {', '.join(words[:_MOST_SHOWN])}{', …' * (len(words) > _MOST_SHOWN)}", None


def with_what_it_needs(finding: Finding, config: Document, near: str | None) -> Finding:
    """Return a finding about an unknown word with what the word `near`, which is proposed, needs besides: a package, or
    other settings. Where it needs nothing, giving it is the repair."""
    if near is None:
        return finding
    before = _errors(config)
    now = replace(config, text="", values=changed(config.values, {finding.key: near}))
    more = [one for one in _errors(now) if one not in before]
    itself = next((one for one in more if one.key == finding.key), None)
    if itself:
        return replace(finding, fix=f"{near} {itself.consequence} So: {itself.fix}")
    if more:
        return replace(finding, fix=f"{finding.fix} Then also: {'; '.join(one.fix for one in more)}")
    return replace(finding, repairs=(Repair(kind="set", key=finding.key, value=near),))


def _errors(config: Document) -> list[Finding]:
    """Return the errors of a run that don't tell unknown words."""
    told = (
        replace(finding, line=None, rule=one.id)
        for one in RULES.values()
        if "run" in one.kinds and one.severity == "error" and one.id not in ("run-unknown-word", "run-reporter")
        for finding in one.check(config)
    )
    return [*told]


@rule("run-unknown-word", on=("run",))
def run_unknown_word(config: Document) -> Iterator[Finding]:
    """A word that the installed transformers or TRL doesn't know. Most end every process as the trainer's config is
    made; an unknown train_sampling_strategy is taken for random.

    Reference: transformers/training_args.py: TrainingArguments.__post_init__, `OptimizerNames(self.optim)`;
    trl/trainer/sft_trainer.py: "Invalid `loss_type`"; transformers/trainer.py: `_get_train_sampler`.
    """
    values, sources = settings_of(config), sources_of(config)
    choices, defaults = field_options(sources, "choices"), field_options(sources, "default")
    if values.get("debug") and isinstance(values["debug"], str):
        flags = enum_words("transformers/debug_utils.py:DebugOption").values()
        for word in values["debug"].split():
            if word not in flags:
                fix, _ = word_fix(word, tuple(flags))
                yield config.problem("training.debug", "unknown value; every process fails.", fix)
    for name in given(config):
        # Without the package there are none, and nothing can be said.
        known = tuple(enum_words(_ENUMS[name]).values() if name in _ENUMS else choices.get(name, ()))
        if name in _TABLES and (keys := table(_TABLES[name])):
            known = (*keys, "passive")
        value = values.get(name)
        if known and value not in known and not (value is None and name in defaults and defaults[name] is None):
            fix, near = word_fix(value, known)
            consequence = "unknown value; every process fails."
            if name == "train_sampling_strategy":
                consequence = "unknown value; the Trainer would take rows at random."
            yield with_what_it_needs(config.problem(f"training.{name}", consequence, fix), config, near)


_PACKAGES = {
    "galore": ("galore_torch", "galore-torch"),
    "apollo": ("apollo_torch", "apollo-torch"),
    "lomo": ("lomo_optim", "lomo-optim"),
    "adalomo": ("lomo_optim", "lomo-optim"),
    "grokadamw": ("grokadamw", "grokadamw"),
    "schedule": ("schedulefree", "schedulefree"),
    "stable": ("optimi", "torch-optimi"),
    **dict.fromkeys(("adamw_torch_4bit", "adamw_torch_8bit"), ("torchao", "torchao")),
    "adamw_anyprecision": ("torchdistx", "torchdistx"),
    "adamw_torch_xla": ("torch_xla", "torch_xla"),
    "adamw_torch_npu_fused": ("torch_npu", "torch_npu"),
    **dict.fromkeys(("adamw_bnb_8bit", "adamw_8bit", "paged", "lion", "ademamix"), ("bitsandbytes", "bitsandbytes")),
    "rmsprop_bnb": ("bitsandbytes", "bitsandbytes"),
}
"""Module and package that an optimizer needs, by its word or what that begins with (transformers/trainer_optimizer.py:
`_OPTIMIZER_HANDLERS`)."""
_LOW_RANK = ("galore", "apollo")
_OPTIMIZERS = "transformers/trainer_optimizer.py"


@rule("run-optimizer-package", on=("run",))
def run_optimizer_package(config: Document) -> Iterator[Finding]:
    """An optimizer of a package that isn't installed: every process fails once the model is loaded.

    Reference: transformers/trainer_optimizer.py: "You need to install `galore_torch`".
    """
    word = str(settings_of(config).get("optim", ""))
    from ...planning.optimizers import needs_gpu

    if config.get("distributed.device") == "cpu" and needs_gpu(word):
        return  # which Unsloth replaces there
    kept = [one for one in _PACKAGES if word == one or word.startswith(f"{one}_")]
    module, package = _PACKAGES[max(kept, key=len)] if kept else ("", "")
    if module and word in enum_words(_ENUMS["optim"]).values() and importlib.util.find_spec(module) is None:
        consequence = f"needs the package {package}, which is not installed: every process fails."
        yield config.problem("training.optim", consequence, f"training.optim: adamw_torch, or pip install {package}")


@rule("run-optimizer-arguments", on=("run",))
def run_optimizer_arguments(config: Document) -> Iterator[Finding]:
    """optim_args is read as name=value, name=value, and names that the optimizer doesn't read are passed over (warned);
    GaLore and APOLLO need optim_target_modules, and their layerwise forms neither run in several processes nor
    accumulate.

    Reference: transformers/trainer_optimizer.py: `_parse_optim_args`, `_OPTIMIZER_HANDLERS`, "You need to define
    `optim_target_modules`", "does not support DDP at this time".
    """
    from ...planning.optimizers import OPTIMIZER

    values = settings_of(config)
    told, word = values.get("optim_args"), str(values.get("optim", ""))
    optimizer = word or OPTIMIZER
    parts = told.replace(" ", "").split(",") if isinstance(told, str) and told else []
    if any(part.count("=") != 1 for part in parts):
        consequence = "is read as name=value,name=value; every process fails."
        yield config.problem("training.optim_args", consequence, "remove it")
    elif lost := [name for name in (part.partition("=")[0] for part in parts) if not _reads(optimizer, name)]:
        consequence = f"{optimizer} reads no {' and no '.join(lost)}: passed over, as if it were not given."
        yield config.problem("training.optim_args", consequence, "remove it, or another training.optim", mild=True)
    if word.startswith(_LOW_RANK) and not values.get("optim_target_modules"):
        consequence = "needs training.optim_target_modules; every process fails."
        yield config.problem("training.optim", consequence, "training.optim_target_modules: all-linear")
    if word.endswith("layerwise") and not alone(config):
        consequence = "runs in one process only; every process fails."
        yield config.problem("training.optim", consequence, f"training.optim: {word.removesuffix('_layerwise')}")


def _reads(optimizer: str, name: str) -> bool:
    """Whether the optimizer reads `name` of optim_args; true as well where that can't be seen."""
    members = {word: member for member, word in enum_words(_ENUMS["optim"]).items()}
    handler = table(f"{_OPTIMIZERS}:_OPTIMIZER_HANDLERS").get(f"OptimizerNames.{members.get(optimizer)}")
    return handler is None or name in said_in(f"{_OPTIMIZERS}:{handler}", "optim_args")


_FILLED = {"optimizer", "num_warmup_steps", "num_training_steps"}
"""Parameters that `get_scheduler` gives."""
_NEEDED = {"cosine_with_min_lr": "min_lr_rate: 0.1", "cosine_warmup_with_min_lr": "min_lr_rate: 0.1"}
"""Schedulers that need one of two arguments, and one of them: their functions give both a default, and raise."""
_EXAMPLES = {"num_decay_steps": 100}
_CLASSES = {
    "reduce_lr_on_plateau": "torch/optim/lr_scheduler.py:ReduceLROnPlateau.__init__",
    "greedy": "transformers/optimization.py:GreedyLR.__init__",
}
"""Schedulers whose functions hand any argument on, and to what."""


@rule("run-scheduler-arguments", on=("run",))
def run_scheduler_arguments(config: Document) -> Iterator[Finding]:
    """lr_scheduler_kwargs are arguments of the scheduler's function: one that it lacks, or doesn't know, or takes
    another type or other words for, ends every process with a TypeError or ValueError as training begins. A constant
    rate is given none (warned).

    Reference: transformers/optimization.py: get_scheduler, "Mismatched scheduler types and scheduler parameters",
    "One of min_lr or min_lr_rate should be set", "Unknown warmup type".
    """
    values = settings_of(config)
    if not {"lr_scheduler_type", "lr_scheduler_kwargs"} & {*given(config)}:
        return
    word, arguments = values.get("lr_scheduler_type"), mapping(values.get("lr_scheduler_kwargs"))
    key = "training.lr_scheduler_kwargs"
    members = {word: name for name, word in enum_words(_ENUMS["lr_scheduler_type"]).items()}
    functions = table("transformers/optimization.py:TYPE_TO_SCHEDULER_FUNCTION")
    function = functions.get(f"SchedulerType.{members.get(word)}") if isinstance(word, str) else None
    place = _CLASSES.get(str(word), f"transformers/optimization.py:{function}")
    taken = parameters(place) if function else {}
    if taken and word in ("constant", "constant_with_warmup"):
        if values.get("lr_scheduler_kwargs"):
            yield config.problem(key, f"{word} is given none of them.", "remove it, or another scheduler", mild=True)
        return
    if not taken:
        return
    if arguments is None:
        yield config.problem(key, "is no mapping of names to values; every process fails.", "remove it")
        return
    names = {name: needed for name, needed in taken.items() if name not in (*_FILLED, "last_epoch")}
    for name in arguments if "**" not in names else ():
        if name not in names:
            fix, _ = word_fix(name, names)
            yield config.problem(key, f"{word} takes no {name}; every process fails.", fix if names else "remove it")
    kinds = parameter_types(place)
    for name, value in arguments.items():
        if name in names and name in kinds and not accepts(kinds[name], 1 if type(value) is float else value):
            kind = type_name(kinds[name])  # any number will do for a whole one
            yield config.problem(f"{key}.{name}", f"{word} takes {kind} for it; every process fails.", f"give {kind}")
        elif isinstance(value, str) and (words := compared_words(place.removesuffix(".__init__"), name)):
            if value not in words:
                fix, _ = word_fix(value, words)
                yield config.problem(f"{key}.{name}", "unknown value; every process fails.", fix)
    for name, needed in names.items():
        if needed and name not in arguments:
            example = f"{{{name}: {_EXAMPLES.get(name, '…')}}}"
            yield config.problem(key, f"{word} needs {name}; every process fails.", f"{key}: {example}")
    factor = number(arguments.get("factor"))
    if word in _CLASSES and factor is not None and factor >= 1:
        yield config.problem(f"{key}.factor", "must be below 1; every process fails.", f"{key}.factor: 0.5")
    pair = {"min_lr", "min_lr_rate"} & {name for name, value in arguments.items() if value is not None}
    if word in _NEEDED and len(pair) != 1:
        wrong = "needs min_lr or min_lr_rate" if not pair else "takes one of min_lr and min_lr_rate"
        yield config.problem(key, f"{word} {wrong}; every process fails.", f"{key}: {{{_NEEDED[word]}}}")
    end, start = number(arguments.get("lr_end", 1e-7)), number(values.get("learning_rate"))
    if word == "polynomial" and end is not None and start is not None and 0 <= start <= end:
        consequence = f"decays to lr_end={end:g}, which must be below learning_rate={start:g}; every process fails."
        yield config.problem("training.lr_scheduler_type", consequence, "training.lr_scheduler_type: linear")
