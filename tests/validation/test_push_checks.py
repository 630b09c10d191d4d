"""What is told of a push before anything trains: real huggingface_hub, and a Hub on this machine."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_hub import TOKEN, FakeHub, fake_hub

from unsloth_accel.config.read_run import from_dict
from unsloth_accel.errors import Problem
from unsloth_accel.validation import push_checks
from unsloth_accel.validation.push_checks import push_problems


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        yield hub


def told(out: str = "a-run", model: str = "owner/base", **said: Any) -> list[Problem]:
    training = {"push_to_hub": True, "hub_token": TOKEN, "hub_model_id": "someone/it", **said}
    values = {"model": {"name": model}, "data": {"path": "rows.jsonl"}, "training": training}
    return push_problems(from_dict({**values, "output_dir": out}))


def only(problems: list[Problem], severity: str = "error") -> tuple[str, str]:
    (problem,) = problems
    assert (problem.severity, TOKEN in str(problem)) == (severity, False)
    return problem.key, f"{problem.consequence} {problem.fix}"


def test_a_push_that_can_be_made(hub: FakeHub) -> None:
    assert told() == told(hub_model_id="it") == told(hub_model_id="an-org/it") == told(hub_strategy="end") == []
    assert hub.asked["GET /api/whoami-v2"] == 4
    assert told(push_to_hub=False, hub_model_id="no name") == []
    assert hub.asked["GET /api/whoami-v2"] == 4, "nobody is asked for a run that isn't pushed"


def test_no_token_at_all(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    key, said = only(told(hub_token=None))
    assert key == "training.hub_token"
    assert "export HF_TOKEN=…, or hf auth login" in said
    monkeypatch.setattr("huggingface_hub.hf_api.get_token", lambda: TOKEN)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: TOKEN)
    assert told(hub_token=None) == []
    assert not hub.files, "nothing is made before the end"


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_a_hub_that_is_switched_off(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    key, said = only(told())
    assert key == "training.push_to_hub"
    assert "unset HF_HUB_OFFLINE" in said
    assert "GET /api/whoami-v2" not in hub.asked


@pytest.mark.parametrize("name", ["a/b/c", "-it", "some one/it", "someone/it--too", "it.git"])
def test_a_name_that_is_none(hub: FakeHub, name: str) -> None:
    key, said = only(told(hub_model_id=name))
    assert key == "training.hub_model_id"
    assert "training.hub_model_id=owner/name" in said
    key, said = only(told(out=f"runs/{name.replace('/', '--')}", hub_model_id=None))
    assert "output_dir's name would be the repository's" in said


def test_a_strategy_that_is_none(hub: FakeHub) -> None:
    key, said = only(told(hub_strategy="sometimes"))
    assert key == "training.hub_strategy"
    assert "one of end, every_save, checkpoint, all_checkpoints" in said


def test_a_revision_that_is_no_branch(hub: FakeHub) -> None:
    assert told(hub_revision="v2") == []
    key, said = only(told(hub_revision="0123456789" * 4))
    assert key == "training.hub_revision"
    assert "a branch's name" in said


def test_a_token_that_is_refused(hub: FakeHub) -> None:
    key, said = only(told(hub_token="hf_another"))
    assert key == "training.hub_token"
    assert "the Hub refuses it" in said


def test_a_token_that_may_only_read(hub: FakeHub) -> None:
    hub.role = "read"
    key, said = only(told())
    assert key == "training.hub_token"
    assert "may only read" in said


def test_anothers_namespace(hub: FakeHub) -> None:
    """The Hub tells a narrow token of no organisations, so this may still go well."""
    key, said = only(told(hub_model_id="somebody/it"), "warning")
    assert key == "training.hub_model_id"
    assert "training.hub_model_id=someone/NAME" in said


def test_a_hub_out_of_reach(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused, failing, or silent: soon told, and no reason not to train."""
    hub.fails["whoami"] = 500
    assert "can't be asked now" in only(told(), "warning")[1]
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert "can't be asked now (ConnectError" in only(told(), "warning")[1]
    monkeypatch.setattr("huggingface_hub.hf_api.HfApi.whoami", lambda _: time.sleep(30))
    monkeypatch.setattr(push_checks, "LOAD_TIMEOUT", 0.1)
    assert "no answer from the hub within 0.1 s" in only(told(), "warning")[1]


def test_a_base_that_nobody_else_has(hub: FakeHub, tmp_path: Path) -> None:
    key, said = only(told(model=str(tmp_path)), "warning")
    assert key == "model.name"
    assert "base_model_name_or_path" in said
