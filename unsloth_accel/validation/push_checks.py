"""What would keep a run from being pushed to the Hub, found before it trains."""

from __future__ import annotations

import re
from typing import Any

from ..config.push_target import STRATEGIES, PushTarget
from ..config.run_config import RunConfig
from ..config.start_adapter import model_of
from ..errors import Problem, first_line
from ..files import is_directory
from ..models.hub_access import LOAD_TIMEOUT, LOGIN, hub_is_off, within

_LOGIN = f"{LOGIN}, or training.hub_token='${{oc.env:MY_VARIABLE}}'"
_WRITE = "make a token that may write, at https://huggingface.co/settings/tokens"
_UNPUSHED = "the adapter will lie in output_dir all the same."


def push_problems(run: RunConfig) -> list[Problem]:
    """Return what would keep `run` from being pushed, or what is pushed from being loaded; asks the Hub who the token
    is, for `LOAD_TIMEOUT` seconds at most."""
    target = PushTarget.of(run)
    if target is None:
        return []
    from huggingface_hub import get_token

    problems = [*_name_problems(run, target), *_base_problems(run)]
    if target.strategy not in STRATEGIES:
        consequence, fix = "the Trainer knows no such strategy.", f"one of {', '.join(STRATEGIES)}"
        problems.append(Problem(key="training.hub_strategy", value=target.strategy, consequence=consequence, fix=fix))
    if re.fullmatch("[0-9a-f]{40}", target.revision or ""):
        consequence, fix = "is a commit, and a push makes one: it goes to a branch.", "a branch's name, or remove it"
        problems.append(Problem(key="training.hub_revision", value=target.revision, consequence=consequence, fix=fix))
    if hub_is_off():
        consequence = "nothing can be pushed while the hub is switched off (HF_HUB_OFFLINE)."
        fix = "unset HF_HUB_OFFLINE TRANSFORMERS_OFFLINE, or training.push_to_hub=false and hf upload afterwards"
        return [*problems, Problem(key="training.push_to_hub", value=True, consequence=consequence, fix=fix)]
    if target.token is None and get_token() is None:
        consequence = "is missing, so nothing can be pushed as training.push_to_hub asks."
        return [*problems, Problem(key="training.hub_token", consequence=consequence, fix=_LOGIN)]
    keys = {problem.key for problem in problems}
    return [*problems, *(problem for problem in _rights_problems(target) if problem.key not in keys)]


def _name_problems(run: RunConfig, target: PushTarget) -> list[Problem]:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(target.repository)
    except HFValidationError as error:
        own = run.training.get("hub_model_id")
        made = "" if own else f"output_dir's name would be the repository's, {target.repository!r}, but "
        fix = "training.hub_model_id=owner/name"
        consequence = f"{made}the Hub takes no such name: {first_line(error)}"
        return [Problem(key="training.hub_model_id", value=own, consequence=consequence, fix=fix)]
    return []


def _base_problems(run: RunConfig) -> list[Problem]:
    base = model_of(run.model.name)
    if not is_directory(base):
        return []
    consequence = "is a directory, which the pushed adapter will name as its base: nobody can load it elsewhere."
    fix = "the base's hub id; or set base_model_name_or_path in the pushed adapter_config.json to it"
    return [Problem(key="model.name", value=base, consequence=consequence, fix=fix, severity="warning")]


def _rights_problems(target: PushTarget) -> list[Problem]:
    """Return a problem where the Hub refuses the token, or can't be asked."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        known: dict[str, Any] = within(LOAD_TIMEOUT, lambda: HfApi(token=target.token).whoami())
    except Exception as error:  # its kinds differ by version and transport
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if status == 401:
            consequence = f"the Hub refuses it: {first_line(error)}"
            return [Problem(key="training.hub_token", consequence=consequence, fix=_LOGIN)]
        consequence = f"the Hub can't be asked now ({type(error).__name__}: {first_line(error)}): if it can't be "
        consequence += f"reached after training either, nothing is pushed; {_UNPUSHED}"
        fix = "look at the network, or nothing: the run will say how to push again"
        return [Problem(key="training.push_to_hub", value=True, consequence=consequence, fix=fix, severity="warning")]
    token = (known.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        consequence = f"token {token.get('displayName', '')!r} may only read, so nothing can be pushed."
        return [Problem(key="training.hub_token", consequence=consequence, fix=_WRITE)]
    owner, slash, _ = target.repository.partition("/")
    names = [known.get("name"), *(one.get("name") for one in known.get("orgs") or ())]
    if slash and owner not in names:
        consequence = (
            f"the token's owner, {known.get('name')}, is no member of {owner} that the Hub tells of: the push "
        )
        consequence += f"may be refused; {_UNPUSHED}"
        fix = f"training.hub_model_id={known.get('name')}/NAME"
        key, value = "training.hub_model_id", target.repository
        return [Problem(key=key, value=value, consequence=consequence, fix=fix, severity="warning")]
    return []
