"""Reading a run: from YAML and `key=value` overrides to a checked `RunConfig`, with every problem at once."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, Node, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..errors import ConfigError, Problem, close_match, first_line, nearest, raise_errors
from ..methods import METHODS, USUAL_METHOD, Method
from ..secret import marked, plain, shown, shown_word
from ..strategies import STRATEGIES
from .data_mix import MIX, UNTIL, read_mix
from .lora_fields import WHOLE, lora_problems
from .other_names import belongs, gone, spelt_here
from .rewards_config import FUNCTIONS, ON_ERROR, name_files_beside, read_functions
from .row_formats import FIELDS, FORMATS, OPTIONAL
from .run_config import IF_ANY, OWN_TRAINING_KEYS, RunConfig
from .safe_reader import override_problems, read_yaml
from .start_adapter import Adapter, begin_with_adapter
from .template_fields import MARKERS, template_problems
from .trainer_fields import CHECKPOINTING_FIELDS, accepts, missing_class, training_fields, type_name
from .written import references

# Fields of TrainingArguments that have one place in a RunConfig; a method's config has more (`Method.elsewhere`).
_ELSEWHERE = {
    "output_dir": "output_dir",
    "report_to": "logging.report_to",
    **dict.fromkeys(CHECKPOINTING_FIELDS, "model.gradient_checkpointing"),
    "resume_from_checkpoint": "training.resume",
    "disable_tqdm": "logging.progress",
    "use_cpu": "distributed.device",
    "fsdp": "distributed.strategy",
    "fsdp_config": "distributed.strategy",
    "deepspeed": "distributed.strategy",
    "accelerator_config": "distributed.strategy",
    "parallelism_config": "distributed.strategy",
    "trust_remote_code": "model.trust_remote_code",
    "chat_template_path": "model.chat_template",
    "chat_template_kwargs": "data.chat_template_kwargs",
}
_REFUSED = {
    "auto_find_batch_size": (
        "changes the batch inside the run, so batch.global_size would not hold.",
        "remove it, and set training.per_device_train_batch_size",
    ),
    "enable_jit_checkpoint": (
        "saves each rank's part in a step of its own, where ranks wait for one another for ever.",
        "remove it: after a SIGTERM all ranks save a checkpoint together, and end with status 143",
    ),
    "model_init_kwargs": (
        "is for a trainer that loads the model itself: Unsloth loads it before, so nothing here would have an effect.",
        "remove it, and set model.dtype, model.load_in_4bit, model.max_seq_length or model.trust_remote_code; for what "
        "has no key there (attn_implementation, rope_scaling), your own script and unsloth_accel.adapt",
    ),
}
_CHOICES = {
    "distributed.device": ("auto", "cuda", "cpu"),
    "batch.balance": ("tokens", "rows"),
    "batch.on_out_of_memory": ("halve", "stop"),
    "batch.rehearse": ("auto", "true", "false"),
    "data.format": FORMATS,
    "data.train_on": ("auto", "all", "responses"),
    "data.too_long": ("cut", "drop"),
    "data.stopping_strategy": UNTIL,
    "rewards.on_error": ON_ERROR,
    "model.gradient_checkpointing": ("unsloth", "true", "false"),
    "model.dtype": (None, "float32", "float16", "bfloat16"),
}
_POSITIVE = (
    "model.max_seq_length",
    "lora.r",
    "batch.global_size",
    "batch.global_tokens",
    "data.max_rows",
    "evaluation.max_rows",
    "evaluation.max_new_tokens",
    "training.per_device_train_batch_size",
    "training.gradient_accumulation_steps",
    "training.early_stopping_patience",
)
MOST = 2**31
_KEPT = "model.keep_activations"
_PATIENCE = "training.early_stopping_patience"
_LISTS = {FUNCTIONS: read_functions, MIX: read_mix}
"""Keys whose value is a list of mappings, and what reads it."""
_EMBEDDING_RATE = "training.embedding_learning_rate"
_EVALUATE = ("training.eval_strategy", "training.do_eval", "training.eval_on_start")
_REQUIRED = ("model.name", "data.path", "output_dir")
_MAPPINGS = ("training", "data.columns", "data.chat_template_kwargs", "lora.loftq_config")
"""Sections whose keys are not fixed."""
_OVERRIDE = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*=")


def is_override(token: str) -> bool:
    """Return whether a command-line token is a `key=value` override."""
    return bool(_OVERRIDE.match(token))


def load(path: str | Path | None, overrides: Sequence[str] = (), *, to_plan: bool = False) -> RunConfig:
    """Read a run's YAML, if any, apply `key=value` overrides, check it; `to_plan` does without data and output_dir.

    Raises `ConfigError` with every problem found: a file that can't be read, unknown keys (with the nearest known
    one), wrong types, missing required keys, values outside their choices.
    """
    return from_dict(given(path, overrides), to_plan=to_plan)


def given(path: str | Path | None, overrides: Sequence[str] = ()) -> DictConfig:
    """Return what a run's YAML, if any, and `key=value` overrides say, unchecked; raises `ConfigError` where they can't
    be read."""
    given = OmegaConf.create({}) if path is None else spelt_here(_read_yaml(Path(path)))
    for override in overrides:
        if not is_override(override):
            fix = "write key=value, for example training.max_steps=2"
            raise ConfigError(Problem(key=shown_word(override), consequence="is not an override.", fix=fix))
        key, _, value = override.partition("=")
        raise_errors([dataclasses.replace(problem, key=key) for problem in override_problems(key, value)])
        try:
            given = OmegaConf.merge(given, spelt_here(OmegaConf.from_dotlist([override])))
        except (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError) as error:
            fix = "quote the value or correct it"
            consequence = f"{first_line(error)}."
            raise ConfigError(Problem(key=shown_word(override), consequence=consequence, fix=fix)) from None
    if path is not None:
        name_files_beside(given, Path(path).parent)
    return given


def from_dict(given: DictConfig | dict[str, Any], *, to_plan: bool = False) -> RunConfig:
    """A checked `RunConfig` from nested keys and values; raises `ConfigError` as `load` does."""
    values = spelt_here(given if isinstance(given, DictConfig) else OmegaConf.create(plain(given)))
    schema = OmegaConf.structured(RunConfig)
    OmegaConf.set_readonly(schema.rewards, None)  # as OmegaConf takes a frozen dataclass
    problems: list[Problem] = []
    _fill(schema, values, "", problems)
    if schema.model.added_tokens:  # which LoRA can't train
        schema.lora.modules_to_save = list(dict.fromkeys([*schema.lora.modules_to_save, *WHOLE]))
    adapter = begin_with_adapter(schema, values, problems)
    mixed = bool(_section_value(values, MIX))
    path = OmegaConf.select(schema, "data.path", default=None, throw_on_missing=False)
    if mixed and path:
        fix = "make it one more source of data.mix, or remove it (data.path=null)"
        _tell(problems, "data.path", path, "data.mix names the rows already.", fix)
    for key in ("data.path", "output_dir") if to_plan else ("data.path",) if mixed else ():
        if OmegaConf.select(schema, key, default=None, throw_on_missing=False) is None:
            OmegaConf.update(schema, key, "")
    training = _check_training(schema)
    _move(schema, values, [*problems, *training])
    required = ("model.name",) if to_plan else [key for key in _REQUIRED if not (mixed and key == "data.path")]
    problems += _missing(schema, required)
    problems += training
    named = {problem.key for problem in problems}
    of_lora = lora_problems(OmegaConf.to_object(schema.lora))
    named |= {*MARKERS} if named & {*MARKERS} else set()  # of which one without the other is told
    others = (*_check_values(schema, adapter), *of_lora, *template_problems(schema))
    problems += [one for one in others if one.key not in named]
    raise_errors(problems)
    config = OmegaConf.to_object(schema)
    assert isinstance(config, RunConfig)
    config.training = marked(config.training)
    config.references = dict(references(values))
    _expand_home(config)
    return config


def _move(schema: DictConfig, values: DictConfig, problems: Sequence[Problem]) -> None:
    """Give `schema` the values of keys that stand elsewhere than they belong, so that they are checked there too."""
    for problem in problems:
        meant = re.fullmatch(r"did you mean (\w+\.\w+)\?", problem.fix) if problem.rule == "run-unknown-key" else None
        try:
            value = OmegaConf.select(values, problem.key) if meant else None
            if meant and value is not None and OmegaConf.select(values, meant[1]) is None:
                OmegaConf.update(schema, meant[1], value, force_add=True)
        except (OmegaConfBaseException, ValueError):  # of a wrong type: told once it stands there
            continue


def _expand_home(config: RunConfig) -> None:
    """Replace a leading ~ in every path."""
    config.model.name = os.path.expanduser(config.model.name)
    config.data.path = os.path.expanduser(config.data.path)
    config.data.eval_path = os.path.expanduser(config.data.eval_path or "") or None
    config.output_dir = os.path.expanduser(config.output_dir)


def _read_yaml(path: Path) -> DictConfig:
    read = read_yaml(path, dates=False)
    raise_errors(read.problems)
    try:
        values = OmegaConf.create(read.text)
    except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        fix = "correct it, or write values with ${…} in quotes"
        raise ConfigError(Problem(key=str(path), consequence=f"{first_line(error)}.", fix=fix)) from None
    assert isinstance(values, DictConfig)
    return values


def _fill(schema: DictConfig, values: DictConfig, prefix: str, problems: list[Problem]) -> None:
    """Copy `values` into `schema` leaf by leaf, so that every unknown key and wrong type is found, not the first."""
    known = [str(known) for known in schema.keys()]  # noqa: SIM118  (`in schema` leaves out required keys)
    for key in values:
        name = f"{prefix}{key}"
        tell = partial(_tell, problems, name)
        if str(key) not in known:
            tell(None, "unknown key.", _unknown_fix(str(key), values._get_node(key), known, prefix), "run-unknown-key")
            continue
        try:
            value = values[key]
            if name in _LISTS and OmegaConf.is_config(value):
                value = OmegaConf.to_container(value, resolve=True)
        except OmegaConfBaseException as error:
            tell(None, f"{first_line(error)}.", _reference_fix(values, key), "run-reference")
            continue
        if value is None and name in _REQUIRED:  # told as missing, where it is needed
            continue
        default = schema._get_node(key)
        if isinstance(default, DictConfig) and name not in _MAPPINGS:
            if isinstance(value, DictConfig):
                _fill(default, value, f"{name}.", problems)
            elif value is not None:
                fix = f"write its keys below it: {', '.join(map(str, default))}"
                tell(value, "is a section, not a value.", fix, "run-wrong-type")
            continue
        if isinstance(value, bool) and "true" in (_CHOICES.get(name) or ()):
            value = str(value).lower()  # YAML reads true and false as booleans
        if name in _LISTS:
            value, wrong = _LISTS[name](value)
            for found in wrong:
                _tell(problems, *found)
        kind = _field_type(name)
        if isinstance(value, int) and not isinstance(value, bool) and kind.startswith("float"):
            value = float(value)
        if kind.startswith("str") and isinstance(value, bool | int | float):
            if isinstance(value, bool):  # a bare no or on
                _tell_wrong_type(problems, name, value, kind)
                continue
            value = str(value)
        if kind.endswith(("list[str]", "dict[str, str]")) and any(map(OmegaConf.is_config, _items(value))):
            _tell_wrong_type(problems, name, value, kind)  # OmegaConf takes a mapping in a text's place
            continue
        try:
            # An assignment warns of every text that becomes a number.
            OmegaConf.update(schema, str(key), {} if name in _MAPPINGS and value is None else value, merge=False)
        except OmegaConfBaseException:
            _tell_wrong_type(problems, name, value, kind)


def _items(value: Any) -> Iterable[Any]:
    """Return what a list or a mapping holds; nothing of anything else."""
    return value.values() if isinstance(value, DictConfig) else value if isinstance(value, ListConfig) else ()


def _unknown_fix(key: str, value: Any, known: Iterable[str], prefix: str, method: Method | None = None) -> str:
    """Return a fix for a key that its section doesn't have: its new name, the section that has it, or the nearest."""
    method = method or METHODS[USUAL_METHOD]
    fields = {**training_fields(method.config_sources), **OWN_TRAINING_KEYS}
    if told := gone(key, value._value() if isinstance(value, Node) else value):
        return told
    if place := belongs(key, fields, _ELSEWHERE | dict(method.elsewhere)):
        return f"did you mean {place}?"
    near = None if close_match(key, known) else close_match(key, fields)
    return f"did you mean training.{near}?" if near and not prefix else nearest(key, known, prefix)


def _reference_fix(values: DictConfig, key: Any) -> str:
    variable = re.search(r"oc\.env:\s*(\w+)", str(values._get_node(key)._value()))
    return f"export {variable[1]}=…" if variable else "correct the reference, or give it a value"


def _tell(problems: list[Problem], key: str, value: Any, consequence: str, fix: str, rule: str = "run-value") -> None:
    value = shown(OmegaConf.to_container(value) if OmegaConf.is_config(value) else value, key)
    problems.append(Problem(key=key, value=value, consequence=consequence, fix=fix, rule=rule))


def _tell_wrong_type(problems: list[Problem], key: str, value: Any, kind: str) -> None:
    consequence = f"wrong type: {kind} is needed, this is {_type_of(value)}."
    _tell(problems, key, value, consequence, f"give {kind}", "run-wrong-type")


def _missing(schema: DictConfig, required: Sequence[str]) -> list[Problem]:
    consequence = "is missing; nothing can be planned without it."
    return [
        Problem(key=key, consequence=consequence, fix=f"add it, or pass {key}=…", rule="run-missing-key")
        for key in required
        if OmegaConf.select(schema, key, default=None, throw_on_missing=False) in (None, "")
    ]


def _check_training(schema: DictConfig) -> list[Problem]:
    training = schema._get_node("training")
    if not isinstance(training, DictConfig) or training._is_missing():
        return []
    named = METHODS.get(OmegaConf.select(schema, "method"))
    method = named or METHODS[USUAL_METHOD]
    problems: list[Problem] = []
    if missing := missing_class(method.config_sources):
        consequence = f"the installed TRL has no {missing}, so every process would fail."
        _tell(problems, "method", method.name, consequence, "pip install --upgrade trl, or another method")
    # An unknown method is told elsewhere; its fields may be any method's.
    known = {**OWN_TRAINING_KEYS}
    for one in METHODS if named is None else [method]:
        known |= training_fields(one.config_sources)
    elsewhere = _ELSEWHERE | dict(method.elsewhere)
    for key in map(str, training):
        tell = partial(_tell, problems, f"training.{key}")
        try:
            value = training[key]
        except OmegaConfBaseException as error:
            tell(None, f"{first_line(error)}.", _reference_fix(training, key), "run-reference")
            continue
        if key in _REFUSED:
            tell(value, *_REFUSED[key], "run-refused")
        elif key in elsewhere:
            tell(value, "is set elsewhere in run.yaml.", f"set {elsewhere[key]} instead", "run-elsewhere")
        elif key not in known:
            if len(known) > len(OWN_TRAINING_KEYS):  # otherwise TRL is not installed and nothing is known
                consequence = f"unknown key: {method.config_name} has no such field."
                tell(None, consequence, _unknown_fix(key, value, known, "training.", method), "run-unknown-key")
        elif key == "optim" and not isinstance(value, str):  # an enumeration's, or any word
            _tell_wrong_type(problems, "training.optim", value, "str")
        elif not accepts(known[key], OmegaConf.to_container(value) if OmegaConf.is_config(value) else value):
            _tell_wrong_type(problems, f"training.{key}", value, type_name(known[key]))
    return problems


def _check_values(tree: DictConfig, adapter: Adapter | None) -> list[Problem]:
    """Return problems with values of the right type that are out of range or contradict each other."""
    problems: list[Problem] = []
    wrong = partial(_tell, problems)

    def given(key: str) -> Any:
        try:
            return OmegaConf.select(tree, key, throw_on_missing=False)
        except OmegaConfBaseException:
            return None  # told of elsewhere

    records = {"method": METHODS.names, "distributed.strategy": ("auto", *STRATEGIES.names)}
    for key, choices in (records | _CHOICES).items():
        if given(key) not in choices:
            words = [choice for choice in choices if choice is not None]
            near = close_match(str(given(key)), words)
            every = ", ".join("null" if choice is None else choice for choice in choices)
            wrong(key, given(key), "unknown value.", f"{f'did you mean {near}? ' if near else ''}use one of: {every}.")
    for key in _POSITIVE:
        value = given(key)
        if isinstance(value, int) and value > MOST:
            wrong(key, value, f"is beyond {MOST}, which no run needs.", "remove it, or give less")
        if isinstance(value, int | float) and value < 1:
            fix = "give 1 or more" if key == _PATIENCE else "remove it, or give 1 or more"
            wrong(key, value, "must be at least 1.", fix)
    reporters = given("logging.report_to")
    listed = list(reporters) if isinstance(reporters, ListConfig) else [reporters]
    if not listed or not all(isinstance(name, str) for name in listed):
        fix = "logging.report_to=none, or a list such as [tensorboard, wandb]"
        wrong("logging.report_to", reporters, "must be a reporter's name, or a list of names.", fix, "run-wrong-type")
    seconds = given("logging.hang_after")
    if seconds is not None and seconds != 0 and not 5 <= seconds <= MOST:
        fix = "give 5 or more, 0 to watch for no hang, or null"
        wrong("logging.hang_after", seconds, "is no time in which a rank could be seen to hang.", fix)
    if not 0 <= given("lora.dropout") < 1:
        wrong("lora.dropout", given("lora.dropout"), "must be at least 0 and below 1.", "give 0, or less than 1")
    kept = given(_KEPT)
    if kept not in ("auto", "all") and (isinstance(kept, bool) or not isinstance(kept, int) or kept < 0):
        fix = f"{_KEPT}=auto, all, or a whole number from 0"
        wrong(_KEPT, kept, "must be auto, all or a number of decoder blocks from 0.", fix)
    count = given("distributed.num_processes")
    if count != "auto" and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        fix = "distributed.num_processes=auto, or 1, 2, …"
        wrong("distributed.num_processes", count, "must be auto or a whole number from 1.", fix)
    modules = given("lora.target_modules")
    names = isinstance(modules, ListConfig) and len(modules) and all(isinstance(name, str) for name in modules)
    if modules != "all-linear" and not names and not (adapter and adapter.trains(modules)):  # whose may be a pattern
        fix = "lora.target_modules=all-linear, or a list such as [q_proj, v_proj]"
        wrong("lora.target_modules", modules, "unknown value.", fix)
    problems += _held_out_problems(given)
    if given("data.eval_path") is None and given("data.eval_fraction") is None:
        for key in ("evaluation.exact_match", *_EVALUATE, _PATIENCE):
            if given(key) not in (None, False, "no"):
                consequence = "needs held-out rows, and data.eval_path names none."
                fix = "set data.eval_path, or data.eval_fraction"
                wrong(key, given(key), consequence, fix, "run-needs-eval-rows")
    patience, threshold = given(_PATIENCE), given("training.early_stopping_threshold")
    if patience is not None and given("training.eval_strategy") in (None, False, "no"):
        consequence = "counts evaluations, and there is none while the run trains."
        wrong(_PATIENCE, patience, consequence, "training.eval_strategy=epoch, or steps with training.eval_steps=…")
    if threshold is not None and (patience is None or not threshold >= 0):
        consequence = "has no effect without training.early_stopping_patience."
        consequence = consequence if patience is None else "would take a worse loss for a better one."
        fix = f"remove it, or {_PATIENCE}=…" if patience is None else "give 0 or more"
        wrong("training.early_stopping_threshold", threshold, consequence, fix)
    limit = given("rewards.timeout")
    if not 0 < limit <= MOST:
        wrong("rewards.timeout", limit, "is no time in which a function could score.", "give seconds, more than 0")
    rate = given(_EMBEDDING_RATE)
    if rate is not None and not _trains_embeddings(tree):
        consequence = "has nothing to act on: the run trains neither embed_tokens nor lm_head."
        fix = "remove it, or lora.modules_to_save=[embed_tokens, lm_head]"
        wrong(_EMBEDDING_RATE, rate, consequence, fix)
    elif isinstance(rate, int | float) and not 0 < rate < 1:
        wrong(_EMBEDDING_RATE, rate, "is no learning rate.", "give more than 0 and less than 1, such as 1.0e-5")
    minutes = given("training.save_minutes")
    if isinstance(minutes, int | float) and not minutes >= 0:
        fix = "give minutes, or 0 for no checkpoints by the clock"
        wrong("training.save_minutes", minutes, "must be at least 0.", fix)
    columns = {name for form, fields in FIELDS.items() for name in (*fields, *OPTIONAL.get(form, ()))}
    method = METHODS.get(given("method"))
    rewards_read_any = method is not None and method.generates
    own = {f"{MIX}.{place}.columns": source.get("columns") for place, source in enumerate(given(MIX) or ())}
    for key, named in {"data.columns": given("data.columns"), **own}.items():
        for name in named or ():
            if name not in columns and not rewards_read_any:
                wrong(f"{key}.{name}", named[name], "unknown column.", nearest(str(name), columns, f"{key}."))
    if given("data.streaming") is True:
        if not (isinstance(steps := given("training.max_steps"), int) and steps > 0):
            consequence = "a stream has no known length, so the run needs a number of steps."
            wrong("data.streaming", True, consequence, "data.streaming=false, or training.max_steps=…")
        if given(MIX) and not any(one.get("weight") for one in given(MIX)):
            consequence = "a stream is shuffled within 1,000 rows: one source would be trained after another."
            wrong(MIX, None, consequence, "a weight for each source, or data.streaming=false")
        if given("training.packing") is True:
            fix = "training.packing=false, or data.streaming=false"
            wrong("data.streaming", True, "packing needs all rows beforehand.", fix)
    steps, epochs = given("training.max_steps"), given("training.num_train_epochs")
    if isinstance(steps, int) and steps == 0:
        consequence = "no step would be made, and an untrained adapter saved."
        wrong("training.max_steps", steps, consequence, "remove it, or give more than 0")
    if isinstance(epochs, int | float) and epochs <= 0 and not (isinstance(steps, int) and steps > 0):
        consequence = "no step would be made, and an untrained adapter saved."
        wrong("training.num_train_epochs", epochs, consequence, "remove it, give more than 0, or training.max_steps=…")
    tokens = given("batch.global_tokens")
    if tokens is not None and given("batch.global_size") is not None:
        wrong("batch.global_tokens", tokens, "batch.global_size gives the same in rows.", "give one of them")
    resume = given("training.resume")
    if isinstance(resume, str) and resume != IF_ANY:
        wrong("training.resume", resume, "unknown value.", f"use one of: true, false, {IF_ANY}.")
    if resume in (True, IF_ANY) and given("training.overwrite") is True:
        consequence = "resume keeps the earlier run, overwrite deletes it."
        wrong("training.resume", resume, consequence, "training.overwrite=false", "run-resume-and-overwrite")
    return problems


def _section_value(values: DictConfig, key: str) -> Any:
    """Return what `values` have under a dotted key; a reference as it is written, whatever it refers to."""
    section, _, name = key.partition(".")
    given = values._get_node(section) if section in values else None
    node = given._get_node(name) if isinstance(given, DictConfig) and not given._is_none() else None
    return node._value() if isinstance(node, Node) else None


def _held_out_problems(given: Callable[[str], Any]) -> list[Problem]:
    """Return why a share of the rows can't be held out."""
    key, share = "data.eval_fraction", given("data.eval_fraction")
    problems: list[Problem] = []
    if share is None:
        return problems
    if not 0 < share < 1:
        consequence = "is no share that leaves rows on both sides."
        _tell(problems, key, share, consequence, "give more than 0 and less than 1, such as 0.05")
    if given("data.eval_path") is not None:
        _tell(problems, key, share, "data.eval_path names the held-out rows already.", "give one of them")
    if given("data.streaming") is True:
        consequence = "rows of a stream aren't known before, so none can be drawn of them."
        _tell(problems, key, share, consequence, "data.eval_path=…, or data.streaming=false")
    return problems


def _trains_embeddings(tree: DictConfig) -> bool:
    """Return whether the adapter trains embeddings or the head whole: Unsloth does so where they are targets, too."""
    named = [OmegaConf.select(tree, key) for key in ("lora.modules_to_save", "lora.target_modules")]
    return any(name in WHOLE for one in named if isinstance(one, ListConfig) for name in one)


def _field_type(name: str) -> str:
    """Return the declared type of a dotted key, in words."""
    owner: Any = RunConfig
    *sections, last = name.split(".")
    for section in sections:
        owner = next(f.default_factory for f in dataclasses.fields(owner) if f.name == section)
    kind = next((str(f.type) for f in dataclasses.fields(owner) if f.name == last), "another type")
    return kind.replace(" | None", " or null")


def _type_of(value: Any) -> str:
    if OmegaConf.is_dict(value):
        return "a mapping"
    return "a list" if OmegaConf.is_list(value) else type(value).__name__
