"""Checks of what lies beyond this machine: the Hub and its token, proxies, and reporters of a run's figures.

No secret is printed: of a token only where it comes from and whose it is, of a proxy its address.
"""

from __future__ import annotations

import netrc
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from ..errors import first_line, shortened
from ..models.hub_access import LOGIN, hub_is_off, within
from ..secret import HIDDEN, without_logins
from .machine import Machine
from .result import Result, error, warning

TIME_LIMIT = 3.0
"""Seconds that the Hub has to answer."""
HUB = "https://huggingface.co"
PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")
REPORTERS = ("wandb", "tensorboard", "tensorboardX", "trackio", "mlflow", "comet_ml", "swanlab", "clearml", "neptune")
"""Packages that logging.report_to's words stand for (transformers/integrations/integration_utils.py)."""


def hub(machine: Machine) -> Iterator[Result]:
    """Whether the Hub answers, and whose token it is given."""
    environ = machine.environ
    if hub_is_off():
        yield Result(name="hub", detail="not asked: it is switched off, and only what is in the cache loads")
        return
    address = (environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    place = _without_secrets(address)
    from huggingface_hub import get_token

    token = get_token()
    start = time.monotonic()
    try:
        status, known = within(TIME_LIMIT, lambda: _who_am_i(address, token))
    except Exception as fault:  # its kinds differ by version and transport
        # An impossible header is told with the token in it.
        said = _without_secrets(shortened(first_line(fault).replace(token or HIDDEN, HIDDEN), 120))
        yield warning("hub", f"{place} can't be reached ({type(fault).__name__}: {said}): {_ONLY_CACHE}", _REACH)
        return
    seconds = time.monotonic() - start
    if status >= 500 or status in (403, 407):
        yield warning("hub", f"{place} answers with status {status}: {_ONLY_CACHE}", _REACH)
        return
    yield Result(name="hub", detail=f"{place} answers in {seconds:.1f} s")
    yield _token(environ, token, status, known)


_ONLY_CACHE = "only models and data sets that are in the cache load"
_REACH = (
    "look at the network and its proxy (HTTPS_PROXY), or export HF_ENDPOINT=… of a mirror; without a network export "
    "HF_HUB_OFFLINE=1, so that nothing waits for the Hub"
)


def _token(environ: Mapping[str, str], token: str | None, status: int, known: dict[str, Any]) -> Result:
    if token is None:
        detail = f"none: no gated or private model loads, and nothing can be pushed ({LOGIN})"
        return Result(name="hub token", detail=detail)
    named = next((name for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN") if environ.get(name)), "")
    where = named or "stored by hf auth login"
    if status == 401:
        fix = f"{f'unset {named}, or ' if named else ''}{LOGIN}"
        return error("hub token", f"{where}: the Hub refuses it, and with it public models too", fix)
    role = ((known.get("auth") or {}).get("accessToken") or {}).get("role")
    may = {"read": ", may read only", "write": ", may write"}.get(str(role), "")
    return Result(name="hub token", detail=f"{where}: of {known.get('name') or 'an unknown user'}{may}")


def _who_am_i(address: str, token: str | None) -> tuple[int, dict[str, Any]]:
    """Return the status of the Hub's answer, 401 to who has no token, and what it knows of the token."""
    from huggingface_hub.utils import build_hf_headers, get_session  # type: ignore[attr-defined]

    headers = build_hf_headers(token=token or False)
    answer = get_session().get(f"{address}/api/whoami-v2", headers=headers, timeout=TIME_LIMIT)
    known = answer.json() if answer.status_code == 200 else {}
    return answer.status_code, known if isinstance(known, dict) else {}


def proxy(machine: Machine) -> Iterator[Result]:
    """Proxies that the shell names, which downloads and pushes go through."""
    found = {
        name: value for upper in PROXIES for name in (upper, upper.lower()) if (value := machine.environ.get(name))
    }
    if found:
        yield Result(name="proxy", detail=", ".join(f"{name}={_without_secrets(found[name])}" for name in found))


def reporters(machine: Machine) -> Iterator[Result]:
    """Packages to which a run can report, and whether wandb has a login."""
    found = {name: machine.packages.version(name) for name in REPORTERS}
    told = [f"{name} {version}" for name, version in found.items() if version is not None]
    if not told:
        detail = "none installed, so logging.report_to stays none (pip install tensorboard)"
        yield Result(name="reporters", detail=detail)
        return
    if found["wandb"] is not None:
        login = _wandb_login(machine.environ)
        told[0] += " (logged in)" if login else " (not logged in: wandb login, or WANDB_MODE=offline)"
    yield Result(name="reporters", detail=", ".join(told))


def _wandb_login(environ: Mapping[str, str]) -> bool:
    """Return whether wandb finds a key, or needs none: in its variable, or in ~/.netrc, where `wandb login` puts it."""
    if environ.get("WANDB_API_KEY") or environ.get("WANDB_MODE", "").lower() in ("offline", "disabled", "dryrun"):
        return True
    host = urlsplit(environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname
    try:
        return netrc.netrc(environ.get("NETRC")).authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _without_secrets(text: str) -> str:
    """Return `text` without the names and passwords that an address may hold."""
    return without_logins(text) if "//" in text else re.sub(r"^[^/@\s]+(?=@)", HIDDEN, text)
