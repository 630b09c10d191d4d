"""The rooms of the package: `ls unsloth_accel` is the drawing, and what has one home stands there only."""

import ast
import configparser
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from conftest import ROOT

from unsloth_accel.artifacts.run_directory import RunDirectory
from unsloth_accel.strategies import STRATEGIES

PACKAGE = ROOT / "unsloth_accel"
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_AT_THE_ROOT = 9
STRATEGIES_HOMES = ("strategies.py", "config/shipped.py", "adapters/fsdp2/", "adapters/fsdp1.py")
"""Where one strategy is spoken of by its name."""


def place(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


def texts(file: Path) -> Iterator[tuple[str, str]]:
    """Where and what: each string of a file's code that is no docstring and no rule's id."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    passed = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            passed.add(node.value)
        for call in getattr(node, "decorator_list", ()):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "rule":
                passed |= {*call.args}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in passed:
            yield f"{place(file)}:{node.lineno}", node.value


def parts_of_paths(file: Path) -> Iterator[tuple[str, str]]:
    """Where and what: each string that is joined to a path, by `/` or as an argument of `Path` or `joinpath`."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        parts: list[ast.expr] = []
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            parts = [node.right]
        elif isinstance(node, ast.Call):
            called = getattr(node.func, "id", getattr(node.func, "attr", ""))
            parts = node.args if called in ("Path", "joinpath") else []
        for part in parts:
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                yield f"{place(file)}:{part.lineno}", part.value


def test_the_root_holds_few_modules() -> None:
    assert len([*PACKAGE.glob("*.py")]) <= MOST_AT_THE_ROOT


def test_no_file_name_occurs_twice() -> None:
    commands = {*PACKAGE.glob("cli/*.py")}  # named as the user types them
    names = Counter(file.name for file in FILES if file not in commands)
    assert [name for name, count in names.items() if count > 1 and not name.startswith("__")] == []


def test_the_layers_name_every_room() -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    contract = parser["importlinter:contract:rooms"]
    named = [name.strip() for line in contract["layers"].split("\n") for name in line.split("|") if name.strip()]
    rooms = {file.parent.name for file in PACKAGE.glob("*/__init__.py")}
    modules = {file.stem for file in PACKAGE.glob("*.py")} - {"__init__", *contract["exhaustive_ignores"].split()}
    assert len(named) == len({*named})
    assert {*named} == rooms | modules


def test_a_runs_file_names_stand_in_one_place() -> None:
    files = RunDirectory("")
    described = [files.planned_yaml, files.accelerate_yaml, files.plan]
    told = [files.results, files.step_log, files.summary, files.report]
    names, folders = {path.name for path in (*described, *told)}, {files.logs.name, files.errors.name}
    found = [
        f"{where} {text}"
        for file in FILES
        if place(file) != "artifacts/run_directory.py"
        for found, wanted in ((texts(file), names), (parts_of_paths(file), folders))
        for where, text in found
        if text in wanted
    ]
    assert found == [], "ask artifacts.run_directory.RunDirectory"


def test_a_strategys_name_stands_in_its_record() -> None:
    """What differs between strategies is in their records; code that compared names would forget the next one."""
    names = STRATEGIES.names
    chosen = tuple(f"distributed.strategy={name}" for name in names)
    found = [
        f"{where} {text}"
        for file in FILES
        if not place(file).startswith(STRATEGIES_HOMES)
        for where, text in texts(file)
        if text in names or any(word in text for word in chosen)
    ]
    assert found == [], "ask the record: strategies.STRATEGIES, usual(n).name"


CHECKOUT = ("accelerate_configs/", "benchmarks/", "docs/", "examples/")
WRITES_THERE = ("__main__.py", "config/field_page.py", "config/shipped.py", "models/locate.py", "rewards/page.py")
"""What writes such files, or speaks of the model that examples/ makes."""


def test_nothing_is_named_to_a_user_that_only_a_checkout_has() -> None:
    """Help and fixes are read beside an installed package, too."""
    found = [
        where
        for file in FILES
        if not place(file).endswith(WRITES_THERE)
        for where, text in texts(file)
        if any(name in text for name in CHECKOUT)
    ]
    assert not found
