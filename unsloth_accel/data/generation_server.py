"""The server that writes completions for a trainer (vLLM's, in TRL's server mode): there, of the same model, and able
to take weights, before anything is trained."""

from __future__ import annotations

import http.client
import json
import os
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
"""Seconds that a server may take for an answer. One that still loads its model takes no connection yet."""
PATIENCE_OF_INFO = 120.0
"""Seconds that it may take to say how it was started: at the first time it looks through its machine and its packages
(2 to 11 s on two busy CPU cores)."""
_UNUSABLE = (OSError, ValueError, http.client.HTTPException)
"""What is raised where nobody answers, by what is no text, and by what speaks no HTTP or an address that is none."""
_OTHER_ANSWER = (AttributeError, KeyError, TypeError, IndexError)
"""What is raised by JSON of another shape than vLLM's."""
_PLAIN: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
"""Fields with whose values tokens are drawn by the model's own probabilities: raw and processed ones are the same."""


def server_problems_of(fields: Mapping[str, Any], model: str, longest: int | None = None) -> list[Problem]:
    """Return the problems of the server that a GRPOConfig of these `fields` asks for completions of `model`, a
    directory or hub id; none where it asks none. `longest`: tokens that a prompt and its completion have at most.

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
    path = "/health"
    try:
        _get(f"{address}{path}")
        path = "/v1/models"
        served = json.loads(_get(f"{address}{path}"))["data"]
        names = [str(name) for one in served for name in (one["id"], one.get("root")) if name]
        room = served[0].get("max_model_len") if served else None
    except (*_UNUSABLE, *_OTHER_ANSWER) as error:
        consequence = f"no server answers at {address} ({_why(error)} at {path}): no completion could be written."
        return [problem(consequence=consequence, fix=f"start it without a key, and wait until it has loaded: {start}")]
    if not any(name == model or _is_same_directory(name, model) for name in names):
        consequence = (
            f"the server at {address} serves {', '.join(dict.fromkeys(names)) or 'no model'}, and {model} is trained."
        )
        fix = f"start it with the same model, or name the one it has with --served-model-name {model}: {start}"
        return [problem(consequence=consequence, fix=fix)]
    try:
        _get(f"{address}/get_world_size")
    except _UNUSABLE as error:
        consequence = (
            f"the server at {address} takes no weights ({_why(error)} at /get_world_size), so it would answer with the "
            "model as it was before training."
        )
        return [problem(consequence=consequence, fix=f"start it with every flag: {start}")]
    fix = f"start it on a GPU, with every flag: {start}"
    found = [problem(consequence=f"the server at {address} {lacks}.", fix=fix) for lacks in _lacking(address, fields)]
    longest = longest or (fields.get("max_completion_length") or 0) + 1
    if room and room < longest:
        consequence = (
            f"the server at {address} has room for {room} tokens of a prompt and its completion, of which there may be "
            f"{longest}: completions are cut short there, and a longer prompt ends the training."
        )
        fix = f"start it with --max-model-len {longest}, or train with model.max_seq_length: {room}"
        found.append(problem(consequence=consequence, fix=fix, severity="warning"))
    return found


def _lacking(address: str, fields: Mapping[str, Any]) -> list[str]:
    """Return what keeps the server at `address` from taking weights, or biases training, as it was started; nothing
    where it doesn't say, as older ones don't (vllm/entrypoints/serve/dev/server_info/api_router.py)."""
    try:
        config = json.loads(_get(f"{address}/server_info?config_format=json", PATIENCE_OF_INFO))["vllm_config"]
        transfers, noted = config["weight_transfer_config"], config["model_config"]["logprobs_mode"]
        device = config["device_config"]["device"]
    except (*_UNUSABLE, *_OTHER_ANSWER):
        return []
    found = []
    if not transfers:
        found.append(
            "was started without --weight-transfer-config: it would answer with the model as it was before training"
        )
    elif (backend := transfers.get("backend")) != "nccl":
        found.append(f"takes weights by {backend}, and TRL sends them by nccl: the training fails as it begins")
    if device == "cpu":
        found.append("runs on a CPU, and TRL sends weights by NCCL, from GPU to GPU: the training fails as it begins")
    corrected = fields.get("vllm_importance_sampling_correction", True)
    shaped = fields.get("generation_kwargs") or any(
        (fields.get(name) or plain) != plain for name, plain in _PLAIN.items()
    )
    if noted != "processed_logprobs" and corrected and shaped:
        found.append(f"has --logprobs-mode {noted}: TRL corrects by probabilities that are not those it drew tokens by")
    return found


def _is_same_directory(one: str, other: str) -> bool:
    return os.path.isdir(one) and os.path.realpath(one) == os.path.realpath(other)


def _get(url: str, patience: float | None = None) -> str:
    with urllib.request.urlopen(url, timeout=patience or PATIENCE) as answer:
        return str(answer.read().decode("utf-8"))


def _why(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"status {error.code}"
    return first_line(getattr(error, "reason", error)) or type(error).__name__
