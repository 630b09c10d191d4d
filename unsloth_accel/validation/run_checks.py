"""One road from a run's words to a checked run: what is read, and every rule on it, told together.

`launch` and `plan` come this way; `validate` applies the same rules to a file's text, line by line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..config import read_run
from ..config.run_config import RunConfig
from ..config.written import described
from ..errors import ConfigError, Problem, errors
from ..hardware.hardware import Hardware
from .rules import Context, Document, check_document, read_document
from .rules.run_settings import resolved


def read(path: str | Path | None, overrides: Sequence[str] = (), *, to_plan: bool = False) -> RunConfig:
    """Return the run that a YAML file and `key=value` overrides describe; `to_plan` does without data and output_dir.

    Raises `ConfigError` where it can't be read, with what the rules find in its settings all the same.
    """
    values = read_run.given(path, overrides)
    if path is not None:
        _must_be_a_run(path)
    try:
        return read_run.from_dict(values, to_plan=to_plan)
    except ConfigError as error:
        told = {problem.key for problem in error.problems}
        found = [problem for problem in errors(_found(resolved(values))) if problem.key not in told]
        raise ConfigError([*error.problems, *found]) from None


def setting_problems(run: RunConfig, hardware: Hardware | None = None) -> list[Problem]:
    """Return what the rules find in the settings that the processes of `run` would have, on `hardware` if known."""
    return _found(described(run), hardware)


def _found(values: dict[str, Any], hardware: Hardware | None = None) -> list[Problem]:
    return [*check_document(Document(file="", kind="run", values=values, context=Context(hardware=hardware)))]


def _must_be_a_run(path: str | Path) -> None:
    """Raise `ConfigError` where a file is an accelerate config, or another project's, and not a run's description."""
    document = read_document(path)
    if document.kind in ("run", "unknown"):
        return
    if document.kind == "accelerate":
        consequence = "is an accelerate config, not a run's description."
        fix = f"unsloth-accel launch --config_file {path} script.py, or a run.yaml"
        raise ConfigError(Problem(key=str(path), consequence=consequence, fix=fix))
    told = check_document(document)
    raise ConfigError([Problem(key=str(path), consequence=one.consequence, fix=one.fix) for one in told])


@contextmanager
def told_with(problems: Sequence[Problem]) -> Iterator[None]:
    """Tell errors among `problems` together with what the block refuses, each key once."""
    try:
        yield
    except ConfigError as error:
        found = errors(problems)
        told = {problem.key for problem in found}
        raise ConfigError([*(one for one in error.problems if one.key not in told), *found]) from None
