"""Keys that say how chats become text: the chat template, its arguments, the marks of its answers, and added tokens."""

from __future__ import annotations

import ast
import functools
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ..errors import Problem, close_match
from .installed_source import source_text
from .row_formats import DECIDED

PLACE, TABLE = "unsloth/chat_templates.py", "CHAT_TEMPLATES"
"""Table of the templates that Unsloth knows by name."""
MARKERS = ("data.instruction_marker", "data.response_marker")
_KEYS = ("model.chat_template", "model.added_tokens", "data.chat_template_kwargs", *MARKERS)
_FILES = (".jinja", ".jinja2", ".j2", ".txt")


@functools.cache
def template_names() -> tuple[str, ...]:
    """Return the names that the installed Unsloth's `get_chat_template` knows, read from its source; empty where there
    is none."""
    found: list[str] = []
    lists: dict[str, list[str]] = {}
    for node in ast.walk(ast.parse(source_text(PLACE))):
        if isinstance(node, ast.For) and isinstance(node.target, ast.Name) and isinstance(node.iter, ast.Tuple):
            lists[node.target.id] = [str(one.value) for one in node.iter.elts if isinstance(one, ast.Constant)]
        for target in node.targets if isinstance(node, ast.Assign) else ():
            if not isinstance(target, ast.Subscript) or getattr(target.value, "id", "") != TABLE:
                continue
            key = target.slice
            found += [str(key.value)] if isinstance(key, ast.Constant) else lists.get(getattr(key, "id", ""), [])
    return tuple(dict.fromkeys(found))


def is_template_name(value: str) -> bool:
    """Return whether `value` of model.chat_template is a name; otherwise it is a file. Without an installed Unsloth any
    word may be one."""
    return os.sep not in value and not value.endswith(_FILES) and value in (template_names() or (value,))


def template_problems(tree: DictConfig) -> Iterator[Problem]:
    """Yield what is wrong with these keys' own values, whatever the model; `tree` is a run's."""
    found = {key: OmegaConf.select(tree, key) for key in _KEYS}
    values: dict[str, Any] = {
        key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value for key, value in found.items()
    }

    def wrong(key: str, consequence: str, fix: str) -> Problem:
        return Problem(key=key, value=values[key], consequence=consequence, fix=fix, rule="run-value")

    template = values["model.chat_template"]
    if template is not None and not os.path.isfile(os.path.expanduser(template)) and not is_template_name(template):
        consequence = "is neither a file nor a name that Unsloth has a template by."
        near = close_match(template, template_names())
        fix = f"did you mean {near}?" if near else "name a .jinja file, or a template such as chatml or llama-3.1"
        yield wrong("model.chat_template", consequence, fix)
    instruction, response = (values[key] for key in MARKERS)
    for key, other in (MARKERS, MARKERS[::-1]):
        if values[key] is not None and values[other] is None:
            yield wrong(key, f"says half of where an answer is without {other}.", f"give {other} too, or neither")
        elif values[key] is not None and not values[key].strip():
            yield wrong(key, "is no text that could be found.", "give what stands before such a message")
        elif values[key] is not None and "\\n" in values[key]:
            consequence = "holds a backslash and an n, which is no end of line."
            yield wrong(key, consequence, 'in double quotes, which YAML reads as an end of line: "…\\n"')
    if instruction is not None and response and instruction.strip().startswith(response.strip()):
        consequence = "is the instruction_marker, too, or its beginning: nothing tells answers from questions."
        yield wrong(MARKERS[1], consequence, "another text")
    taken = [name for name in values["data.chat_template_kwargs"] if name in DECIDED]
    if "chat_template" in values["data.chat_template_kwargs"]:
        consequence = "names 'chat_template': rows would be made by a template that the saved tokenizer hasn't."
        yield wrong("data.chat_template_kwargs", consequence, "model.chat_template=FILE.jinja, and leave it out here")
    elif taken:
        yield wrong("data.chat_template_kwargs", f"names {taken[0]!r}, which is decided for all rows.", "leave it out")
    tokens = values["model.added_tokens"]
    if any(not token.strip() for token in tokens):
        yield wrong("model.added_tokens", "names a token without text.", "leave it out, or name it")
    elif twice := [token for token, count in Counter(tokens).items() if count > 1]:
        yield wrong("model.added_tokens", f"names {twice[0]!r} twice.", "name each token once")
