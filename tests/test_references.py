"""What is named in prose is there: modules, functions and keys in docstrings, comments, messages and docs."""

from __future__ import annotations

import ast
import functools
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from unsloth_accel.config.run_config import RunConfig

PACKAGE = ROOT / "unsloth_accel"
TEXTS = [*PACKAGE.rglob("*.py"), *ROOT.glob("benchmarks/*.py"), *ROOT.glob("docs/*.md"), *ROOT.glob("*.md")]
HISTORY = ROOT / "CHANGELOG.md"
"""It tells of what was."""
ROOMS = {path.name for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"}
FILE = re.compile(r"\bunsloth_accel/([a-z_0-9/]+)\.py(?:: `?([A-Za-z_.]+))?")
DOTTED = re.compile(r"[`(](?:unsloth_accel\.)?([a-z_]+(?:\.[A-Za-z_0-9]+)+)[`)]")
FOLDER = re.compile(rf"(?<![\w/.])((?:{'|'.join(sorted(ROOMS))})/[a-z_0-9/]+)(?:\.py)?(?![\w/.*-]|\{{)")


@functools.cache
def names(module: Path) -> set[str]:
    """What a module defines, with `Class.name` for what its classes do."""
    found: set[str] = set()
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        found |= set(_defined(node))
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{one}" for inner in node.body for one in _defined(inner)}
    return found


def _defined(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    yield from (target.id for target in targets if isinstance(target, ast.Name))
    if isinstance(node, ast.ImportFrom | ast.Import):
        yield from ((alias.asname or alias.name) for alias in node.names)
    if isinstance(node, ast.If):  # TYPE_CHECKING
        yield from (name for inner in node.body for name in _defined(inner))


def is_ours(dotted: str) -> bool:
    """Whether `room.module.name`, or a shorter form, names something in the package."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        path = PACKAGE.joinpath(*parts[:length])
        rest = ".".join(parts[length:])
        if path.is_dir() and (not rest or rest in names(path / "__init__.py")):
            return True
        if path.with_suffix(".py").is_file():
            return not rest or rest in names(path.with_suffix(".py"))
    return False


def is_a_key(dotted: str) -> bool:
    """Whether it is a key of a run.yaml; any field of a trainer's config may stand in `training`."""
    kind: Any = RunConfig
    for part in dotted.split("."):
        if not is_dataclass(kind):
            return True  # inside a mapping
        types = {field.name: field.default_factory for field in fields(kind)}
        if part not in types:
            return False
        kind = types[part]
    return True


def prose(file: Path) -> str:
    """The docstrings, the strings under fields, and the comments of a module; the whole of another text."""
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".py":
        return text
    alone = (node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Expr))
    strings = [node.value for node in alone if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return "\n".join([*strings, *(token.string for token in tokens if token.type == tokenize.COMMENT)])


def test_the_texts_were_found() -> None:
    assert len(TEXTS) > 200


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_what_is_named_is_there(file: Path) -> None:
    if file == HISTORY:
        return
    text = prose(file)
    for path, name in FILE.findall(text):
        module = PACKAGE / f"{path}.py"
        assert module.is_file(), f"{path}.py is gone"
        name = name.rstrip(".")
        assert not name or name in names(module), f"{path}.py has no {name}"
    for path in FOLDER.findall(text) if PACKAGE in file.parents else ():
        module = PACKAGE / path
        assert module.is_dir() or module.with_suffix(".py").is_file(), f"{path} is gone"
    for dotted in DOTTED.findall(text):
        room = dotted.partition(".")[0]
        if room in ROOMS and not dotted.endswith((".py", ".yaml", ".json", ".jsonl", ".html", ".md")):
            assert is_ours(dotted) or is_a_key(dotted), f"{dotted} is gone"
