"""The time that a chat template may take: it is a program of somebody else's, and may loop for ever."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
from typing import Any

from ..errors import ConfigError, Problem, first_line

SECONDS = 10.0
"""Processor's time for one short chat, which takes a thousandth of it."""
_PATIENCE = 120.0
"""Seconds after which a process that can't say anything is let be."""
_GENERATION = re.compile(r"{%-?\s*(end)?generation\s*-?%}")
"""Marks of an answer that transformers' own extension of Jinja knows (utils/chat_template_utils.py)."""
_CHAT = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "Yes, it is."}]
_RENDER = """
import json, signal, sys
from jinja2.sandbox import ImmutableSandboxedEnvironment

def refuse(words):
    raise ValueError(words)

given = json.load(sys.stdin)
made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
made.filters["tojson"] = lambda value, **how: json.dumps(value)
made.globals |= {"raise_exception": refuse, "strftime_now": str}
text = given.pop("template")
signal.setitimer(signal.ITIMER_PROF, given.pop("seconds"))
for _ in made.from_string(text).generate(**given):
    pass
"""
"""A process of its own renders, since a loop inside of one operation of Python's can't be interrupted. What it makes of
the template doesn't matter, only that it ends; transformers makes the text. The clock is that of its own processor's
time, and starts behind its imports: a busy machine or a slow disk refuses no template."""


def check_template(template: object) -> None:
    """Raise `ConfigError` where a short chat keeps `template`, a chat template's text, busy for `SECONDS`."""
    if isinstance(template, str) and not _ends(template, SECONDS):
        consequence = f"the chat template takes more than {SECONDS:g} s for two short messages: it may loop for ever."
        fix = "another one, model.chat_template=FILE.jinja, or look for nested loops over range(…) in it"
        raise ConfigError(Problem(key="model.chat_template", consequence=consequence, fix=fix))


def syntax_fault(template: str) -> str | None:
    """Return what Jinja can't read or doesn't know of `template`, a chat template's text, with the line; None where it
    is sound, or jinja2 is not installed."""
    try:
        from jinja2 import Environment, TemplateSyntaxError, nodes
    except ImportError:
        return None
    made = Environment(extensions=["jinja2.ext.loopcontrols"])
    try:
        tree = made.parse(_GENERATION.sub("", template))
    except TemplateSyntaxError as error:
        return f"line {error.lineno}, {first_line(error).rstrip('.')}"
    except RecursionError:
        return "nested too deeply"
    kinds: tuple[tuple[Any, str, Any], ...] = ((nodes.Filter, "filter", made.filters), (nodes.Test, "test", made.tests))
    for kind, word, known in kinds:  # not by compiling it, which computes what is constant
        for node in tree.find_all(kind):
            if node.name not in known:
                return f"line {node.lineno}, no {word} named {node.name!r}"
    return None


@functools.lru_cache(maxsize=8)
def _ends(template: str, seconds: float) -> bool:
    text = _GENERATION.sub("", template)
    given = json.dumps({"template": text, "messages": _CHAT, "bos_token": "", "eos_token": "", "seconds": seconds})
    try:
        ended = subprocess.run(
            [sys.executable, "-c", _RENDER],
            input=given.encode(),
            timeout=_PATIENCE,
            env={**os.environ, "PYTHONSAFEPATH": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
    except (subprocess.TimeoutExpired, OSError):  # no process can be started; who renders it will tell
        return True
    return ended.returncode != -signal.SIGPROF
