"""The time that a chat template may take: it is a program of somebody else's, and may loop for ever."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys

from ..errors import ConfigError, Problem

SECONDS = 10.0
"""Time for one short chat, which takes a thousandth of it."""
_CHAT = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "Yes, it is."}]
_RENDER = """
import json, re, sys
from jinja2.sandbox import ImmutableSandboxedEnvironment

def refuse(words):
    raise ValueError(words)

given = json.load(sys.stdin)
made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
made.filters["tojson"] = lambda value, **how: json.dumps(value)
made.globals |= {"raise_exception": refuse, "strftime_now": str}
text = re.sub(r"{%-?\\s*(end)?generation\\s*-?%}", "", given.pop("template"))
for _ in made.from_string(text).generate(**given):
    pass
"""
"""A process of its own renders, since a loop inside of one operation of Python's can't be interrupted. What it makes of
the template doesn't matter, only that it ends; transformers makes the text."""


def check_template(template: object) -> None:
    """Raise `ConfigError` where a short chat keeps `template`, a chat template's text, busy for `SECONDS`."""
    if isinstance(template, str) and not _ends(template, SECONDS):
        consequence = f"the chat template takes more than {SECONDS:g} s for two short messages: it may loop for ever."
        fix = "another one, training.chat_template_path=FILE.jinja, or look for nested loops over range(…) in it"
        raise ConfigError(Problem(key="training.chat_template_path", consequence=consequence, fix=fix))


@functools.lru_cache(maxsize=8)
def _ends(template: str, seconds: float) -> bool:
    given = json.dumps({"template": template, "messages": _CHAT, "bos_token": "", "eos_token": ""})
    try:
        subprocess.run(
            [sys.executable, "-c", _RENDER],
            input=given.encode(),
            timeout=seconds,
            env={**os.environ, "PYTHONSAFEPATH": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    except OSError:  # no process can be started; who renders it will tell
        return True
    return True
