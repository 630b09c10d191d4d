"""The server that writes completions for a trainer (vLLM's, in TRL's server mode): there, of the same model, and able
to take weights, before anything is trained."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from functools import partial
from pathlib import PurePath
from typing import Any
from urllib.parse import urlsplit

from ..errors import Problem, first_line

START = (
    'VLLM_SERVER_DEV_MODE=1 vllm serve {model} --weight-transfer-config \'{{"backend":"nccl"}}\' '
    "--logprobs-mode processed_logprobs --max-logprobs -1"
)
"""How TRL starts it (trl/scripts/vllm_serve.py)."""
PATIENCE = 10.0
"""Seconds that a server may take for an answer. One that still loads its model takes no connection yet."""
AGAIN = 2.0
"""Seconds after which a server that takes no connection is asked again, as TRL's client does."""
NOT_THERE = "no-server"
"""`Problem.rule` of a server that takes no connection: it may be loading its model."""
PATIENCE_OF_INFO = 120.0
"""Seconds that it may take to say how it was started: at the first time it looks through its machine and its packages
(2 to 11 s on two busy CPU cores)."""
_UNUSABLE = (OSError, ValueError)
"""What is raised where nobody answers, by what is no text, and by what speaks no HTTP or an address that is none."""
_OTHER_ANSWER = (AttributeError, KeyError, TypeError, IndexError)
"""What is raised by JSON of another shape than vLLM's."""
_PLAIN_ADDRESS = re.compile(r"https?://[^/?#]+")
"""Address behind which a server of vLLM listens. Where one ends in a slash, TRL asks for //health, gets status 404, and
asks again without end."""
_PLAIN: dict[str, Any] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "min_tokens": 0,
    "logit_bias": None,
    "bad_words": None,
    "allowed_token_ids": None,
}
"""Fields, and keys of generation_kwargs, with whose values tokens are drawn by the model's own probabilities: raw and
processed ones are the same."""


def server_problems_of(
    fields: Mapping[str, Any], model: str, longest: int | None = None, *, wait: bool = False
) -> list[Problem]:
    """Return the problems of the server that a GRPOConfig of these `fields` asks for completions of `model`, a
    directory or hub id; none where it asks none. `longest`: tokens that a prompt and its completion have at most. With
    `wait` a server that takes no connection yet gets as long as TRL's client would wait (vllm_server_timeout).

    TRL's client asks the same (trl/generation/vllm_client.py): GET /health, /v1/models, /get_world_size. From TRL 1.16
    on it asks /server_info, too, by which flags are known that a server can be without.
    """
    if not fields.get("use_vllm") or fields.get("vllm_mode") != "server":
        return []
    base = fields.get("vllm_server_base_url")
    host, port = fields.get("vllm_server_host") or "0.0.0.0", fields.get("vllm_server_port") or 8000
    address = f"http://{host}:{port}" if base is None else _as_trl_asks(str(base))
    key = "training.vllm_server_host" if base is None else "training.vllm_server_base_url"
    problem = partial(Problem, key=key, value=host if base is None else base)
    start = START.format(model=model)
    path = "/health"
    if wait:
        _wait(address, path, float(fields.get("vllm_server_timeout") or 0))
    try:
        _get(f"{address}{path}")
        path = "/v1/models"
        served = json.loads(_get(f"{address}{path}"))["data"]
        names = [str(name) for one in served for name in (one["id"], one.get("root")) if name]
        room = served[0].get("max_model_len") if served else None
    except (*_UNUSABLE, *_OTHER_ANSWER) as error:
        consequence = f"no server answers at {address} ({_why(error)} at {path}): no completion could be written."
        fix = f"start it without a key (--api-key, VLLM_API_KEY), and wait until it has loaded: {start}"
        if base is not None and not _PLAIN_ADDRESS.fullmatch(str(base)):
            fix = f"{key}: http://HOST:PORT, with nothing behind it; or {fix}"
        return [problem(consequence=consequence, fix=fix, rule=NOT_THERE if _is_not_there(error) else "")]
    if not any(_is_same(name, model) for name in names):
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
    drawn_by = {**fields, **(fields.get("generation_kwargs") or {})}
    shaped = any((drawn_by.get(name) or plain) != plain for name, plain in _PLAIN.items())
    if noted != "processed_logprobs" and corrected and shaped:
        found.append(f"has --logprobs-mode {noted}: TRL corrects by probabilities that are not those it drew tokens by")
    return found


def _wait(address: str, path: str, seconds: float) -> None:
    """Return once `path` of the server at `address` answers anything, or after `seconds`."""
    deadline = time.monotonic() + seconds
    most = f"for {seconds:g} s at most (training.vllm_server_timeout)"
    print(f"no generation server answers at {address} yet: waiting for it, {most}", flush=True)
    while time.monotonic() < deadline:
        try:
            _get(f"{address}{path}")
        except _UNUSABLE as error:
            if not _is_not_there(error):
                return
            time.sleep(AGAIN)
        else:
            return


def _is_not_there(error: BaseException) -> bool:
    """Return whether `error` is of a connection; requests' errors of an address that is none are values' besides."""
    return isinstance(error, OSError) and not isinstance(error, ValueError)


def _as_trl_asks(base: str) -> str:
    """Return what TRL's client puts its paths behind."""
    try:
        parts = urlsplit(base)
    except ValueError:  # which TRL's raises, too, and whoever asks there
        return base
    return f"{parts.scheme or 'http'}://{parts.netloc}{parts.path}"


def _is_same(served: str, model: str) -> bool:
    """Return whether `served` may be `model` by another path, or from another machine or owner. It gets every weight
    before it answers: one of other shapes fails there, and none answers as it was."""
    if os.path.isdir(served) and os.path.realpath(served) == os.path.realpath(model):
        return True
    return PurePath(served).name.lower() == PurePath(model).name.lower()


def _get(url: str, patience: float | None = None) -> str:
    # As TRL's client does: Python's own goes through a proxy to networks that no_proxy names (10.0.0.0/8), and doesn't
    # know REQUESTS_CA_BUNDLE.
    import requests

    answer = requests.get(url, timeout=patience or PATIENCE)
    if answer.status_code != 200:  # 502 to 504 are of a gateway, behind which a server loads
        raise (OSError if answer.status_code >= 500 else ValueError)(f"status {answer.status_code}")
    return answer.text


def _why(error: BaseException) -> str:
    """Return what was at the bottom of `error`, around which requests and urllib3 put their own."""
    while error.__context__ is not None:
        error = error.__context__
    return first_line(error) or type(error).__name__
