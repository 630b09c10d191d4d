"""Secrets in a run's description, such as a token for the Hub: used, and never shown or written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

HIDDEN = "(not shown)"
"""Text in the place of a secret."""
_NAMES = re.compile(r"token|(.*_)?((hub|hf|auth|access|api)_token|api_key|access_key|password|secret|secret_key)")
"""Keys of secrets; `eos_token` and its like are none."""


_LONG = 8
"""Characters from which on a secret is looked for inside other texts."""


class Secret(str):
    """Text that stays in this process: its repr is `HIDDEN`, its pickle (the Trainer's training_args.bin) None."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(HIDDEN)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: Any) -> Secret:
        return self


def is_secret(key: str) -> bool:
    """Return whether the value of a dotted key is a secret."""
    return _NAMES.fullmatch(key.rpartition(".")[2].lower()) is not None


def names_a_variable(text: str) -> bool:
    """Return whether a text is empty, or refers to a variable, without a default that could be the secret."""
    return re.fullmatch(r"(\$\{\s*oc\.env:\s*\w+\s*(,\s*null\s*)?\})?", text) is not None


def marked(values: Any) -> Any:
    """Return `values`, nested as YAML gives them, with each secret as a `Secret`, and each text that holds one."""
    values = _parsed(values)
    texts = set(secrets_in(values))
    long = [text for text in texts if len(text) >= _LONG]

    def mark(value: Any) -> Any:
        return Secret(value) if isinstance(value, str) and (value in texts or any(map(value.count, long))) else value

    return _mapped(values, mark)


def secrets_in(values: Any, key: str = "") -> Iterator[str]:
    """Yield the texts of all secrets in nested `values`, which stand below `key`."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield from secrets_in(value, str(name))
    elif isinstance(values, list):
        for value in values:
            yield from secrets_in(value, key)
    elif isinstance(values, Secret) or (isinstance(values, str) and is_secret(key) and not names_a_variable(values)):
        yield str(values)


def shown(values: Any, key: str = "") -> Any:
    """Return nested `values`, which stand below `key`, with `HIDDEN` in the place of each secret."""
    values = _parsed(values)
    if isinstance(values, Mapping):
        return {name: shown(value, str(name)) for name, value in values.items()}
    if isinstance(values, list):
        return [shown(value, key) for value in values]
    return HIDDEN if values in (*secrets_in(values, key),) else values


def shown_word(word: str) -> str:
    """Return a `key=value` word of a command line, without the value where that is a secret."""
    key, equals, value = word.partition("=")
    return f"{key}={HIDDEN}" if equals and is_secret(key) and not names_a_variable(value) else word


def without_logins(text: str) -> str:
    """Return `text` without the names and passwords that the addresses in it may hold."""
    return re.sub(r"(?<=//)[^/@\s]+(?=@)", HIDDEN, text)


def plain(values: Any) -> Any:
    """Return nested `values` with each `Secret` as the text that it is."""
    return _mapped(values, lambda value: str(value) if isinstance(value, Secret) else value)


def _mapped(values: Any, change: Callable[[Any], Any]) -> Any:
    """Return nested `values` with what `change` makes of each that is neither a mapping nor a list."""
    if isinstance(values, Mapping):
        return {key: _mapped(value, change) for key, value in values.items()}
    return [_mapped(value, change) for value in values] if isinstance(values, list) else change(values)


def _parsed(values: Any) -> Any:
    """Return `values` with mappings in place of their JSON, which the Trainer reads too, where they hold a secret."""
    if isinstance(values, Mapping):
        return {key: _parsed(value) for key, value in values.items()}
    if isinstance(values, str) and values.lstrip().startswith("{"):
        try:
            found = json.loads(values)
            return found if any(secrets_in(found)) else values
        except (ValueError, RecursionError):
            return values
    return values
