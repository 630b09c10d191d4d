"""The Hub asked once, and briefly, whether a model or a data set can be had; and if not, why, in one line."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Literal, TypeVar

from ..errors import Problem, close_match, first_line, shortened
from .known_names import known_names

T = TypeVar("T")
Kind = Literal["model", "dataset"]
HUB_TIMEOUT = 3.0
"""Seconds to wait for an answer of the Hub that can be done without, such as a model's config.json for a plan."""
LOAD_TIMEOUT = 10.0
"""Seconds to wait before something that can't be done without the Hub: those after which huggingface_hub gives up."""
REMEMBERED = 30.0
"""Seconds for which a Hub that was not reached isn't waited for again."""
HUB = "hub"
"""Rule of the problems that are told here: they matter to who loads something."""
LOGIN = "export HF_TOKEN=…, or hf auth login"
_FILES = {"model": "config.json", "dataset": "README.md"}
"""File that is asked for: who may have one may have all."""
_WORDS = {"model": "model", "dataset": "data set"}
_unreached: dict[str, tuple[float, Exception]] = {}
"""Time and error of the last question that had no answer, by the Hub's address."""


def hub_is_off() -> bool:
    """Return whether huggingface_hub was told to ask nobody."""
    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in ("1", "ON", "YES", "TRUE")


def answers(name: str, kind: Kind) -> bool:
    """Return whether the Hub, asked for `name` for `HUB_TIMEOUT` seconds at most, says anything at all."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        _ask(name, kind, None, HUB_TIMEOUT)
    except Exception as error:  # its kinds differ by version and transport
        return isinstance(error, HfHubHTTPError)
    return True


def within(seconds: float, call: Callable[[], T]) -> T:
    """Return or raise what `call` does, or raise `TimeoutError`: huggingface_hub itself retries for much longer."""
    done: Future[T] = Future()

    def work() -> None:
        try:
            done.set_result(call())
        except Exception as error:
            done.set_exception(error)

    threading.Thread(target=work, name="unsloth-accel-hub", daemon=True).start()
    try:
        return done.result(timeout=seconds)
    except FutureTimeout:
        raise TimeoutError(f"no answer from the hub within {seconds:g} s") from None


def refusal(
    name: str, kind: Kind, key: str, *, revision: str | None = None, seconds: float | None = None
) -> Problem | None:
    """Ask the Hub for one file of `name`, which `key` names; return why it can't be had, None where it can.

    It is waited for `seconds`, by default `LOAD_TIMEOUT`.

    An error is what would meet whoever loads it; a warning what may have passed by then.
    """
    try:
        _ask(name, kind, revision, LOAD_TIMEOUT if seconds is None else seconds)
    except Exception as error:  # its kinds differ by version and transport
        return _refused(error, name, kind, key, revision)
    return None


def _ask(name: str, kind: Kind, revision: str | None, seconds: float) -> None:
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    hub = constants.ENDPOINT
    url = hf_hub_url(name, _FILES[kind], repo_type=kind, revision=revision, endpoint=hub)
    asked, error = _unreached.get(hub, (0.0, None))
    if error is not None and time.monotonic() - asked < REMEMBERED:
        raise error
    try:
        within(seconds, lambda: get_hf_file_metadata(url, timeout=seconds))
    except HfHubHTTPError:
        raise
    except Exception as error:
        _unreached[hub] = (time.monotonic(), error)
        raise


def _refused(error: Exception, name: str, kind: Kind, key: str, revision: str | None) -> Problem | None:
    from huggingface_hub import constants, errors, get_token

    near = nearest_known(name) if kind == "model" else None
    what, web = _WORDS[kind], f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    severity: Literal["error", "warning"] = "error"
    if isinstance(error, errors.HFValidationError):
        consequence = f"is no path here, and no name that the Hub takes: {shortened(first_line(error), 200)}."
        fix = f"did you mean {near}?" if near else "correct the name, or give a local path"
    elif isinstance(error, errors.EntryNotFoundError):
        if kind == "dataset":
            return None
        consequence = "has no config.json on the Hub, so it is no model that transformers loads."
        fix = f"the model's own repository (GGUF files are none); of an adapter first: hf download {name}"
    elif isinstance(error, errors.GatedRepoError):
        whose = "your token's owner has no access to it" if get_token() else "no token is given"
        consequence = f"is gated on the Hub, and {whose}."
        fix = f"accept its terms at {web}" + ("" if get_token() else f", then {LOGIN}")
    elif isinstance(error, errors.RevisionNotFoundError):
        consequence, fix = f"has no revision {revision!r} on the Hub.", f"one of those at {web}/tree/main"
    elif isinstance(error, errors.RepositoryNotFoundError) or status == 404:
        unseen = "or it is private and your token may not read it" if get_token() else "or it is private"
        consequence = f"the Hub has no such {what}, {unseen}; and there is no such file or directory here."
        fix = f"did you mean {near}?" if near else f"correct the name; for a private one {LOGIN}"
    elif status == 401:
        consequence, fix = "the Hub refuses your token.", LOGIN
    elif status == 403:
        consequence = f"the Hub refuses access to it: {shortened(first_line(error), 200)}."
        fix = f"ask for access at {web}, or a token that may read it"
    elif status is not None:
        severity, fix = "warning", "try again later"
        consequence = f"the Hub answers with {status} now, so it may not be loaded."
    else:
        consequence = f"is not in the cache, and the Hub can't be reached ({_told(error)})."
        fix = f"did you mean {near}? otherwise " if near else ""
        fix += f"look at the network (HTTPS_PROXY, HF_ENDPOINT); or where there is one, {fetching(name, kind)}, "
        fix += "and copy the cache; or give a local path"
    return Problem(key=key, value=name, consequence=consequence, fix=fix, severity=severity, rule=HUB)


def _told(error: Exception) -> str:
    return shortened(f"{type(error).__name__}: {first_line(error)}", 200)


def fetching(name: str, kind: Kind = "model") -> str:
    """Return the command that brings all of `name` into the cache."""
    return f"hf download {name}" + (" --repo-type dataset" if kind == "dataset" else "")


def nearest_known(name: str) -> str | None:
    """Return a model's hub id that differs from `name` by a few letters, of those that the library or Unsloth knows."""
    known = {one.lower(): one for one in known_names()}
    found = close_match(name.lower(), known, 0.85)
    return known[found] if found and found != name.lower() else None
