"""One road from a run's words to a checked run: what is read, and every rule on it, told together.

`launch` and `plan` come this way; `validate` applies the same rules to a file's text, line by line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ..config import read_run
from ..config.run_config import RunConfig
from ..config.written import described
from ..errors import ConfigError, Problem, errors
from ..hardware.hardware import Hardware
from .rules import Context, Document, check_document
from .rules.run_settings import resolved
from .rules.yaml_reader import kind_of


def read(path: str | Path | None, overrides: Sequence[str] = (), *, to_plan: bool = False) -> RunConfig:
    """Return the run that a YAML file and `key=value` overrides describe; `to_plan` does without data and output_dir.

    Raises `ConfigError` where it can't be read, with what the rules find in its settings all the same.
    """
    values = read_run.given(path, overrides)
    if path is not None:
        _must_be_a_run(path, values)
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


def _must_be_a_run(path: str | Path, values: DictConfig) -> None:
    """Raise `ConfigError` where a file is an accelerate config, or another project's, and not a run's description."""
    plain = OmegaConf.to_container(values, resolve=False)
    named = {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}
    kind = kind_of(named)
    if kind in ("run", "unknown"):
        return
    if kind == "accelerate":
        consequence = "is an accelerate config, not a run's description."
        raise ConfigError(
            Problem(
                key=str(path),
                consequence=consequence,
                fix=f"unsloth-accel launch --config_file {path} script.py, or a run.yaml",
            )
        )
    told = check_document(Document(file=str(path), kind=kind, values=named))
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
