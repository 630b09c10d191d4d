"""A generation server: found wanting before anything is trained, by a stand-in that answers as a real one did."""

from __future__ import annotations

import copy
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from unsloth_accel.data.generation_server import NOT_THERE, server_problems_of

RECORDED = json.loads((Path(__file__).parents[1] / "fixtures" / "vllm_server.json").read_text(encoding="utf-8"))
"""What a server of vLLM 0.32 answered, on a CPU, by how it was started."""
MODEL: str = RECORDED["model"]
HERE = os.path.dirname(os.path.abspath(__file__))
INFO = "/server_info?config_format=json"
EVERY_FLAG = "vllm serve /models/SmolLM2-135M-Instruct --weight-transfer-config"


class Server(BaseHTTPRequestHandler):
    """vLLM's endpoints that TRL's client asks first."""

    answers: ClassVar[dict[str, Any]] = {}
    info_takes = 0.0

    def do_GET(self) -> None:
        path = self.requestline.split()[1]  # in `self.path` two slashes are one, and for a server of vLLM they are two
        if path == INFO:
            time.sleep(self.info_takes)
        status, body = self.answers.get(path, (404, {"detail": "Not Found"}))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode() if body else b"")

    def log_message(self, *args: Any) -> None:
        pass


def started(how: str, device: str = "cuda", **answers: Any) -> dict[str, Any]:
    """Answers of a server that was started so, as it would give them on a GPU, with other `answers` by path."""
    found: dict[str, Any] = copy.deepcopy(RECORDED["answers"][how]) | answers
    if found.get(INFO, [404])[0] == 200 and isinstance(found[INFO][1], dict):
        found[INFO][1]["vllm_config"]["device_config"]["device"] = device
    return found


@pytest.fixture
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    kind = type("Answering", (Server,), {"answers": getattr(request, "param", started("every_flag"))})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def problems(address: str, model: str = MODEL, longest: int | None = None, **more: Any) -> list[str]:
    fields = {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": address} | more
    return [str(problem) for problem in server_problems_of(fields, model, longest)]


@pytest.mark.parametrize(
    "address",
    [
        started("every_flag"),
        started("without_max_logprobs"),  # GRPO asks for the written token's alone
        started("without_logprobs_mode"),  # drawn at temperature 1 raw ones are the same
        started("named"),  # TRL asks by the first name, whatever it is
        started("every_flag", **{INFO: [404, {"detail": "Not Found"}]}),
        started("every_flag", **{INFO: [200, ["text"]]}),
    ],
    indirect=True,
)
def test_a_server_that_can_be_used_is_no_problem(address: str) -> None:
    assert problems(address) == []
    host, _, port = address.removeprefix("http://").partition(":")
    apart = {"vllm_server_base_url": None, "vllm_server_host": host, "vllm_server_port": int(port)}
    assert problems(address, **apart) == []


@pytest.mark.parametrize(
    ("address", "told"),
    [
        (started("every_flag", **{"/health": [503, ""]}), "no server answers at"),
        (started("api_key"), "(status 401 at /v1/models)"),
        (started("every_flag", **{"/v1/models": [200, {"data": [{"id": "org/other"}]}]}), "serves org/other, and /mod"),
        (started("every_flag", **{"/v1/models": [200, {"data": []}]}), "serves no model"),
        (started("every_flag", **{"/v1/models": [200, {"object": "list"}]}), "no server answers at"),
        (started("without_dev_mode"), "takes no weights (status 404 at /get_world_size)"),
        (started("without_transfers"), "was started without --weight-transfer-config"),
        (started("ipc"), "takes weights by ipc, and TRL sends them by nccl"),
        (started("every_flag", device="cpu"), "runs on a CPU, and TRL sends weights by NCCL"),
    ],
    indirect=["address"],
)
def test_a_server_that_can_not_be_used_is_told_with_its_start(address: str, told: str) -> None:
    (problem,) = problems(address)
    assert told in problem
    assert EVERY_FLAG in problem


@pytest.mark.parametrize("address", [started("without_logprobs_mode")], indirect=True)
def test_raw_probabilities_are_told_where_they_differ_and_are_used(address: str) -> None:
    (problem,) = problems(address, temperature=0.7)
    assert "has --logprobs-mode raw_logprobs" in problem
    assert len(problems(address, generation_kwargs={"frequency_penalty": 0.5})) == 1
    assert problems(address, generation_kwargs={"seed": 1}) == []
    assert problems(address, temperature=0.7, generation_kwargs={"temperature": 1.0}) == []
    assert problems(address, temperature=0.7, vllm_importance_sampling_correction=False) == []


def test_a_server_with_too_little_room_is_warned_of(address: str) -> None:
    assert problems(address, longest=512) == []
    (problem,) = problems(address, longest=2048)
    assert problem.startswith("warning")
    assert "has room for 512 tokens" in problem
    assert "--max-model-len 2048, or train with model.max_seq_length: 512" in problem
    assert len(problems(address, max_completion_length=512)) == 1


@pytest.mark.parametrize(
    "address", [started("every_flag", **{"/v1/models": [200, {"data": [{"id": HERE}]}]})], indirect=True
)
def test_a_directory_is_the_same_by_whichever_path(address: str) -> None:
    assert problems(address, model=os.path.relpath(HERE)) == []
    assert len(problems(address, model=os.path.dirname(HERE))) == 1


@pytest.mark.parametrize(
    "address", [started("every_flag", **{"/v1/models": [200, {"data": [{"id": "/srv/SmolLM2-135M"}]}]})], indirect=True
)
def test_a_model_may_lie_elsewhere_on_the_servers_machine(address: str) -> None:
    assert problems(address, model="HuggingFaceTB/SmolLM2-135M") == []
    assert problems(address, model="models/smollm2-135m/") == []
    assert len(problems(address, model="HuggingFaceTB/SmolLM2-360M")) == 1


@pytest.mark.parametrize("end", ["/", "/v1", "/v1/"])
def test_an_address_is_asked_as_trl_asks_it(address: str, end: str) -> None:
    """With a slash at its end TRL's client asks a real server for //health, gets 404, and asks without end."""
    (problem,) = problems(address + end)
    assert f"no server answers at {address}{end} (status 404 at /health)" in problem
    assert "Fix: training.vllm_server_base_url: http://HOST:PORT, with nothing behind it; or start it" in problem
    assert problems(address + "?what=ever") == []
    assert problems(address.removeprefix("http://")) == []


def test_a_server_in_a_network_that_no_proxy_names_is_asked_directly(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    for name, value in {"http_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.0/8"}.items():
        monkeypatch.setenv(name, value)
    assert problems(address) == []


def test_an_address_that_is_none_is_told() -> None:
    for none in ("", "localhost:9"):
        (problem,) = problems(none)
        assert "http://HOST:PORT" in problem
    (problem,) = problems("http://[::1")
    assert "is not a valid host" in problem


@pytest.mark.parametrize("address", [started("without_transfers")], indirect=True)
def test_a_server_may_take_its_time_to_say_how_it_was_started(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "info_takes", 0.6)
    monkeypatch.setattr("unsloth_accel.data.generation_server.PATIENCE", 0.3)
    assert len(problems(address)) == 1


def test_where_nothing_listens_that_is_told() -> None:
    (problem,) = problems("http://127.0.0.1:9")
    assert "no server answers at http://127.0.0.1:9" in problem
    assert "Connection refused" in problem


def test_a_server_that_loads_is_waited_for_as_long_as_trl_would(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("unsloth_accel.data.generation_server.AGAIN", 0.01)
    asked: list[str] = []

    def loads(url: str, patience: float | None = None) -> str:
        asked.append(url)
        if len(asked) < 5:
            raise ConnectionRefusedError
        return json.dumps(started("every_flag")[url.removeprefix("http://here:1")][1])

    monkeypatch.setattr("unsloth_accel.data.generation_server._get", loads)
    fields = {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": "http://here:1"}
    (refused,) = server_problems_of(fields | {"vllm_server_timeout": 600}, MODEL)
    assert refused.rule == NOT_THERE
    assert (len(asked), capsys.readouterr().out) == (1, "")
    assert server_problems_of(fields | {"vllm_server_timeout": 600}, MODEL, wait=True) == []
    assert asked[:5] == ["http://here:1/health"] * 5
    assert capsys.readouterr().out.count("at http://here:1 yet: waiting for it, for 600 s at most") == 1
    asked.clear()
    (refused,) = server_problems_of(fields | {"vllm_server_timeout": 0.0}, MODEL, wait=True)
    assert (refused.rule, len(asked)) == (NOT_THERE, 1)


@pytest.mark.parametrize(("status", "times"), [(404, 2), (503, 3)])
def test_only_who_may_still_load_is_waited_for(status: int, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With status 404 something else listens there, and TRL's client asks without end."""
    monkeypatch.setattr("unsloth_accel.data.generation_server.AGAIN", 0.0)
    answers, asked = iter([status, 404, 404]), []

    def answered(url: str, timeout: float) -> SimpleNamespace:
        asked.append(url)
        return SimpleNamespace(status_code=next(answers))

    monkeypatch.setattr("requests.get", answered)
    fields = {"use_vllm": True, "vllm_mode": "server", "vllm_server_timeout": 600.0}
    (refused,) = server_problems_of(fields, MODEL, wait=True)
    assert (refused.rule, len(asked)) == ("", times)


def test_what_speaks_no_http_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def greet() -> None:
            one, _ = listening.accept()
            with one:
                one.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
                one.recv(4096)

        thread = threading.Thread(target=greet)
        thread.start()
        (problem,) = problems(f"http://127.0.0.1:{listening.getsockname()[1]}")
        thread.join()
    assert "no server answers at" in problem
    (problem,) = problems("http://127.0.0.1:port")
    assert "no server answers at http://127.0.0.1:port" in problem


def test_no_server_is_asked_where_none_is_used(address: str) -> None:
    assert problems("http://127.0.0.1:9", use_vllm=False) == []
    assert problems("http://127.0.0.1:9", vllm_mode="colocate") == []
