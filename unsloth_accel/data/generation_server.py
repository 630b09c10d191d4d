"""The server that writes completions for a trainer (vLLM's, in TRL's server mode): there, of the same model, and able
to take weights, before anything is trained."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from functools import partial
from typing import Any

from ..errors import Problem, first_line

START = (
    'VLLM_SERVER_DEV_MODE=1 vllm serve {model} --weight-transfer-config \'{{"backend":"nccl"}}\' '
    "--logprobs-mode processed_logprobs --max-logprobs -1"
)
"""How TRL starts it (trl/scripts/vllm_serve.py)."""
PATIENCE = 10.0
"""Seconds that a server may take for an answer. One that is still loading its model is told as not there."""
_UNUSABLE = (OSError, ValueError, http.client.HTTPException)
"""What is raised where nobody answers, by what is no text, and by what speaks no HTTP or an address that is none."""


def server_problems_of(fields: Mapping[str, Any], model: str) -> list[Problem]:
    """Return the problems of the server that a GRPOConfig of these `fields` asks for completions of `model`, a
    directory or hub id; none where it asks none.

    TRL's client asks the same (trl/generation/vllm_client.py): GET /health, /v1/models, /get_world_size. From TRL 1.16
    on it asks /server_info, too, by which flags are known that a server can be without.
    """
    if not fields.get("use_vllm") or fields.get("vllm_mode") != "server":
        return []
    base = fields.get("vllm_server_base_url")
    host, port = fields.get("vllm_server_host") or "0.0.0.0", fields.get("vllm_server_port") or 8000
    address = str(base or f"http://{host}:{port}").rstrip("/")
    key = "training.vllm_server_base_url" if base else "training.vllm_server_host"
    problem = partial(Problem, key=key, value=base or host)
    start = START.format(model=model)
    try:
        _get(f"{address}/health")
        served = [str(one.get("id")) for one in json.loads(_get(f"{address}/v1/models")).get("data", [])]
    except (*_UNUSABLE, AttributeError) as error:
        consequence = f"no server answers at {address} ({_why(error)}): no completion could be written."
        return [problem(consequence=consequence, fix=f"start it: {start}")]
    if model not in served:
        consequence = f"the server at {address} serves {', '.join(served) or 'no model'}, and {model} is trained."
        return [problem(consequence=consequence, fix=f"start it with the same model: {start}")]
    try:
        _get(f"{address}/get_world_size")
    except _UNUSABLE as error:
        consequence = (
            f"the server at {address} takes no weights ({_why(error)} at /get_world_size), so it would answer with the "
            "model as it was before training."
        )
        return [problem(consequence=consequence, fix=f"start it with every flag: {start}")]
    fix = f"start it with every flag: {start}"
    return [problem(consequence=lacks, fix=fix) for lacks in _lacking_flags(address)]


def _lacking_flags(address: str) -> list[str]:
    """Return what the server at `address` was not started with; nothing where it doesn't say, as older ones don't
    (vllm/entrypoints/serve/dev/server_info/api_router.py)."""
    try:
        config = json.loads(_get(f"{address}/server_info?config_format=json"))["vllm_config"]
        transfers, noted = config["weight_transfer_config"], config["model_config"]["logprobs_mode"]
    except (*_UNUSABLE, KeyError, TypeError):
        return []
    found = []
    if not transfers:
        lacks = "was started without --weight-transfer-config: it would answer with the model as it was before training"
        found.append(f"the server at {address} {lacks}.")
    if noted != "processed_logprobs":
        lacks = f"has --logprobs-mode {noted}: TRL corrects by probabilities that are not those it drew tokens by"
        found.append(f"the server at {address} {lacks}.")
    return found


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        return str(answer.read().decode("utf-8"))


def _why(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"status {error.code}"
    return first_line(getattr(error, "reason", error)) or type(error).__name__
