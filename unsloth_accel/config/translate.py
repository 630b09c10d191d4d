"""Translation of other tools' files into a run: every key of theirs is translated, or named with the reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..errors import ConfigError, Problem, close_match
from ..secret import shown
from .foreign import TOOLS, recognise
from .foreign.keys import Becomes, Outcome, Theirs, Tool
from .foreign.trl import TRL
from .read_run import _read_yaml, from_dict

TEMPLATE = "model.chat_template"
"""The one setting whose value, a template's text in a file of TRL's, is written to a file of its own."""
_STAYS = ("method", "model.name", "data.path", "output_dir", TEMPLATE)
"""Settings that stay although they are wrong as they are: without them there is no run, and launch says what is."""
_OF_A_DATA_SET = (
    *("data.path", "data.mix", "data.stopping_strategy", "data.split", "data.subset", "data.format", "data.columns"),
    *("data.eval_path", "data.eval_split"),
)
_PRECISION = ("training.bf16", "training.fp16")
Kind = Literal["translated", "covered", "named"]


@dataclass(frozen=True, kw_only=True)
class Line:
    """What became of one key."""

    tool: str
    key: str
    value: Any
    outcome: Outcome
    assumed: bool = False
    """Whether the file leaves the key out, and this is what the tool takes then."""

    @property
    def kind(self) -> Kind:
        """`translated` with settings, `covered` without, `named` if it could not be translated."""
        if not self.outcome.translated:
            return "named"
        return "translated" if self.outcome.settings else "covered"


@dataclass(kw_only=True)
class Translation:
    """A run made of other tools' files."""

    tools: list[str]
    lines: list[Line]
    settings: dict[str, Any] = field(default_factory=dict)
    """Values for run.yaml by dotted key."""

    def of_kind(self, kind: Kind) -> list[Line]:
        return [line for line in self.lines if line.kind == kind]

    @property
    def counts(self) -> tuple[int, int]:
        """Number of the files' keys that were translated or need no counterpart, and of all; blank ones not counted."""
        own = [line for line in self.lines if not line.assumed]
        return sum(line.kind != "named" for line in own), len(own)


def translate(
    paths: Sequence[str | Path], words: Sequence[str] = (), *, gpus: int | None = None, overrides: Sequence[str] = ()
) -> Translation:
    """Translate files of known tools, and `words`, the arguments of a training script, into one run.

    `gpus` is the number of GPUs that they were run on; an accelerate config among them says it, too. `overrides` are
    `key=value` words that settle what could not be translated. Raises `ConfigError` for a file that can't be read or
    is no known tool's, for two descriptions of a training, and where no model or no data is named.
    """
    read = [(path, *_read(path)) for path in paths]
    arguments = _arguments(words)
    trainings = [entry for entry in read if entry[1].trains]
    if len(trainings) > 1:
        consequence = f"describes a training, as {trainings[0][0]} does; one run is made."
        fix = "give one of them, and an accelerate config beside it"
        raise ConfigError(Problem(key=str(trainings[1][0]), consequence=consequence, fix=fix))
    launches = [entry for entry in read if not entry[1].trains]
    for _, _, values in launches:
        count = values.get("num_processes")
        gpus = gpus or (count if isinstance(count, int) and not isinstance(count, bool) and count > 0 else None)
    path, tool, values = trainings[0] if trainings else (Path(), TRL, {})
    made = Translation(tools=[], lines=[])
    if values or arguments:
        _add(made, tool, values | arguments, gpus, Path(path).parent)
    for path, tool, values in launches:
        _add(made, tool, values, gpus, Path(path).parent)
    _settle(made, overrides, Path(paths[0]).stem if paths else "run")
    return made


def _read(path: str | Path) -> tuple[Tool, dict[str, Any]]:
    values = OmegaConf.to_container(_read_yaml(Path(path)))
    assert isinstance(values, dict)
    tool = recognise(values)
    if tool is None:
        known = ", ".join(tool.name for tool in TOOLS)
        consequence = f"is no file of a known tool ({known}): its keys are {', '.join(map(str, [*values][:8]))}."
        fix = "unsloth-accel init --model MODEL --data DATA writes a run.yaml to fill in"
        if {"model", "data"} & {*values}:
            consequence, fix = "is a run.yaml already.", f"unsloth-accel launch {path} --dry-run"
        raise ConfigError(Problem(key=str(path), consequence=consequence, fix=fix))
    return tool, {str(key): value for key, value in values.items()}


def _arguments(words: Sequence[str]) -> dict[str, Any]:
    """Return a script's arguments, `--key value`, `--key=value` or `--key`, as a file's keys and values."""
    found: dict[str, list[str]] = {}
    names: list[str] = []
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            names.append(name.replace("-", "_"))
            found[names[-1]] = [value] if equals else []
        elif names:
            found[names[-1]].append(word)
        elif not word.endswith(".py"):
            consequence = "is no argument of a training script."
            fix = "behind --, write its arguments: -- --learning_rate 2e-4 --use_peft"
            raise ConfigError(Problem(key=word, consequence=consequence, fix=fix))
    return {name: [*map(_value, values)] if len(values) > 1 else _value(*values) for name, values in found.items()}


def setting(override: str) -> tuple[str, Any]:
    """Return the dotted key and the value of a `key=value` word."""
    key, _, text = override.partition("=")
    return key, _value(text)


def _value(text: str = "true") -> Any:
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]
    except (OmegaConfBaseException, ValueError):
        return text


def _add(made: Translation, tool: Tool, values: Mapping[str, Any], gpus: int | None, place: Path) -> None:
    """Add what becomes of a tool's keys; what is set already stays."""
    made.tools.append(tool.name)
    given = {key: value for key, value in values.items() if value not in (None, "", [], {})}
    theirs = Theirs(values={**tool.defaults, **given}, gpus=gpus, place=place, method=tool.method(given))
    lines = [_line(tool, key, value, theirs) for key, value in given.items()]
    before = {*made.settings}
    if before & {*_PRECISION}:
        before |= {*_PRECISION}
    for line in lines:
        made.settings |= {key: value for key, value in line.outcome.settings.items() if key not in before}
    said = {key for line in lines for key in line.outcome.settings}
    for key in tool.defaults:
        if key in given:
            continue
        line = _line(tool, key, tool.defaults[key], theirs, assumed=True)
        new = {name: value for name, value in line.outcome.settings.items() if name not in said | before}
        if new or not line.outcome.settings:
            made.settings |= new
            lines.append(line)
    made.lines += lines


def _line(tool: Tool, key: str, value: Any, theirs: Theirs, assumed: bool = False) -> Line:
    entry = tool.entry(key)
    fields = theirs.fields if tool.fields else {}
    if entry is None and key in fields:
        entry = Becomes(f"training.{key}")
    if entry is not None:
        try:
            outcome = entry.read(value, theirs)
        except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError):
            # Anything can stand in a file of another tool's, whose own checks are not repeated here.
            outcome = Outcome(note=f"has a value that {tool.name} doesn't take either: correct it.", translated=False)
    else:
        near = close_match(key, {*tool.keys, *fields}, 0.9)
        hint = f"did you mean {near}?" if near else "what it asks for is not done: look up what it is."
        outcome = Outcome(note=f"is no key of {tool.name} that is known here; {hint}", translated=False)
    return Line(tool=tool.name, key=key, value=shown(value, key), outcome=outcome, assumed=assumed)


def _settle(made: Translation, overrides: Sequence[str], stem: str) -> None:
    """Apply `overrides`, name what is missing, and take back, with the reason, what this run may not say."""
    given = dict(map(setting, overrides))
    rows = given.get("data.path") or given.get("data.mix")
    if rows and rows not in (made.settings.get("data.path"), made.settings.get("data.mix")):
        _forget_data_set(made, given)
    made.settings |= given
    for place, line in enumerate(made.lines):
        settings = {key: given.get(key, value) for key, value in line.outcome.settings.items()}
        if line.outcome.translated and settings != line.outcome.settings:
            made.lines[place] = replace(line, outcome=Outcome(settings, "given to init"))
    made.settings.setdefault("output_dir", f"runs/{stem}")
    missing = [
        Problem(key=key, consequence=f"is missing: {what}.", fix=f"init {option} …, or {key}=…")
        for key, what, option in (
            ("model.name", "the files name no model", "--model"),
            ("data.path", "the files name no rows to train on", "--data"),
        )
        if key not in made.settings and not (key == "data.path" and "data.mix" in made.settings)
    ]
    if missing:
        raise ConfigError(missing)
    while found := [*_refused(made.settings)]:
        for problem in found:
            made.settings.pop(problem.key, None)
            reason = f"{problem.consequence} Fix: {problem.fix}"
            for place, line in enumerate(made.lines):
                if problem.key in line.outcome.settings:
                    rest = {key: value for key, value in line.outcome.settings.items() if key != problem.key}
                    made.lines[place] = replace(line, outcome=Outcome(rest, reason, translated=False))


def _forget_data_set(made: Translation, given: Mapping[str, Any]) -> None:
    """Take back what was said of the data set in whose place `given` names another: form, part and held-out rows."""
    gone = {key for key in _OF_A_DATA_SET if key in made.settings and key not in given}
    if made.settings.get("data.eval_path") != made.settings.get("data.path") or "data.path" not in made.settings:
        gone -= {"data.eval_path", "data.eval_split"}  # another data set, that a key of its own names
    for key in gone:
        del made.settings[key]
    for place, line in enumerate(made.lines):
        rest = {key: value for key, value in line.outcome.settings.items() if key not in gone}
        if len(rest) < len(line.outcome.settings):
            instead = given.get("data.path") or "a mix"
            reason = f"is of the rows in whose place {instead} is given: set data.eval_path."
            outcome = replace(line.outcome, settings=rest) if rest else Outcome(note=reason, translated=False)
            made.lines[place] = replace(line, outcome=outcome)


def _refused(settings: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield the problems of the run that `settings` describe, without those that stay (`_STAYS`)."""
    try:
        from_dict(nested({key: value for key, value in settings.items() if key != TEMPLATE}))
    except ConfigError as error:
        yield from (problem for problem in error.problems if problem.key not in _STAYS and problem.key in settings)


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by dotted key as the sections of a run.yaml; those that are None are left out."""
    made: dict[str, Any] = {}
    for key, value in settings.items():
        if value is not None:
            section, _, name = key.partition(".")
            (made.setdefault(section, {}) if name else made)[name or section] = value
    return made
