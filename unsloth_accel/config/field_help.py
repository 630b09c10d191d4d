"""The help of every field of a run.yaml: the docstring that stands under it, where its section is declared."""

from __future__ import annotations

import ast
import functools
import inspect

from . import rewards_config, run_config


@functools.cache
def field_help() -> dict[str, str]:
    """Return the help text of each field by its dotted key, and of each section by its name, on one line each; fields
    without a text have an empty one."""
    trees = [ast.parse(inspect.getsource(module)) for module in (run_config, rewards_config)]
    classes = {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}
    found: dict[str, str] = {}
    for name, section, text in _fields(classes["RunConfig"]):
        found[name] = text
        if section in classes:
            found[name] = text or " ".join((ast.get_docstring(classes[section]) or "").split())
            found |= {f"{name}.{field}": help_text for field, _, help_text in _fields(classes[section])}
    return found


def _fields(node: ast.ClassDef) -> list[tuple[str, str, str]]:
    """Return name, annotation and help of each field that a class declares."""
    found = []
    for statement, after in zip(node.body, [*node.body[1:], ast.Pass()], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            value = after.value if isinstance(after, ast.Expr) else None
            text = str(value.value) if isinstance(value, ast.Constant) else ""
            found.append((statement.target.id, ast.unparse(statement.annotation), " ".join(text.split())))
    return found
