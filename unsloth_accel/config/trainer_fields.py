"""The fields of a method's config, such as TRL's SFTConfig, and their types, read without importing it.

Their classes are read as source (`installed_source`), so that a misspelt field is found before any process starts.
"""

from __future__ import annotations

import ast
import functools
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

from .installed_source import annotated, class_body, defaults, literals, source_file

CHECKPOINTING_FIELDS = ("gradient_checkpointing", "activation_checkpointing")
"""Name of the gradient-checkpointing field, and its new name from transformers 5.23 on. The old one stays until 6, and
warns where it is given alone; Unsloth 2026.10.9 reads the old one, the Trainer the new one."""
_SIMPLE: dict[str, Any] = {"bool": bool, "int": int, "float": float, "str": str, "dict": dict, "list": list}


@functools.cache
def training_fields(sources: tuple[str, ...]) -> dict[str, Any]:
    """Name and type of every field that `sources` declare (`Method.config_sources`); the type is None where it is not
    made of simple types.

    Empty where a package that declares them is not installed: then nothing can be said about a name.
    """
    fields: dict[str, Any] = {}
    for source in sources:
        body = class_body(source)
        if not body:
            return {}
        for node in body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                if "ClassVar" not in ast.unparse(node.annotation):
                    fields[node.target.id] = _simple_type(node.annotation)
    return {name: kind for name, kind in fields.items() if not name.startswith("_")}


@functools.cache
def parameter_types(place: str) -> Mapping[str, Any]:
    """Return the type of each parameter of a function (`installed_source.parameters`) that is made of simple types; of
    one without an annotation that of its default."""
    found = {name: _simple_type(kind) for name, kind in annotated(place).items()}
    for name, text in defaults(place).items():
        found.setdefault(name, float if re.fullmatch(r"[\d.e+-]+", text) else None)
    return {name: kind for name, kind in found.items() if kind is not None}


def missing_class(sources: tuple[str, ...]) -> str | None:
    """Return the name of the config class that its installed package doesn't have; None where nothing can be said."""
    place, _, name = sources[-1].partition(":")
    installed = source_file(f"{place.partition('/')[0]}/__init__.py")
    return name if installed and not class_body(sources[-1]) else None


@functools.cache
def field_options(sources: tuple[str, ...], option: str) -> Mapping[str, Any]:
    """Return the `option` (`default`, or `choices`) of every field that `sources` declare with a plain one; a class
    that changes it comes after its base."""
    return {name: value for source in sources for name, value in literals(class_body(source), option)}


def checkpointing_fields(sources: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of `CHECKPOINTING_FIELDS` that the installed config has."""
    known = training_fields(sources)
    return tuple(name for name in CHECKPOINTING_FIELDS if name in known) or CHECKPOINTING_FIELDS[:1]


def _simple_type(node: ast.expr) -> Any:
    """The type that an annotation names, or None if it holds anything but simple types, `|` and Optional."""
    if isinstance(node, ast.Constant) and node.value is None:
        return types.NoneType
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _simple_type(ast.parse(node.value, mode="eval").body)
    if isinstance(node, ast.Name):
        return _SIMPLE.get(node.id)
    if isinstance(node, ast.Subscript):
        outer = ast.unparse(node.value)
        if outer in ("dict", "list"):
            return _SIMPLE[outer]
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        parts = [_simple_type(part) for part in inner]
        if outer.endswith("Optional"):
            parts.append(types.NoneType)
        return _union(parts) if outer.endswith(("Optional", "Union")) else None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _union([_simple_type(node.left), _simple_type(node.right)])
    return None


def _union(parts: list[Any]) -> Any:
    return None if None in parts else functools.reduce(lambda a, b: a | b, parts)


def accepts(kind: Any, value: Any) -> bool:
    """Return whether `value`, as YAML gives it, fits the type `kind` of `training_fields`.

    A whole number fits a float; a bool fits nothing but bool, although Python calls it an int. Strings fit an int or
    float only in `kind`s that allow strings.
    """
    if kind is None:
        return True
    allowed = typing.get_args(kind) or (kind,)
    if isinstance(value, bool):
        return bool in allowed
    if isinstance(value, int) and float in allowed:
        return True
    return isinstance(value, tuple(allowed))


def type_name(kind: Any) -> str:
    """A type of `training_fields` in words: `int or None`."""
    parts = typing.get_args(kind) or (kind,)
    return " or ".join("None" if part is types.NoneType else part.__name__ for part in parts)
