from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from doctor_machines import Place, machine
from fake_hub import TOKEN, fake_hub

from unsloth_accel.doctor import services
from unsloth_accel.doctor.result import Result

SECRET = "hf_averysecrettoken"
Ask = Callable[..., list[Result]]


@pytest.fixture
def ask(place: Place, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """What the check says where the Hub gives an answer, or raises one, to a token from a variable."""

    def asked(answer: Any, token: str | None = SECRET, **environ: str) -> list[Result]:
        def answered(address: str, given: str | None) -> Any:
            assert given == token
            if isinstance(answer, Exception):
                raise answer
            return answer() if callable(answer) else answer

        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(services, "_who_am_i", answered)
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)
        shell = {"HF_TOKEN": SECRET} if token else {}
        found = list(services.hub(machine(place, environ=shell | environ)))
        assert not any(SECRET in f"{result.detail}{result.fix}" for result in found)
        return found

    return asked


def test_whose_token_it_is(ask: Ask) -> None:
    reached, token = ask((200, {"name": "me", "auth": {"accessToken": {"role": "read"}}}))
    assert (reached.name, reached.status, token.status) == ("hub", "ok", "ok")
    assert reached.detail.startswith("https://huggingface.co answers in 0.")
    assert token.detail == "HF_TOKEN: of me, may read only"


def test_a_hub_is_asked_as_it_wants_to_be() -> None:
    with fake_hub() as hub:
        status, known = services._who_am_i(hub.url, TOKEN)
        assert (status, known["name"]) == (200, "someone")
        assert services._who_am_i(hub.url, None) == (401, {})


def test_no_token_is_no_fault(ask: Ask) -> None:
    reached, token = ask((401, {}), token=None)
    assert (reached.status, token.status) == ("ok", "ok")
    assert "no gated or private model loads" in token.detail


def test_a_token_that_is_refused(ask: Ask) -> None:
    reached, token = ask((401, {}))
    assert (reached.status, token.status) == ("ok", "error")
    assert token.fix == "unset HF_TOKEN, or export HF_TOKEN=…, or hf auth login"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (OSError("Name or service not known"), "OSError: Name or service not known"),
        (ValueError(f"Illegal header value b'Bearer {SECRET}'"), "(not shown)"),
        (OSError("no route to http://me:word@proxy:1"), "http://(not shown)@proxy:1"),
        ((502, {}), "answers with status 502"),
        ((403, {}), "answers with status 403"),
    ],
)
def test_a_hub_that_is_not_reached(ask: Ask, answer: Any, said: str) -> None:
    (found,) = ask(answer, HF_ENDPOINT="https://user:word@mirror.example/")
    assert (found.name, found.status) == ("hub", "warning")
    assert said in found.detail
    assert "https://(not shown)@mirror.example" in found.detail
    assert "word" not in found.detail
    assert "HF_HUB_OFFLINE=1" in found.fix


def test_a_hub_that_never_answers_is_waited_for_no_longer_than_said(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "TIME_LIMIT", 0.05)
    waiting = threading.Event()
    (found,) = ask(lambda: waiting.wait(60))
    waiting.set()
    assert "no answer from the hub within 0.05 s" in found.detail


def test_a_hub_that_is_switched_off_is_not_asked(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(services, "_who_am_i", lambda *_: pytest.fail("asked"))
    (found,) = services.hub(machine(place))
    assert found.status == "ok"


def test_proxies_without_their_passwords(place: Place) -> None:
    shell = {"HTTPS_PROXY": "http://me:word@proxy:3128", "no_proxy": "localhost", "ALL_PROXY": "me:word@proxy:1"}
    (found,) = services.proxy(machine(place, environ=shell))
    assert found.detail == (
        "HTTPS_PROXY=http://(not shown)@proxy:3128, ALL_PROXY=(not shown)@proxy:1, no_proxy=localhost"
    )
    assert not [*services.proxy(machine(place))]


def test_reporters(place: Place, tmp_path: Path) -> None:
    (found,) = services.reporters(machine(place))
    assert "none installed" in found.detail
    place.add("wandb", "0.24.0")
    place.add("tensorboard", "2.20.0")
    login = tmp_path / "netrc"
    login.write_text("machine api.wandb.ai login user password word\n", encoding="utf-8")
    login.chmod(0o600)
    nowhere = str(tmp_path / "none")
    for shell, said in (
        ({"NETRC": nowhere}, "not logged in: wandb login, or WANDB_MODE=offline"),
        ({"NETRC": nowhere, "WANDB_API_KEY": "word"}, "logged in"),
        ({"NETRC": nowhere, "WANDB_MODE": "offline"}, "logged in"),
        ({"NETRC": str(login)}, "logged in"),
        ({"NETRC": str(login), "WANDB_BASE_URL": "https://own.example"}, "not logged in: wandb login"),
    ):
        (found,) = services.reporters(machine(place, environ=shell))
        assert f"wandb 0.24.0 ({said}" in found.detail
        assert found.detail.endswith("tensorboard 2.20.0")
        assert "word" not in found.detail
