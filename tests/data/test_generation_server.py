"""A generation server: found wanting before anything is trained, by a real one in a thread."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from unsloth_accel.data.generation_server import server_problems_of

MODEL = "org/model"


class Server(BaseHTTPRequestHandler):
    """vLLM's endpoints that TRL's client asks first."""

    answers: ClassVar[dict[str, Any]] = {}

    def do_GET(self) -> None:
        answer = self.answers.get(self.path)
        self.send_response(404 if answer is None else 200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *args: Any) -> None:
        pass


def info(transfers: Any = {"backend": "nccl"}, noted: str = "processed_logprobs") -> dict[str, Any]:  # noqa: B006
    """What vLLM 0.33 says of its flags."""
    config = {"weight_transfer_config": transfers, "model_config": {"logprobs_mode": noted}}
    return {"/server_info?config_format=json": {"vllm_config": config}}


@pytest.fixture
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    answers = {"/health": {}, "/v1/models": {"data": [{"id": MODEL}]}, "/get_world_size": {"world_size": 1}}
    answers |= getattr(request, "param", {})
    kind = type("Answering", (Server,), {"answers": answers})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def problems(address: str, **more: Any) -> list[str]:
    fields = {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": address} | more
    return [str(problem) for problem in server_problems_of(fields, MODEL)]


@pytest.mark.parametrize("address", [{}, info(), {"/server_info?config_format=json": ["text"]}], indirect=True)
def test_a_server_that_can_be_used_is_no_problem(address: str) -> None:
    assert problems(address) == []
    host, _, port = address.removeprefix("http://").partition(":")
    apart = {"vllm_server_base_url": None, "vllm_server_host": host, "vllm_server_port": int(port)}
    assert problems(address, **apart) == []


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ({"/health": None}, "no server answers at"),
        ({"/v1/models": {"data": [{"id": "org/other"}]}}, "serves org/other, and org/model is trained"),
        ({"/v1/models": {"data": []}}, "serves no model"),
        ({"/get_world_size": None}, "takes no weights (status 404 at /get_world_size)"),
        (info(transfers=None), "was started without --weight-transfer-config"),
        (info(noted="raw_logprobs"), "has --logprobs-mode raw_logprobs"),
    ],
    indirect=["address"],
)
def test_a_server_that_can_not_be_used_is_told_with_its_start(address: str, told: str) -> None:
    (problem,) = problems(address)
    assert told in problem
    assert "vllm serve org/model --weight-transfer-config" in problem


def test_where_nothing_listens_that_is_told() -> None:
    (problem,) = problems("http://127.0.0.1:9")
    assert "no server answers at http://127.0.0.1:9" in problem
    assert "Connection refused" in problem


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
