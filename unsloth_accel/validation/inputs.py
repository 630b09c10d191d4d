"""Checks of a run's inputs and place, made before any process starts. Config files have their own: rules/."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..artifacts.checkpoints import Checkpoint, is_finished, newest
from ..artifacts.own_files import is_of_a_run, link_problem, made_in, taken
from ..artifacts.run_directory import RunDirectory
from ..config.push_target import PushTarget
from ..config.run_config import DataConfig, RunConfig
from ..config.start_adapter import model_of
from ..config.template_fields import is_template_name
from ..config.trainer_settings import settings, shared_out_by_tokens
from ..data.chat_template import template_of_file
from ..data.formats import has_response, is_conversational, question_of, roles
from ..data.generation_server import NOT_THERE, server_problems_of
from ..data.hub import access_problems, has_rows
from ..data.mix import HELD_OUT, TRAIN, all_sources, mix_warnings, parts_of
from ..data.rows import Rows, no_step, read_checked_rows, trained_rows
from ..data.sources import locate
from ..data.tokenise import COMPARED, answers_are_compared, responses_need_turns
from ..errors import ConfigError, Problem, counted, errors
from ..files import FULL, existing, unwritable
from ..methods import METHODS
from ..models.hub_access import Kind, answers, hub_is_off
from ..models.known_names import copy_loaded
from ..models.locate import find_model, is_cached, may_be_hub_id, unreachable
from ..models.spec import ModelSpec
from ..planning.groups import group_size, written_together
from .model_fit import model_fit_problems
from .reward_checks import reward_problems
from .vocabulary import vocabulary_problems

STREAM_CHECKED = 1_000
"""Rows of a stream that are checked before anything starts; the others are checked when they are read."""


def input_problems(run: RunConfig) -> list[Problem]:
    """Return the problems of the model and the data of `run`. The rows of a Hub dataset are looked at once they are
    downloaded; here only whether they can be."""
    problems = [*_model_problems(run), *_template_problems(run)]
    if run.training.get("use_liger_kernel") and importlib.util.find_spec("liger_kernel") is None:
        consequence = "needs the package liger-kernel, which is not installed: every process fails."
        fix = "remove it, Unsloth has kernels of its own; or pip install liger-kernel"
        problems.append(Problem(key="training.use_liger_kernel", value=True, consequence=consequence, fix=fix))
    if run.lora.init_lora_weights == "loftq" and importlib.util.find_spec("scipy") is None:
        consequence = "needs the package scipy, which is not installed: every process fails."
        fix = "pip install scipy"
        problems.append(Problem(key="lora.init_lora_weights", value="loftq", consequence=consequence, fix=fix))
    rows, of_rows = _rows(run)
    problems += [*of_rows, *mix_warnings(run.data)]
    if run.data.train_on == "all" and any(found.kind in COMPARED for found in rows.values()):
        problems.append(answers_are_compared())
    if run.data.train_on == "responses":
        for found in rows.values():
            problems += _responses_problems(run, found)
    if TRAIN in rows:
        problems += _unheeded(run, rows[TRAIN])
    if METHODS[run.method].generates:
        problems += [*_vllm_problems(run), *_server_problems(run)]
    if run.evaluation.exact_match and HELD_OUT in rows:
        problems += exact_match_problems(rows[HELD_OUT])
    problems += [*model_fit_problems(run), *vocabulary_problems(run, rows), *reward_problems(run, rows)]
    if TRAIN not in rows or run.data.streaming:
        return problems
    return problems + _epoch_problems(run, trained_rows(len(rows[TRAIN]), rows[TRAIN], run.method))


def _rows(run: RunConfig) -> tuple[dict[str, Rows], list[Problem]]:
    """Return the rows of `run` that lie in files here, by their part, and what is wrong with them and with the rest."""
    most = STREAM_CHECKED if run.data.streaming else None
    problems: list[Problem] = []
    hubs, files = dict[str, DataConfig](), dict[str, DataConfig]()
    for key, source in all_sources(run.data).items():
        try:
            hub = locate(source.path, key).hub
            problems += access_problems(hub, key, source) if hub else []
            (hubs if hub else files)[key] = source
        except ConfigError as error:
            problems += error.problems
    if problems or hubs:  # what is there is looked at all the same, each by itself
        read: dict[str, Rows] = {}
        for key, source in files.items():
            try:
                read[key] = read_checked_rows(
                    source.path, key, source, None if key == HELD_OUT else most or source.max_rows, method=run.method
                )
            except ConfigError as error:
                problems += error.problems
        whole = {key: rows for key, rows in read.items() if not (key == TRAIN and run.data.eval_fraction)}
        return {key: rows for key, rows in whole.items() if key in (TRAIN, HELD_OUT)}, problems
    try:
        return parts_of(run, most, streaming=run.data.streaming), problems
    except ConfigError as error:
        return {}, list(error.problems)


def place_problems(run: RunConfig) -> list[Problem]:
    """Return the problems of `input_problems` for which no row is read: what isn't there, or lacks what is named."""
    problems = [*_model_problems(run), *model_fit_problems(run), *reward_problems(run, {})]
    for key, source in all_sources(run.data).items():
        try:
            locate(source.path, key)
        except ConfigError as error:
            problems += error.problems
    return problems


def _responses_problems(run: RunConfig, found: Rows) -> list[Problem]:
    if found.kind == "text":
        return [] if run.data.response_marker else [responses_need_turns()]
    if found.kind != "messages":
        return []
    problem = partial(Problem, key="data.train_on", value="responses")
    without = [index for index, row in enumerate(found) if not has_response(row)]
    if without:
        what = f"{counted(len(without), 'row')} without an assistant's message: nothing to learn from"
        fix = "remove them, or data.train_on=all"
        return [problem(consequence=f"{what} ({found.places(without)}).", fix=fix)]
    late = [index for index, row in enumerate(found) if roles(row)[-1] != "assistant"]
    if not late:
        return []
    what = f"{counted(len(late), 'row')} with a last message that is not the assistant's, which is not trained"
    fix = "nothing, or end them with the assistant's answer"
    return [problem(consequence=f"{what} ({found.places(late)}).", fix=fix, severity="warning")]


def _unheeded(run: RunConfig, found: Rows) -> list[Problem]:
    """Return a warning for each setting that nothing of the training rows heeds: markers of answers that nobody looks
    for, and arguments of the chat template for rows that aren't chats."""
    problem = partial(Problem, severity="warning")
    problems, data = [], run.data
    if data.chat_template_kwargs and not is_conversational(next(iter(found))):
        consequence = f"changes nothing: rows of {found.kind} as text don't pass through the chat template."
        fix = "remove it, or rows of messages"
        given = data.chat_template_kwargs
        problems.append(problem(key="data.chat_template_kwargs", value=given, consequence=consequence, fix=fix))
    fix = "remove both markers"
    if found.kind not in ("messages", "text"):
        consequence = f"is not looked for: rows of {found.kind} say themselves what an answer is."
    elif data.train_on != "responses" and not found.weighted:
        consequence = f"is not looked for: data.train_on={data.train_on} trains every token of these rows."
        fix = f"data.train_on=responses, or {fix}"
    else:
        return problems
    if data.response_marker:
        marker = data.response_marker
        problems.append(problem(key="data.response_marker", value=marker, consequence=consequence, fix=fix))
    return problems


def _template_problems(run: RunConfig) -> list[Problem]:
    """Return why the file of the run's chat template is none."""
    try:
        if run.model.chat_template and not is_template_name(run.model.chat_template):
            template_of_file(run.model.chat_template)
    except ConfigError as error:
        return list(error.problems)
    return []


def exact_match_problems(rows: Rows) -> list[Problem]:
    """Return a problem where held-out `rows` have nothing to ask."""
    if rows.kind == "messages" and any(question_of(row) for row in rows):
        return []
    consequence = "needs held-out chat rows (`messages`) that end with an assistant's answer; there is none."
    fix = "evaluation.exact_match=false"
    return [Problem(key="evaluation.exact_match", value=True, consequence=consequence, fix=fix)]


def _epoch_problems(run: RunConfig, count: int) -> list[Problem]:
    """Return a warning where an epoch's last step can't hold a whole global batch; an error where there is no step."""
    size = run.batch.rows(run.model.max_seq_length)
    if METHODS[run.method].generates:
        return _prompt_problems(run, count)
    if not size or count % size == 0 or run.training.get("packing"):
        return []
    if run.training.get("dataloader_drop_last"):
        return [no_step(count, size)] if count < size else []
    by_tokens = shared_out_by_tokens(run)
    if by_tokens and count > size:
        return []
    consequence = f"an epoch of {count} rows ends with a step of {count % size}"
    if count < size:
        consequence = f"{counted(count, 'row')} in all: every step is an epoch of {count}, and never {size}"
    fix = "nothing, if that is all right; or a number of rows that the batch divides"
    if not by_tokens:
        consequence += "; over several processes some rows are repeated there to give each process as many"
        balanced = replace(run, batch=replace(run.batch, balance="tokens"))
        fix += "; batch.balance=tokens repeats none" * shared_out_by_tokens(balanced)
    key = "batch.global_size"
    return [Problem(key=key, value=size, consequence=f"{consequence}.", fix=fix, severity="warning")]


def _prompt_problems(run: RunConfig, count: int) -> list[Problem]:
    """Return an error where `count` prompts don't fill a batch, and a warning where some are left out each epoch."""
    each, written = group_size(run), written_together(run)
    if each < 2 or written is None:  # told by a rule; told by the processes, which know their number
        return []
    key, size = written
    prompts = size // each
    if not prompts or count % prompts == 0:
        return []
    value = run.training.get(key.removeprefix("training."), size)
    needed = f"{counted(size, 'completion')} are {each} to each of {counted(prompts, 'prompt')}"
    if count < prompts:
        consequence = f"{needed}, and there are {count}: incomplete batches are left out, so there is no step."
        fix = f"{counted(prompts, 'prompt')} or more, a larger training.num_generations, or fewer completions at a time"
        if value == size:
            fix = f"{key}={count * each}, or a larger training.num_generations, or more prompts"
        return [Problem(key=key, value=value, consequence=consequence, fix=fix)]
    consequence = f"{needed}: of {count} prompts the last {count % prompts} of each epoch are left out."
    fix = "nothing, other ones are left out in each epoch; or a number of prompts that the batch divides"
    return [Problem(key=key, value=value, consequence=consequence, fix=fix, severity="warning")]


def _model_problems(run: RunConfig) -> list[Problem]:
    name = model_of(run.model.name)
    path = Path(name)
    problem = partial(Problem, key="model.name", value=name)
    missing = _bitsandbytes_problems("model.load_in_4bit", True) if run.model.load_in_4bit else []
    if missing:
        return missing
    if not os.path.exists(path) and may_be_hub_id(name):
        return hub_model_problems(name, run)
    try:
        find_model(name)
        if not any(path.glob("*.safetensors")) and not any(path.glob("*.bin")):
            consequence = "has a config.json and no weights (*.safetensors)."
            return [problem(consequence=consequence, fix="copy the weights into it")]
        spec = ModelSpec.load(name, trust_remote_code=run.model.trust_remote_code)
    except ConfigError as error:  # no model, a file cut short, a shard missing, sizes that contradict each other
        return list(error.problems)
    if spec.unloadable:
        return list(spec.unloadable)
    return _bitsandbytes_problems("model.name", name) if spec.quantization == "bnb-4bit" else []


def hub_model_problems(name: str, run: RunConfig) -> list[Problem]:
    """Return why the processes can't load the hub id `name`, or the copy that Unsloth loads in its place.

    Nothing is asked where either is in the cache, whole.
    """
    copy = _copy_loaded(name, run, run.distributed.device)
    if is_cached(name) or (copy and is_cached(copy)):
        return []
    problem = unreachable(name)
    if problem is None or copy is None or hub_is_off() or unreachable(copy):
        return [problem] if problem else []
    consequence = f"{problem.consequence.removesuffix('.')}; on a GPU Unsloth loads {copy} in its place."
    return [replace(problem, consequence=consequence, severity="warning")]


def hub_variables(run: RunConfig, device: str) -> dict[str, str]:
    """Return the variables with which the processes of `run` on `device` ask no Hub, and say so: where all that they
    need of it is in the cache, it gives no answer, and nobody has said whether to ask it.

    Without them huggingface_hub, transformers and PEFT ask again and again, for minutes, before they take the cache.
    """
    said = any(os.environ.get(name) for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    needed = [] if said or PushTarget.of(run) else _all_cached(run, device)
    if not needed or answers(*needed[0]):
        return {}
    what = "the Hub gives no answer; what is needed of it is in the cache, so the processes don't ask it"
    print(f"{what} (HF_HUB_OFFLINE=1)", flush=True)
    return {"HF_HUB_OFFLINE": "1"}


def _all_cached(run: RunConfig, device: str) -> list[tuple[str, Kind]]:
    """Return what `run` has of the Hub; nothing where a part of it is not in the cache."""
    name, found = model_of(run.model.name), list[tuple[str, Kind]]()
    if not os.path.exists(name) and may_be_hub_id(name):
        loaded = _copy_loaded(name, run, device) or name
        if not is_cached(loaded):
            return []
        found.append((loaded, "model"))
    for key, source in all_sources(run.data).items():
        if not (hub := locate(source.path, key).hub):
            continue
        if run.data.streaming or not has_rows(hub, source.subset):
            return []
        found.append((hub, "dataset"))
    return found


def _copy_loaded(name: str, run: RunConfig, device: str) -> str | None:
    """Return the hub id that Unsloth loads in the place of `name`; None where it loads `name` itself."""
    return None if device == "cpu" else copy_loaded(name, in_4bit=run.model.load_in_4bit)


def _vllm_problems(run: RunConfig) -> list[Problem]:
    if not run.training.get("use_vllm") or importlib.util.find_spec("vllm") is not None:
        return []
    consequence = (
        "needs the package vllm where it trains, too, by which TRL's client sends weights; it is not installed."
    )
    fix = "pip install 'trl[vllm]', or training.use_vllm=false"
    return [Problem(key="training.use_vllm", value=True, consequence=consequence, fix=fix)]


def _server_problems(run: RunConfig, wait: bool = False) -> list[Problem]:
    return server_problems_of(settings(run), run.model.name, run.model.max_seq_length, wait=wait)


def once_served(run: RunConfig, problems: Sequence[Problem]) -> list[Problem]:
    """Return `problems` of a run that is to start, of which a generation server that isn't there may be the only error:
    then it is waited for, and asked again."""
    if [one.rule for one in errors(problems)] != [NOT_THERE]:
        return [*problems]
    return [*(one for one in problems if one.rule != NOT_THERE), *_server_problems(run, wait=True)]


def _bitsandbytes_problems(key: str, value: Any) -> list[Problem]:
    if importlib.util.find_spec("bitsandbytes") is not None:
        return []
    consequence = "needs the package bitsandbytes, which is not installed."
    fix = "pip install bitsandbytes, or model.load_in_4bit=false"
    return [Problem(key=key, value=value, consequence=consequence, fix=fix)]


def output_problems(run: RunConfig) -> list[Problem]:
    """Return the reasons why the run may not write into its output directory."""
    directory = Path(run.output_dir)
    # The nearest directory that exists decides whether the rest can be made.
    problem = partial(Problem, key="output_dir", value=run.output_dir)
    for there in (directory, *directory.absolute().parents):
        if os.path.exists(there):
            break
        if os.path.islink(there):
            return [link_problem(there, directory)]
    if not there.is_dir():
        return [problem(consequence=f"{there} is a file.", fix="choose a directory")]
    fault = unwritable(there)
    if (fault and fault.errno not in FULL) or not _possible(directory):  # the room for checkpoints is another rule's
        consequence = f"can't be made or written below {there}, so the adapter could not be saved."
        return [problem(consequence=consequence, fix="choose a directory that you may write")]
    whole, broken = newest(directory)
    known = is_of_a_run(directory)
    if run.resume and not whole:
        consequence = f"there is no checkpoint in {run.output_dir} to go on from"
        consequence += "".join(f"; {found.path.name}: {found.fault}" for found in broken) + "."
        fix = "remove training.resume, or set output_dir to the run that has checkpoints"
        if broken:
            fix = "copy the missing files back, or training.overwrite=true instead to start anew"
        return [Problem(key="training.resume", value=True, consequence=consequence, fix=fix)]
    if run.resume and whole:
        return [*taken_problems(run), *(_broken(found, whole) for found in broken)]
    if run.overwrite:
        return [*taken_problems(run), *_deleted_start_problems(run)]
    held = f"checkpoints up to {(whole or broken[0]).path.name}" if whole or any(c.has_adapter for c in broken) else ""
    if known and is_finished(directory):
        held = "a finished run"
    if not held:
        return taken_problems(run)
    delete = "training.overwrite=true to delete it, " if known else ""
    fix = f"training.resume=true to go on, {delete}or another output_dir"
    return [problem(consequence=f"already holds {held}, which this run would overwrite.", fix=fix)]


def room_problems(run: RunConfig, checkpoint_gib: float | None) -> list[Problem]:
    """Return a warning where the disk of output_dir holds no three checkpoints by the clock: two that are kept, and the
    one that is written before the oldest goes."""
    if run.save_minutes is None or not checkpoint_gib:
        return []
    free = shutil.disk_usage(existing(run.output_dir)).free / 2**30
    if free >= 3 * checkpoint_gib:
        return []
    consequence = f"its disk has {free:.1f} GiB left, and three checkpoints take {3 * checkpoint_gib:.1f} GiB."
    fix = "make room, choose another disk, or training.save_minutes=0 for no checkpoints by the clock"
    return [Problem(key="output_dir", value=run.output_dir, consequence=consequence, fix=fix, severity="warning")]


def _deleted_start_problems(run: RunConfig) -> list[Problem]:
    """Return a problem where the run begins with an adapter or a checkpoint of the run that it deletes."""
    files, start = RunDirectory(run.output_dir), Path(run.model.name)
    filled = [one for one in (files.adapter, *files.checkpoints()) if is_of_a_run(files.path) and made_in(one)]
    if not os.path.exists(start) or not any(start.resolve() == one.resolve() for one in filled):
        return []
    consequence = "is of the run that training.overwrite=true deletes, before this one begins with it."
    fix = "another output_dir, or copy it elsewhere and name the copy"
    return [Problem(key="model.name", value=run.model.name, consequence=consequence, fix=fix)]


def taken_problems(run: RunConfig) -> list[Problem]:
    """Return a problem where a user's own stands in the place of what the run writes into its output directory."""
    return taken(run.output_dir, checkpoints=not run.resume)


def _broken(found: Checkpoint, instead: Checkpoint) -> Problem:
    consequence = f"{found.fault}: no run can go on from it, so this one goes on from {instead.path.name}."
    fix = "nothing, or delete it"
    return Problem(key=str(found.path), consequence=consequence, fix=fix, severity="warning")


def _possible(path: Path) -> bool:
    """Return whether a file system takes the names in `path`."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
    return True
