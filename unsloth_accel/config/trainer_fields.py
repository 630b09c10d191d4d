"""The fields of TRL's SFTConfig and their types, read from the installed source without importing it.

Importing TRL takes seconds, starts torch and must not happen before `import unsloth`. Reading the class bodies with
`ast` takes milliseconds, so a misspelt training field is found before any process starts.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import types
import typing
from pathlib import Path
from typing import Any

# The classes whose bodies make up an SFTConfig, base first: (package, file inside it, class).
_SOURCES = (
    ("transformers", "training_args.py", "TrainingArguments"),
    ("trl", "trainer/base_config.py", "_BaseConfig"),
    ("trl", "trainer/sft_config.py", "SFTConfig"),
)
_SIMPLE: dict[str, Any] = {"bool": bool, "int": int, "float": float, "str": str, "dict": dict, "list": list}


@functools.cache
def training_fields() -> dict[str, Any]:
    """Name and type of every SFTConfig field; the type is None where it is not made of simple types.

    Empty when TRL or transformers is not installed: then nothing can be said about a name.
    """
    fields: dict[str, Any] = {}
    for package, file, class_name in _SOURCES:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            return {}
        path = Path(next(iter(spec.submodule_search_locations)), file)
        if not path.is_file():
            return {}
        tree = ast.parse(path.read_text(encoding="utf-8"))
        body = next((node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name), [])
        for node in body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                if "ClassVar" not in ast.unparse(node.annotation):
                    fields[node.target.id] = _simple_type(node.annotation)
    return {name: kind for name, kind in fields.items() if not name.startswith("_")}


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
    """Whether `value`, as YAML gives it, fits the type `kind` of `training_fields`.

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
