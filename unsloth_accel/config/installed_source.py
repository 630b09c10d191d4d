"""What installed packages say in their source: words of an enum, keys of a table, parameters of a function.

Importing transformers or TRL takes seconds, starts torch and must not happen before `import unsloth`; parsing one of
their files with `ast` takes milliseconds. A place is `package/file.py`; what can't be found there is empty, and then
nothing can be said about a word.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def source_file(place: str) -> Path | None:
    """Return the path of `package/file.py`, or `module.py`, where Python would find it."""
    package, _, file = place.partition("/")
    spec = importlib.util.find_spec(package.removesuffix(".py"))
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / file if file else Path(spec.origin)
    return path if path.is_file() else None


@functools.cache
def source_text(place: str) -> str:
    """Return the text of a source file; empty where there is none."""
    path = source_file(place)
    return path.read_text(encoding="utf-8") if path else ""


@functools.cache
def _tree(place: str) -> ast.Module:
    return ast.parse(source_text(place))


def class_body(place: str) -> list[ast.stmt]:
    """Return the statements of the class `package/file.py:Class`."""
    file, _, name = place.partition(":")
    return next((node.body for node in _tree(file).body if isinstance(node, ast.ClassDef) and node.name == name), [])


@functools.cache
def enum_words(place: str) -> Mapping[str, str]:
    """Return the words of the enum `package/file.py:Class` by the names of its members."""
    return {
        target.id: node.value.value
        for node in class_body(place)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


@functools.cache
def table(place: str) -> Mapping[str, str]:
    """Return the dictionary `package/file.py:NAME` as source text: its keys (those that are text without quotes), and
    its values."""
    file, _, name = place.partition(":")
    for node in _tree(file).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and target.id == name and isinstance(value, ast.Dict):
            return {_text(key): ast.unparse(one) for key, one in zip(value.keys, value.values, strict=True) if key}
    return {}


def _text(node: ast.expr) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ast.unparse(node)


def _arguments(place: str) -> ast.arguments | None:
    """Return the arguments of the function `package/file.py:function`, or of the method `package/file.py:Class.method`
    without its self."""
    file, _, name = place.partition(":")
    owner, _, method = name.rpartition(".")
    body = class_body(f"{file}:{owner}") if owner else _tree(file).body
    found = (node.args for node in body if isinstance(node, ast.FunctionDef) and node.name == method)
    return next(found, None)


@functools.cache
def parameters(place: str) -> Mapping[str, bool]:
    """Return the parameters of a function (`_arguments`), and of each whether it must be given; `**` for a function
    that takes any."""
    if (args := _arguments(place)) is None:
        return {}
    names = [one.arg for one in (*args.posonlyargs, *args.args)]
    without = len(names) - len(args.defaults)
    found = {one: place < without for place, one in enumerate(names)}
    pairs = zip(args.kwonlyargs, args.kw_defaults, strict=True)
    found |= {one.arg: default is None for one, default in pairs}
    found.pop("self", None)
    return found | ({"**": False} if args.kwarg else {})


@functools.cache
def annotated(place: str) -> Mapping[str, ast.expr]:
    """Return the annotations of a function's parameters (`_arguments`), of those that have one."""
    args = _arguments(place)
    listed = (*args.posonlyargs, *args.args, *args.kwonlyargs) if args else ()
    return {one.arg: one.annotation for one in listed if one.annotation}


@functools.cache
def defaults(place: str) -> Mapping[str, str]:
    """Return the defaults of a function (`_arguments`) as source text, by parameter."""
    if (args := _arguments(place)) is None:
        return {}
    given = args.args[len(args.args) - len(args.defaults) :]
    return {one.arg: ast.unparse(value) for one, value in zip(given, args.defaults, strict=True)}


@functools.cache
def popped(place: str) -> tuple[str, ...]:
    """Return the names that a class's `__init__` takes out of its `**kwargs`; the class is `package/file.py:Class`."""
    calls = [one for node in class_body(place) if getattr(node, "name", "") == "__init__" for one in ast.walk(node)]
    return tuple(
        node.args[0].value
        for node in calls
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "kwargs.pop" and node.args
        if isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str)
    )


@functools.cache
def compared_words(place: str, name: str) -> tuple[str, ...]:
    """Return the words that `name`, a variable or an attribute, is compared with (`==`, `in`, or their opposites) in
    `package/file.py`, or in one of its functions or classes, `package/file.py:Name`."""
    file, _, owner = place.partition(":")
    others = [
        node.comparators[0]
        for part in _tree(file).body
        if not owner or getattr(part, "name", "") == owner
        for node in ast.walk(part)
        if isinstance(node, ast.Compare)
        and isinstance(node.ops[0], ast.Eq | ast.NotEq | ast.In | ast.NotIn)
        and isinstance(node.left, ast.Name | ast.Attribute)
        and (node.left.id if isinstance(node.left, ast.Name) else node.left.attr) == name
    ]
    words = [word for one in others for word in getattr(one, "elts", [one])]
    return tuple({word.value: 1 for word in words if isinstance(word, ast.Constant) and isinstance(word.value, str)})


@functools.cache
def said_in(place: str, beside: str) -> frozenset[str]:
    """Return the words that stand in quotes in the function `package/file.py:function`; none where it has no attribute
    `beside`, to which they would belong."""
    file, _, name = place.partition(":")
    nodes = [node for part in _tree(file).body if getattr(part, "name", "") == name for node in ast.walk(part)]
    if not any(isinstance(node, ast.Attribute) and node.attr == beside for node in nodes):
        return frozenset()
    return frozenset(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))


def literals(body: list[ast.stmt], option: str) -> Iterator[tuple[str, Any]]:
    """Yield the name and the value of `option` (`default`, or one of the metadata, such as `choices`) of every
    dataclass field in a class's `body` that gives a plain one."""
    for node in body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name) or node.value is None:
            continue
        given: dict[str | None, ast.expr] = {"default": node.value}
        if isinstance(node.value, ast.Call):
            given = {one.arg: one.value for one in node.value.keywords}
            if isinstance(metadata := given.get("metadata"), ast.Dict):
                keys = (ast.literal_eval(key) if isinstance(key, ast.Constant) else None for key in metadata.keys)
                given |= dict(zip(keys, metadata.values, strict=True))
        try:
            if option in given:
                yield node.target.id, ast.literal_eval(given[option])
        except ValueError:  # made by code
            continue
