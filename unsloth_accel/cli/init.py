"""unsloth-accel init: a run.yaml to begin with, for this machine or from another tool's file; a script's two lines."""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, Problem, counted, raise_errors
from .options import command_parser, count, write_out

if TYPE_CHECKING:
    from ..config.run_config import RunConfig
    from ..config.translate import Line, Translation
    from ..hardware.hardware import Hardware

EXAMPLES = """\
examples:
  unsloth-accel init --model unsloth/Llama-3.2-1B-Instruct --data data/train.jsonl
  unsloth-accel init --from llama_factory.yaml --gpus 8       # LLaMA-Factory, axolotl, TRL, open-r1, alignment handbook
  unsloth-accel init --from axolotl.yml --data rows.jsonl batch.global_size=64
  unsloth-accel init --from accelerate.yaml -- train.py --model_name_or_path … --learning_rate 2e-4
  unsloth-accel init --from train.py                          # or notebook.ipynb: what to add, what every rank does

Every key of another tool's file is translated, or named with the reason."""
_SCRIPTS = (".py", ".ipynb")
_ROWS = 16
"""Rows per step of a run that is begun, or the next number that the processes of this machine divide."""


def parser() -> argparse.ArgumentParser:
    made = command_parser(
        "init",
        "Write a commented run.yaml for this machine, or make one of another tool's file. Of a script or notebook "
        "say which lines to add, and what in it every process does. Asks nothing and starts nothing.",
        EXAMPLES,
        usage="unsloth-accel init --model MODEL --data DATA [--method METHOD] [options] [key=value ...]\n"
        "       unsloth-accel init --from FILE [FILE] [--gpus N] [options] [key=value ...] [-- ARGUMENTS]\n"
        "       unsloth-accel init --from SCRIPT.py",
    )
    made.add_argument("words", nargs="*", metavar="key=value", help="more values for run.yaml, as launch takes them")
    source = "another tool's YAML, an accelerate config (also beside one), or a script or notebook"
    made.add_argument("--from", dest="source", nargs="+", metavar="FILE", help=source)
    made.add_argument("--model", metavar="MODEL", help="a directory with a config.json, or a hub id")
    rows = "rows to train on: a file, directory, glob or hub id; given several times, a mix of them"
    made.add_argument("--data", metavar="DATA", action="append", help=rows)
    made.add_argument("--method", metavar="METHOD", help="training method; default sft")
    made.add_argument("--gpus", type=count, metavar="N", help="GPUs that the other tool used, a factor of the batch")
    made.add_argument("--out", metavar="RUN.yaml", default="run.yaml", help="file to write; default run.yaml")
    made.add_argument("--overwrite", action="store_true", help="replace the file, if there is one")
    return made


def run(words: Sequence[str]) -> int:
    place = words.index("--") if "--" in words else len(words)
    own, arguments = words[:place], list(words[place + 1 :])
    asked = parser().parse_intermixed_args(own)
    from ..config.read_run import is_override

    # argparse gives --from every word that follows it.
    source = [word for word in asked.source or () if not is_override(word)]
    overrides = asked.words + [word for word in asked.source or () if is_override(word)]
    _check(asked, source, overrides, arguments)
    if source and Path(source[0]).suffix in _SCRIPTS:
        return _read_script(source[0])
    data = asked.data or [None]
    several = [("data.mix", f"[{', '.join(map(json.dumps, data))}]")]
    rows = several if len(data) > 1 else [("data.path", data[0])]
    for key, value in (("model.name", asked.model), *rows, ("method", asked.method)):
        overrides += [f"{key}={value}"] if value is not None else []
    if source or arguments:
        return _translate(asked, source, overrides, arguments)
    return _begin(asked, overrides)


def _check(asked: argparse.Namespace, source: list[str], overrides: list[str], arguments: list[str]) -> None:
    from ..config.read_run import is_override

    for word in overrides:
        if not is_override(word):
            fix = f"init --from {word}, or key=value, for example batch.global_size=64"
            raise ConfigError(Problem(key=word, consequence="is no key=value word.", fix=fix))
    scripts = [file for file in source if Path(file).suffix in _SCRIPTS]
    if scripts and (len(source) > 1 or overrides or arguments):
        consequence = "is a script, of which no run.yaml is made: it takes no other words."
        raise ConfigError(Problem(key=scripts[0], consequence=consequence, fix=f"init --from {scripts[0]}"))
    if any(os.path.exists(file) and os.path.exists(asked.out) and os.path.samefile(file, asked.out) for file in source):
        consequence = "is the file that is read, and would be replaced."
        raise ConfigError(Problem(key="--out", value=asked.out, consequence=consequence, fix="--out FILE.yaml"))
    if not scripts:
        _check_free(asked.out, asked.overwrite)


def _check_free(path: str, overwrite: bool) -> None:
    if os.path.lexists(path) and not overwrite:
        fix = "--overwrite replaces it; --out FILE.yaml writes another"
        raise ConfigError(Problem(key="--out", value=path, consequence="is there already.", fix=fix))


def _translate(asked: argparse.Namespace, source: list[str], overrides: list[str], arguments: list[str]) -> int:
    from ..config.commented import commented
    from ..config.translate import TEMPLATE, translate

    made = translate(source, arguments, gpus=asked.gpus, overrides=overrides)
    template = made.settings.get(TEMPLATE)
    if isinstance(template, str) and "{" in template:
        file = Path(asked.out).with_suffix(".chat_template.jinja")
        _check_free(str(file), asked.overwrite)
        write_out(str(file), template)
        made.settings[TEMPLATE] = str(file)
    remarks: dict[str, str] = {}
    for line in made.lines:
        for key in line.outcome.settings:
            said = f"{line.tool}'s default of {line.key}" if line.assumed else line.key
            remarks[key] = f"{remarks[key]}, {said}" if key in remarks else said
    remarks |= {word.partition("=")[0]: "given to init" for word in overrides}
    files = " and ".join(map(os.path.basename, source)) or "arguments"
    head = [f"Made by unsloth-accel init of {files} ({', '.join(made.tools)})."]
    head += [f"Not translated: {_key(line)}: {line.outcome.note}" for line in made.of_kind("named")]
    write_out(asked.out, commented(made.settings, head, remarks))
    print("\n".join(_listing(made, files)))
    print(f"wrote {asked.out}\nnext  unsloth-accel launch {asked.out} --dry-run")
    return 0


def _listing(made: Translation, files: str) -> list[str]:
    translated, all_keys = made.counts
    lines = [f"read {files} ({', '.join(made.tools)}): {translated} of {all_keys} keys translated"]
    titles = (("translated", "written"), ("covered", "nothing to write"), ("named", "not translated"))
    for kind, title in titles:
        found = made.of_kind(kind)  # type: ignore[arg-type]
        lines += [f"{title}:"] if found else []
        lines += [f"  {_key(line)}{_became(line)}" for line in found]
    return lines


def _key(line: Line) -> str:
    from ..errors import shortened
    from ..secret import without_logins

    value = shortened(without_logins(" ".join(str(line.value).split())), 60)
    return f"{line.key} (left out)" if line.assumed else f"{line.key}={value}"


def _became(line: Line) -> str:
    from ..config.commented import as_yaml
    from ..errors import shortened

    made = ", ".join(f"{key}: {shortened(as_yaml(value), 60)}" for key, value in line.outcome.settings.items())
    if made and line.outcome.translated:
        return f" → {made}" + (f" ({line.outcome.note})" if line.outcome.note else "")
    return f": {line.outcome.note}" if line.outcome.note else ""


def _begin(asked: argparse.Namespace, overrides: list[str]) -> int:
    """Write a run.yaml for this machine, with every field's help."""
    from ..config.commented import commented
    from ..config.read_run import from_dict
    from ..config.translate import nested, setting
    from ..hardware.hardware import Hardware

    given = dict(map(setting, overrides))
    raise_errors(
        [
            Problem(key=option, consequence=f"is missing: {what}.", fix=f"{option} {example}, or --from FILE")
            for option, key, what, example in (
                ("--model", "model.name", "which model is fine-tuned", "unsloth/Llama-3.2-1B-Instruct"),
                ("--data", "data.path", "which rows are trained", "data/train.jsonl"),
            )
            if key not in given and not (key == "data.path" and given.get("data.mix"))
        ]
    )
    hardware = Hardware.detect()
    processes = len(hardware.devices) or 2
    settings: dict[str, Any] = {
        "batch.global_size": math.ceil(_ROWS / processes) * processes,
        "training.learning_rate": 2.0e-4,
        "training.num_train_epochs": 1,
        "output_dir": f"runs/{Path(str(given['model.name'])).name}",
        **given,
    }
    said, fits = _planned(from_dict(nested(settings)), hardware)
    if not fits and "model.load_in_4bit" not in given:
        said_in_4bit, fits = _planned(from_dict(nested(settings | {"model.load_in_4bit": True})), hardware)
        if fits:
            settings["model.load_in_4bit"] = True
            said = f"{said_in_4bit}; in 16 bit: {said}"
    write_out(asked.out, commented(settings, [f"Written by unsloth-accel init for this machine: {hardware}."]))
    print(f"machine  {hardware}\nplan     {said}\nwrote {asked.out}\nnext  unsloth-accel launch {asked.out} --dry-run")
    return 0


def _planned(run: RunConfig, hardware: Hardware) -> tuple[str, bool]:
    """Return a run's plan for `hardware` in a sentence, or why there is none, and whether there is one."""
    from ..planning.planner import plan

    try:
        made = plan(run, hardware)
    except ConfigError as error:
        return f"none yet: {error.problems[0]}", False
    return f"{made.strategy}, {counted(made.num_processes, 'process')}, {made.batch}, {made.mixed_precision}", True


def _read_script(file: str) -> int:
    from ..launch.script_lines import describe

    print("\n".join(describe(file)))
    return 0
