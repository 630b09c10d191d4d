"""Functions of one's own by import path: `my_rewards:length`, or `folder/my_rewards.py:length`.

A file is looked for in the working directory, and run from where it lies under a name of its own, so that it takes no
other module's place, whatever it is called. Its folder comes last where Python finds modules: what it imports beside
itself doesn't either (as `launch.safe_path` has it for the processes themselves).
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from ..config.rewards_config import FUNCTIONS, RewardFunction
from ..errors import ConfigError, Problem, first_line, nearest
from .reward import Function

_NAME = "unsloth_accel_rewards_of_"


def is_own(name: str) -> bool:
    """Return whether `name` is an import path."""
    return ":" in name


def label(name: str) -> str:
    """Return the name in logs: of a file without its folders and ending, since TRL's names of figures have slashes."""
    module, _, function = name.rpartition(":")
    return f"{Path(module).stem}:{function}" if module.endswith(".py") else name


def labels(names: Iterable[str]) -> list[str]:
    """Return a name in logs for each: `label`, with a number from the second of its kind on, by which TRL keeps their
    figures apart."""
    seen: Counter[str] = Counter()
    found = []
    for one in map(label, names):
        seen[one] += 1
        found.append(one if seen[one] == 1 else f"{one}-{seen[one]}")
    return found


def own_function(asked: RewardFunction) -> Function:
    """Return the function that `asked` means: one that gets the arguments with each call, or what a class is made into
    with them. Raises `ConfigError` where it can't be imported, isn't there, or doesn't take them."""
    module, _, name = asked.name.rpartition(":")
    found = getattr(_imported(module, asked.name), name, None)
    if not callable(found):
        there = {one for one, value in vars(_imported(module, asked.name)).items() if _is_of(value, module)}
        fix = nearest(name, there, f"{module}:") if there else f"write def {name}(completions, **columns) there"
        consequence = f"{'is no function' if found is not None else 'there is no such function'} in {module}."
        raise ConfigError(Problem(key=FUNCTIONS, value=asked.name, consequence=consequence, fix=fix))
    try:
        made: Function = found(**asked.arguments) if isinstance(found, type) else found
    except Exception as error:  # whatever a class of the user's does wrong
        raise _refused(asked, error) from None
    return made if isinstance(found, type) or not asked.arguments else functools.partial(made, **asked.arguments)


def _refused(asked: RewardFunction, error: Exception) -> ConfigError:
    consequence = f"can't be made of its arguments: {type(error).__name__}: {first_line(error)}."
    fix = "correct its arguments, or the class"
    return ConfigError(Problem(key=FUNCTIONS, value=asked.name, consequence=consequence, fix=fix))


def _is_of(value: Any, module: str) -> bool:
    return callable(value) and str(getattr(value, "__module__", "")).removeprefix(_NAME) == Path(module).stem


def _imported(module: str, path: str) -> ModuleType:
    file = Path(module if module.endswith(".py") else f"{module}.py")
    folder = str(file.parent.resolve())
    try:
        if file.is_file():
            return _of_file(file.resolve(), folder)
        _find_last(os.getcwd())
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = not file.is_file() and (error.name == module.partition(".")[0] or module.endswith(".py"))
        consequence = f"there is no {file} in {os.getcwd()}, and no module of this name." if missing else _of(error)
        fix = f"give its path ({file.name} in another folder: folder/{file.name}:…)" if missing else "install it"
        raise ConfigError(Problem(key=FUNCTIONS, value=path, consequence=consequence, fix=fix)) from None
    except Exception as error:  # whatever a file of the user's does wrong
        raise ConfigError(
            Problem(key=FUNCTIONS, value=path, consequence=_of(error), fix=f"correct {_place(error) or file}")
        ) from None


def _of(error: Exception) -> str:
    return f"doesn't import: {type(error).__name__}: {first_line(error)}."


def _place(error: Exception) -> str:
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}" if frame else ""


def _of_file(file: Path, folder: str) -> ModuleType:
    name = f"{_NAME}{file.stem}"
    known = sys.modules.get(name)
    if known is not None and known.__file__ == str(file):
        return known
    _find_last(folder)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _find_last(folder: str) -> None:
    if folder not in sys.path:
        sys.path.append(folder)
