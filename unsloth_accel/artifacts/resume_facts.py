"""Facts that a run must share with the checkpoint it resumes from; compared before any process starts, without torch.

What can change was found by trying it (transformers 5.17, Unsloth 2026.10.9): with the same global batch the Trainer
goes on with the same rows on any number of processes. An optimizer moves between one process and DDP, and from
Unsloth's sharding, which writes it whole, to both; not to it, since it looks its parameters up by name, and they number
them. Accelerate's FSDP has files of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from operator import attrgetter
from os.path import normpath
from pathlib import Path
from typing import Any

from ..config.data_mix import read_mix
from ..config.lora_fields import as_meant, experts_modules, trained_whole
from ..config.run_config import RunConfig
from ..config.start_adapter import ADAPTER_CONFIG, Adapter, model_of
from ..config.template_fields import MARKERS, is_template_name
from ..config.written import described
from ..data.mix import mix_facts
from ..data.sources import fingerprint
from ..errors import Problem, counted
from ..files import read_json
from ..strategies import STRATEGIES
from .checkpoints import Checkpoint, find_checkpoints, is_finished, newest
from .run_directory import RunDirectory

ROWS = "other rows would be trained than in a straight run."
_WEIGHTS = "the saved weights don't belong to this run's model."
LENGTH = "model.max_seq_length"
_MODULES = "lora.modules_to_save"
_ONE_TABLE = "lora.ensure_weight_tying"
_TABLES = {True: "one table for embed_tokens and lm_head", False: "a table each for embed_tokens and lm_head"}
_ADAPTER = (
    *("lora.use_dora", "lora.init_lora_weights", _MODULES, "lora.layers_to_transform", "lora.bias"),
    *("lora.target_parameters", "lora.target_modules"),
)
"""Keys, beside those that are checked by themselves, that the adapter's weights depend on."""
_TOKENS = "rows would be made into other tokens."
_ANSWERS = "the loss would count other tokens."
_ROWS_FOLLOW = {
    "data.mix": ROWS,
    "data.path": ROWS,
    "train_dataset": ROWS,
    "data.train_on": _ANSWERS,
    "data.format": ROWS,
    "data.columns": ROWS,
    "data.too_long": ROWS,
    "data.streaming": f"a stream has another order, so {ROWS}",
    "data.split": ROWS,
    "data.subset": ROWS,
    "data.stopping_strategy": ROWS,
    "data.max_rows": ROWS,
    "data.eval_fraction": ROWS,
    LENGTH: "rows would be cut at another length.",
    "training.packing": ROWS,
    "training.packing_strategy": ROWS,
    "training.truncation_mode": "rows would be cut at another end.",
    "training.shuffle_dataset": ROWS,
    "training.eos_token": _TOKENS,
    "model.chat_template": _TOKENS,
    "model.added_tokens": _WEIGHTS,
    "data.chat_template_kwargs": _TOKENS,
    **dict.fromkeys(MARKERS, _ANSWERS),
    "tokenizer": _TOKENS,
}
"""Facts that decide which rows and tokens are trained."""
_MUST_AGREE = {
    "method": "another method trains other steps.",
    "batch.global_size": f"the Trainer skips batches by steps, so {ROWS}",
    **_ROWS_FOLLOW,
    "training.optim": "its state is of another optimizer.",
    "model.name": _WEIGHTS,
    "lora.r": _WEIGHTS,
    "lora.alpha": "the saved weights would be scaled differently.",
    "lora.use_rslora": "the saved weights would be scaled differently.",
    **dict.fromkeys((*_ADAPTER, _ONE_TABLE), _WEIGHTS),
}
_ORDER = ("training.seed", "training.data_seed", "training.train_sampling_strategy", "accelerator_config")
"""Facts that the order of an epoch's rows follows: in mid-epoch they must agree."""
_INSTEAD = {
    **dict.fromkeys(("data.path", "train_dataset"), "give the file that it was made with"),
    "model.chat_template": "give the template that it was made with",
    **dict.fromkeys(MARKERS, "give the marker that it was made with, or remove it where that is none"),
    "data.mix": "give the sources and weights that it was made with",
    "tokenizer": "give the tokenizer that it was made with",
    "steps_per_epoch": "the number of processes, rows per device, batch.balance and dataloader_drop_last of its run",
    "accelerator_config": "give the accelerator_config that it was made with",
    _ONE_TABLE: "go on where it was made (Unsloth trains tied ones as one table on a GPU, and as two on a CPU)",
}
"""Fixes of facts that can't be given as `key=value`."""
_RENAMED = {"training.chat_template_path": "model.chat_template"}
"""Facts that older checkpoints have under another key."""
_EMBEDDING_RATE = "training.embedding_learning_rate"
_KEPT = {
    _EMBEDDING_RATE: "the checkpoint's own is kept: the Trainer restores it with the optimizer.",
    **{
        f"training.{key}": "the checkpoint's own is kept: the Trainer restores it with the optimizer."
        for key in ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "optim_args")
    },
}
_AS_DESCRIBED = (
    *("data.chat_template_kwargs", "model.added_tokens", *MARKERS),
    *("data.train_on", "data.format", "data.columns", "data.too_long", "data.streaming", "data.split", "data.subset"),
    *("data.stopping_strategy", "data.max_rows", "data.eval_fraction"),
    *(LENGTH, "lora.r", "lora.alpha", "lora.use_rslora", *_ADAPTER),
)
"""Facts that are taken from run.yaml."""
USUAL_EPOCHS = 3.0
"""Epochs of a run that gives neither steps nor epochs: transformers' TrainingArguments.num_train_epochs."""
_GROUPED = "group_by_length"
_DECIDE_ROWS = {
    "packing": False,
    "truncation_mode": "keep_start",
    "shuffle_dataset": False,
    "eos_token": None,
    "dataloader_drop_last": False,
    "seed": 42,
    "data_seed": None,
}
"""Fields of `training` that decide which row is seen when, with TRL's and transformers' defaults."""


def made_with(run: RunConfig) -> dict[str, Any]:
    """Return the facts of a planned run (every `auto` decided) on which resuming its checkpoints depends, by its keys.

    `data.path` is the file's fingerprint, so that it may move, as in `data.mix`; empty where that is given. JSON keeps
    them as they are.
    """
    training = run.training
    said = ("optim", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "optim_args")
    return {
        "method": run.method,
        "distributed.strategy": run.distributed.strategy,
        "distributed.num_processes": run.distributed.num_processes,
        "batch.global_size": run.batch.rows(run.model.max_seq_length),
        "model.name": _resolved(model_of(run.model.name)),
        "data.path": "" if run.data.mix else fingerprint(run.data.path),
        "data.mix": mix_facts(run.data.mix),
        **{key: attrgetter(key)(run) for key in _AS_DESCRIBED},
        **{f"training.{key}": training.get(key, usual) for key, usual in _DECIDE_ROWS.items()},
        "training.train_sampling_strategy": training.get("train_sampling_strategy")
        or (_GROUPED if training.get(_GROUPED) else "random"),
        **({"training.packing_strategy": training.get("packing_strategy", "bfd")} if training.get("packing") else {}),
        "model.chat_template": _text_of(run.model.chat_template),
        **{f"training.{key}": training[key] for key in said if key in training},
        _EMBEDDING_RATE: training.get("embedding_learning_rate"),
    }


def rows_as_written(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts that a run's rows and tokens follow as the `values` of its run.planned.yaml have them: paths in
    the place of fingerprints, and what its version didn't know yet as it is usual."""
    facts = {}
    usual = described(RunConfig(training={**_DECIDE_ROWS}))
    for key in _ROWS_FOLLOW:
        section, _, name = key.partition(".")
        for given in (usual.get(section), values.get(section)):
            if isinstance(given, Mapping) and name in given:
                facts[key] = given[name]
    for key in ("data.path", "model.chat_template"):
        facts[key] = normpath(facts[key]) if isinstance(facts[key], str) and facts[key] else None
    mix, _ = read_mix(facts["data.mix"])
    return facts | {"data.mix": mix_facts(mix, normpath)}


def other_rows(facts: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    """Return the keys of the facts by which two runs train other rows or tokens; skip those that either lacks."""
    return [key for key in _ROWS_FOLLOW if key in facts and key in others and facts[key] != others[key]]


def facts_of_run(run: RunConfig) -> dict[str, Any]:
    """Return all values of a run's description, by dotted keys, and fingerprints of its rows: what all ranks share."""
    facts: dict[str, Any] = {}
    for section, values in described(run).items():
        facts |= {f"{section}.{key}": value for key, value in values.items()} if isinstance(values, dict) else {}
    facts["data.mix"] = mix_facts(run.data.mix)
    for key, path in (("data.path", run.data.path), ("data.eval_path", run.data.eval_path)):
        if path:  # which may lie elsewhere on another machine
            facts[key] = f"rows with fingerprint {fingerprint(path)}"
    return facts


def lora_facts(model: Any) -> dict[str, Any]:
    """Return the facts of a PEFT model's adapter; empty for another model."""
    configs = getattr(model, "peft_config", None)
    config = configs.get("default") if isinstance(configs, dict) else None
    if config is None or not hasattr(config, "r"):
        return {}
    modules = config.target_modules
    experts = experts_modules(getattr(config, "target_parameters", None))
    return {
        "model.name": _resolved(config.base_model_name_or_path or ""),
        "lora.r": config.r,
        "lora.alpha": config.lora_alpha,
        "lora.use_rslora": config.use_rslora,
        "lora.target_modules": modules if isinstance(modules, str) else sorted({*(modules or ()), *experts}),
        _ONE_TABLE: bool(getattr(config, "ensure_weight_tying", False)),
    }


def resume_problems(run: RunConfig, one_table: bool | None = None) -> list[Problem]:
    """Return the problems of resuming `run` (planned, every `auto` decided) from its output_dir's newest whole
    checkpoint. Empty without such a checkpoint, which `validation.inputs.output_problems` reports. `one_table`: whether
    embedding and head will be trained as one (`lora_targets.trains_one_table`), if known."""
    checkpoint, _ = newest(run.output_dir)
    if checkpoint is None:
        return []
    facts = made_with(run) | ({} if one_table is None else {_ONE_TABLE: one_table})
    problems = [*difference(checkpoint, facts), *_adapter_problems(checkpoint, facts)]
    seen = {problem.key for problem in problems}
    problems += [problem for problem in _step_problems(run, checkpoint) if problem.key not in seen]
    key = "distributed.num_processes"
    before, now = checkpoint.made_with.get(key), facts[key]
    moved = before is not None and before != now
    if moved and run.lora.dropout:
        consequence = "dropout draws its numbers in each process, so losses differ a little from a straight run."
        fix, value = "nothing, or the checkpoint's number of processes", run.lora.dropout
        problem = Problem(key="lora.dropout", value=value, consequence=consequence, fix=fix, severity="warning")
        problems.append(problem)
    if moved and checkpoint.in_mid_epoch and facts["training.train_sampling_strategy"] == _GROUPED:
        consequence = f"rows are grouped within each process's batches, so on another number of processes {ROWS}"
        fix = f"{key}={before}, or start a new run"
        problems.append(Problem(key=key, value=now, consequence=consequence, fix=fix))
    if run.training.get("ignore_data_skip") and checkpoint.in_mid_epoch:
        consequence = f"{checkpoint.path.name} lies in mid-epoch, whose rows are trained from the first on again."
        fix, key = "training.ignore_data_skip=false, to go on where it was", "training.ignore_data_skip"
        problems.append(Problem(key=key, value=True, consequence=consequence, fix=fix, severity="warning"))
    return problems


def difference(checkpoint: Checkpoint, facts: Mapping[str, Any]) -> list[Problem]:
    """Return a problem for each fact that `checkpoint` and `facts` give differently; skip keys that either lacks."""
    before = {_RENAMED.get(key, key): value for key, value in checkpoint.made_with.items()}
    problems = []
    for key, consequence in (_MUST_AGREE | _KEPT).items():
        if key not in before or key not in facts or as_meant(key, before[key]) == as_meant(key, facts[key]):
            continue
        if key == "data.path" and before.get("data.mix", []) != facts.get("data.mix", []) and "data.mix" in before:
            continue  # told already
        if key == "lora.target_modules" and isinstance(before[key], list) != isinstance(facts[key], list):
            continue  # by name and by pattern: the loader sees whether they fit
        severity: Any = "error" if key in _MUST_AGREE else "warning"
        if key == _EMBEDDING_RATE and None in (before[key], facts[key]):
            severity, consequence = "error", "its optimizer has other groups of weights, and can't be read."
        problems.append(_problem(checkpoint, key, facts[key], before[key], consequence, severity))
    problems += [*_order_problems(checkpoint, facts), *_epoch_problems(checkpoint, facts)]
    ours, theirs = facts.get("distributed.strategy"), before.get("distributed.strategy")
    now, then = STRATEGIES.get(ours), STRATEGIES.get(theirs)
    if now and then and then.optimizer_state not in now.reads:
        consequence = f"{ours} can't read the optimizer that {theirs} saved."
        problems.append(_problem(checkpoint, "distributed.strategy", ours, theirs, consequence, "error"))
    return problems


def _order_problems(checkpoint: Checkpoint, facts: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield the facts that an epoch's order follows and that differ: errors in mid-epoch."""
    before, key = checkpoint.made_with, "training.train_sampling_strategy"
    for name in _ORDER:
        if name not in before or name not in facts or before[name] == facts[name]:
            continue
        consequence = f"the order of rows follows it, so {ROWS}"
        severity: Any = "error"
        drawn = any(facts.get(key) for key in ("training.shuffle_dataset", "data.eval_fraction"))
        drawn = drawn or any("weight" in source for source in facts.get("data.mix") or ())
        if name == "training.seed" and drawn:  # rows were shuffled, drawn or held out by it before
            yield _problem(checkpoint, name, facts[name], before[name], consequence, severity)
            continue
        if not checkpoint.in_mid_epoch:
            consequence = "from the next epoch on rows come in another order than in a straight run."
            severity = "warning"
        problem = _problem(checkpoint, name, facts[name], before[name], consequence, severity)
        yield replace(problem, fix=_with_epochs_end(checkpoint, problem.fix)) if severity == "error" else problem
    if before and key not in before and facts.get(key) == _GROUPED and checkpoint.in_mid_epoch:
        consequence = f"{checkpoint.path.name} lies in mid-epoch and tells no order that can be gone on with, so {ROWS}"
        fix = _with_epochs_end(checkpoint, "start a new run in another output_dir")
        yield Problem(key=key, value=_GROUPED, consequence=consequence, fix=fix)


def _with_epochs_end(checkpoint: Checkpoint, fix: str) -> str:
    """Return `fix` with the newest checkpoint before `checkpoint` that lies at an epoch's end, where there is one."""
    earlier = [one for one in find_checkpoints(checkpoint.path.parent) if one.step < checkpoint.step]
    end = next((one for one in reversed(earlier) if one.fault is None and not one.in_mid_epoch), None)
    return f"{fix}, or go on from {end.path.name}, an epoch's end: move the later ones away" if end else fix


def _epoch_problems(checkpoint: Checkpoint, facts: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield the problem of epochs that would have another number of steps, by which the Trainer finds its place."""
    before, key = checkpoint.made_with, "training.dataloader_drop_last"
    rows, size = before.get("rows"), before.get("batch.global_size")
    if key not in before or key not in facts or bool(before[key]) == bool(facts[key]) or not rows or not size:
        return
    if rows % size and checkpoint.step > rows // size:
        consequence = f"an epoch of {counted(rows, 'row')} would have another number of steps, so {ROWS}"
        yield _problem(checkpoint, key, facts[key], before[key], consequence, "error")


def steps_problem(checkpoint: Checkpoint, now: int | None) -> Problem | None:
    """Return the problem of going on from `checkpoint` with `now` steps per epoch, where its run had others."""
    before = checkpoint.made_with.get("steps_per_epoch")
    if not isinstance(before, int) or now is None or before == now or checkpoint.step <= min(before, now):
        return None
    consequence = f"an epoch has {counted(now, 'step')} here and had {before}: {ROWS}"
    return _problem(checkpoint, "steps_per_epoch", now, before, consequence, "error")


def _text_of(template: str | None) -> str | None:
    """Return a digest of a template's file; a template's name, or the path of a file that can't be read, as it is."""
    if template is None or is_template_name(template):
        return template
    try:
        return hashlib.sha256(Path(template).expanduser().read_bytes()).hexdigest()[:16]
    except OSError:
        return template


def _problem(checkpoint: Checkpoint, key: str, now: Any, before: Any, consequence: str, severity: Any) -> Problem:
    # On a command line an empty mapping would leave what the file gives.
    said, instead = str(before), _INSTEAD.get(key, f"{key}={'null' if before in (None, {}) else before}")
    if key in MARKERS:
        said = json.dumps(before, ensure_ascii=False) if before else "none"
    if key == _ONE_TABLE:
        key, said, now = "distributed.device", _TABLES[before], None
    if key == "data.mix":
        said, now = f"data.mix={before or 'none'}", now or "none"
    if key == "data.path":
        said, now = f"other rows, fingerprint {before}", f"rows with fingerprint {now}" if now else "a mix of sources"
    fix = f"{'nothing' if severity == 'warning' else instead}, or start a new run in another output_dir"
    consequence = f"{checkpoint.path.name} was made with {said}: {consequence}"
    return Problem(key=key, value=now, consequence=consequence, fix=fix, severity=severity)


def _adapter_problems(checkpoint: Checkpoint, facts: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield the differences of the checkpoint's adapter_config.json from the run that its record doesn't tell."""
    config = checkpoint.adapter_config
    recorded = checkpoint.made_with
    adapter = Adapter(name=checkpoint.path.name, directory=checkpoint.path, base="", config=config)
    pairs: dict[str, tuple[str, Callable[[Any], Any]]] = {
        "lora.r": ("r", int),
        "lora.alpha": ("lora_alpha", int),
        "lora.use_rslora": ("use_rslora", bool),
        _ONE_TABLE: ("ensure_weight_tying", bool),
        "lora.target_modules": ("target_modules", lambda _: sorted(adapter.lora["target_modules"])),
        "model.name": ("base_model_name_or_path", _base),
    }
    for key, (name, form) in pairs.items():
        value, ours = config.get(name), facts.get(key)
        if value is None or key not in facts or isinstance(value, str) != isinstance(ours, str):
            continue
        if key in recorded and (key == "model.name" or as_meant(key, recorded[key]) != as_meant(key, ours)):
            continue  # Unsloth may train another copy of a model than the one named; or it has been told
        # PEFT has lists of their own for what is trained whole, and for experts; of the first a script's facts don't
        # tell, and a record has told where they differ.
        told = _MODULES in recorded or _MODULES not in facts
        whole = trained_whole(config.get("modules_to_save") if told else facts[_MODULES])
        given = sorted({*ours, *whole}) if key == "lora.target_modules" and isinstance(ours, list) else ours
        same = adapter.trains(given) if key == "lora.target_modules" else form(value) == form(ours)
        if not same:
            yield _problem(checkpoint, key, ours, form(value), _MUST_AGREE[key], "error")


def _base(name: str) -> str:
    """Return a model's name as far as it tells models apart: Unsloth loads `owner/name` also as its 4-bit copy."""
    resolved = _resolved(name)
    if resolved != name or name.startswith(("/", ".", "~")):
        return resolved
    return name.rpartition("/")[2].lower().removesuffix("-bnb-4bit").removesuffix("-unsloth")


def _resolved(name: str) -> str:
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def lacking(run: RunConfig) -> str:
    """Return what output_dir lacks of all that a run ends with, in words; empty where it is over. The adapter alone
    doesn't tell that: it is saved after the last step, before the best checkpoint's weights, results.json and a push.
    """
    files, asked = RunDirectory(run.output_dir), run.training
    if not is_finished(run.output_dir):
        return "an adapter"
    made = (files.adapter / ADAPTER_CONFIG).stat().st_mtime_ns
    if not files.results.is_file() or files.results.stat().st_mtime_ns < made:  # or of the run before
        best = " and maybe the best checkpoint's weights" if asked.get("load_best_model_at_end") else ""
        return f"{files.results.name}{best}"
    return "a push to the Hub" if asked.get("push_to_hub") and "hub" not in read_json(files.results) else ""


def _step_problems(run: RunConfig, checkpoint: Checkpoint) -> Iterator[Problem]:
    if lacking(run):
        return
    most = run.training.get("max_steps", -1)
    fix = "a larger training.max_steps, or another output_dir"
    if 0 < most <= checkpoint.step:
        made = counted(checkpoint.step, "step")
        consequence = f"the finished run in {run.output_dir} has made {made}: nothing is left."
        yield Problem(key="training.max_steps", value=most, consequence=consequence, fix=fix)
        return
    epochs, done = run.training.get("num_train_epochs", USUAL_EPOCHS), checkpoint.epoch
    if most <= 0 and done is not None and done >= epochs:
        consequence = f"the finished run in {run.output_dir} has trained {done:g} epochs: nothing is left."
        fix = "a larger training.num_train_epochs, or another output_dir"
        yield Problem(key="training.num_train_epochs", value=epochs, consequence=consequence, fix=fix)
        return
    consequence = (
        f"{run.output_dir} holds a finished run: training goes on after step {checkpoint.step}, at the learning rate "
        "that the longer schedule has there, and the new adapter takes the old one's place."
    )
    fix = "nothing, or copy the adapter first if you want both"
    yield Problem(key="training.resume", value=True, consequence=consequence, fix=fix, severity="warning")
