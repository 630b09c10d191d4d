"""A model or a data set that can't be had: said in a line, at once, by real huggingface_hub and a Hub that is here."""

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import write_yaml
from fake_hub import TOKEN, FakeHub, fake_hub
from small_models import CONFIGS

from unsloth_accel.cli.main import main
from unsloth_accel.config.read_run import from_dict
from unsloth_accel.config.run_config import DataConfig
from unsloth_accel.data.hub import access_problems
from unsloth_accel.data.preview import preview_rows
from unsloth_accel.errors import ConfigError, Problem
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.launch.launcher import made_room
from unsloth_accel.models import hub_access
from unsloth_accel.models.known_names import copy_loaded
from unsloth_accel.models.spec import ModelSpec
from unsloth_accel.planning.planner import plan
from unsloth_accel.validation.inputs import hub_variables, input_problems

MODEL, DATA = "owner/a-model", "owner/some-rows"


def move(monkeypatch: pytest.MonkeyPatch, hub: str) -> None:
    """Have huggingface_hub ask there, as HF_ENDPOINT does when it is imported."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub)
    url = f"{hub}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", url)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A Hub that has both, with nothing in the cache."""
    with fake_hub() as hub:
        move(monkeypatch, hub.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(hub_access, "_unreached", {})
        hub.files = {MODEL: {"main": {"config.json": b"{}"}}, DATA: {"main": {"rows.jsonl": b""}}}
        yield hub


@pytest.fixture
def told(description: dict[str, Any]) -> Callable[..., list[Problem]]:
    """What is told of a run of the model, or of the data, of this name."""

    def problems(model: str | None = None, data: str | None = None, **more: Any) -> list[Problem]:
        values = {**description, **more}
        values |= {"model": {"name": model, **more.get("model", {})}} if model else {}
        values |= {"data": {"path": data}} if data else {}
        return input_problems(from_dict(values))

    return problems


def only(problems: list[Problem], severity: str = "error") -> str:
    (problem,) = problems
    assert problem.severity == severity
    return str(problem)


def in_cache(tmp_path: Path, name: str, *leaving_out: str) -> None:
    """Put a whole model into the cache, but for some files."""
    repository = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abc")
    shutil.copytree(tmp_path / "model", snapshot, dirs_exist_ok=True)
    (snapshot / "tokenizer.json").write_text("{}")
    for file in leaving_out:
        (snapshot / file).unlink()


def test_what_can_be_had_is_asked_for_once_each(hub: FakeHub, told: Callable[..., list[Problem]]) -> None:
    assert told(MODEL) == told(data=DATA) == []  # also where there is no README.md
    assert {path: count for path, count in hub.asked.items() if "/resolve/" in path} == {
        f"HEAD /{MODEL}/resolve/main/config.json": 1,
        f"HEAD /datasets/{DATA}/resolve/main/README.md": 1,
    }


@pytest.mark.parametrize(
    ("status", "code", "token", "words"),
    [
        (401, "GatedRepo", None, ("is gated", "no token is given", "accept its terms at", "hf auth login")),
        (403, "GatedRepo", TOKEN, ("is gated", "your token's owner has no access", "accept its terms at")),
        (404, "RepoNotFound", TOKEN, ("has no such", "your token may not read it", "correct the name")),
        (401, "RepoNotFound", None, ("has no such", "or it is private", "hf auth login")),
        (401, "", TOKEN, ("refuses your token", "hf auth login")),
        (403, "", TOKEN, ("refuses access to it", "ask for access at")),
        (404, "RevisionNotFound", None, ("has no revision", "/tree/main")),
    ],
)
def test_what_the_hub_refuses(
    hub: FakeHub,
    told: Callable[..., list[Problem]],
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    code: str,
    token: str | None,
    words: tuple[str, ...],
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: token)
    hub.refused = {MODEL: (status, code), DATA: (status, code)}
    for said in (only(told(MODEL)), only(told(data=DATA))):
        assert all(word in said for word in words), said
        assert said.count("\n") == 0
    assert "data.path='owner/some-rows'" in said
    assert ("data set" in said) == (code == "RepoNotFound")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_may_have_passed_when_it_is_loaded_is_a_warning(
    hub: FakeHub, told: Callable[..., list[Problem]], status: int
) -> None:
    hub.fails = {MODEL: status}
    assert f"answers with {status} now" in only(told(MODEL), "warning")


@pytest.mark.parametrize("name", ["owner/my model", "owner/a--b", "owner/-x-"])
def test_what_can_be_no_name_on_the_hub(hub: FakeHub, told: Callable[..., list[Problem]], name: str) -> None:
    """It was told as a Hub that can't be reached."""
    assert "is no path here, and no name that the Hub takes" in only(told(name))
    assert not any("/resolve/" in path for path in hub.asked)


def test_a_repository_without_a_model(hub: FakeHub, told: Callable[..., list[Problem]]) -> None:
    hub.files[MODEL] = {"main": {"model.gguf": b""}}
    assert "has no config.json on the Hub" in only(told(MODEL))


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("unsloth/Llama-3.1-8B-Instuct", "unsloth/Llama-3.1-8B-Instruct"),
        ("Qwen/Qwen3-8b-", "Qwen/Qwen3-8B"),
        ("unsloth/qwen3_8b", "unsloth/Qwen3-8B"),
    ],
)
def test_a_misspelt_name_gets_the_nearest(
    hub: FakeHub, told: Callable[..., list[Problem]], name: str, near: str
) -> None:
    hub.refused = {"resolve": (404, "RepoNotFound")}
    near = (
        "unsloth/Llama-3.1-8B-Instruct"
        if "Llama" in name
        else "Qwen/Qwen3-8B"
        if "Qwen/" in name
        else "unsloth/Qwen3-8B"
    )
    assert f"did you mean {near}?" in only(told(name))


def test_a_name_like_no_other_gets_none(hub: FakeHub, told: Callable[..., list[Problem]]) -> None:
    hub.refused = {"resolve": (404, "RepoNotFound")}
    assert "did you mean" not in only(told("someone/new-model"))


def unreachable(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, how: str) -> socket.socket | None:
    """Put the Hub out of reach; a busy machine takes longer for a test than that is remembered."""
    monkeypatch.setattr(hub_access, "REMEMBERED", 3600.0)
    if how == "no name":
        move(monkeypatch, "http://no-such-host.invalid")
    elif how == "refused":
        move(monkeypatch, "http://127.0.0.1:9")
    elif how == "silent":
        listening = socket.create_server(("127.0.0.1", 0))
        move(monkeypatch, f"http://127.0.0.1:{listening.getsockname()[1]}")
        monkeypatch.setattr(hub_access, "HUB_TIMEOUT", 0.2)
        monkeypatch.setattr(hub_access, "LOAD_TIMEOUT", 0.2)
        return listening
    else:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return None


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What makes this thread wait: questions with a limit, requests without one, and pauses before one is repeated."""
    seen: list[str] = []
    within, send, sleep = hub_access.within, httpx.Client.send, time.sleep

    def here() -> bool:
        return threading.current_thread() is threading.main_thread()

    def asked(seconds: float, call: Callable[[], Any]) -> Any:
        seen.append("a question")
        return within(seconds, call)

    def sent(client: httpx.Client, request: httpx.Request, **more: Any) -> httpx.Response:
        seen.extend(["a request"] * here())
        return send(client, request, **more)

    def slept(seconds: float) -> None:
        seen.extend(["a pause"] * here())
        sleep(seconds)

    monkeypatch.setattr(hub_access, "within", asked)
    monkeypatch.setattr(httpx.Client, "send", sent)
    monkeypatch.setattr("time.sleep", slept)
    return seen


@pytest.mark.parametrize("how", ["no name", "refused", "silent", "off"])
def test_a_hub_out_of_reach(
    hub: FakeHub,
    told: Callable[..., list[Problem]],
    description: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    waited: list[str],
    how: str,
) -> None:
    kept = unreachable(hub, monkeypatch, how)
    words = "the hub is switched off" if how == "off" else "the Hub can't be reached"
    for said in (only(told(MODEL)), only(told(data=DATA))):
        assert words in said
        assert said.count("\n") == 0
    file = write_yaml(tmp_path / "run.yaml", description)
    for command in ("launch", "preview"):
        assert main([command, str(file), f"model.name={MODEL}", f"data.path={DATA}", "distributed.device=cpu"]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert [words in line for line in lines] == [True, True], lines
    assert main(["plan", str(file), f"model.name={MODEL}", "distributed.device=cpu"]) == 0
    assert words in " ".join(capsys.readouterr().out.split())
    known = ["model.name=unsloth/Llama-3.2-1B-Instruct", "--hardware", "2xT4"]
    assert main(["plan", str(file), *known]) == 0
    assert "not estimated" not in capsys.readouterr().out
    assert "did you mean unsloth/Llama-3.2-1B-Instruct? otherwise" in only(told("unsloth/Llama-3.2-1B-Instuct"))
    assert waited == ([] if how == "off" else ["a question"]), "once, however often it is needed"
    if kept:
        kept.close()


@pytest.mark.parametrize("how", ["refused", "off"])
def test_a_whole_cache_asks_nobody_and_is_no_error(
    hub: FakeHub, told: Callable[..., list[Problem]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    unreachable(hub, monkeypatch, how)
    in_cache(tmp_path, MODEL)
    place = tmp_path / "datasets" / "owner___some-rows" / "default" / "0.0.0" / "abc"
    place.mkdir(parents=True)
    (place / "dataset_info.json").write_text("{}")
    assert told(MODEL) == told(data=DATA) == []
    assert told(MODEL, distributed={"device": "cpu"}) == []
    assert not any("/resolve/" in path for path in hub.asked)
    assert only(access_problems(DATA, "data.path", DataConfig(path=DATA, subset="other")))


def test_a_whole_cache_and_no_hub_are_launched_without_asking_it(
    hub: FakeHub,
    description: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The processes' own questions took minutes."""
    run = from_dict({**description, "model": {"name": MODEL}})
    unreachable(hub, monkeypatch, "refused")
    assert hub_variables(run, "cpu") == {}  # it is to be downloaded
    in_cache(tmp_path, MODEL)
    assert hub_variables(from_dict({**description, "model": {"name": MODEL}, "data": {"path": DATA}}), "cpu") == {}
    assert hub_variables(from_dict(description), "cpu") == {}  # has nothing of the Hub
    assert capsys.readouterr().out == ""
    with made_room(plan(run, Hardware(cpu_cores=2, host_memory_gib=8, reason="no driver"))) as variables:
        assert variables["HF_HUB_OFFLINE"] == "1"
    (said,) = capsys.readouterr().out.splitlines()
    assert said.startswith("the Hub gives no answer; what is needed of it is in the cache")
    pushed = from_dict({**description, "model": {"name": MODEL}, "training": {"push_to_hub": True}})
    assert hub_variables(pushed, "cpu") == {}
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert hub_variables(run, "cpu") == {}
    monkeypatch.delenv("HF_HUB_OFFLINE")
    move(monkeypatch, hub.url)
    hub.fails = {MODEL: 503}
    assert hub_variables(run, "cpu") == {}  # it answers


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_cache_that_lacks_something(
    hub: FakeHub, told: Callable[..., list[Problem]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    in_cache(tmp_path, MODEL, file)
    assert told(MODEL) == []  # it will be downloaded
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "is only in part in the hub's cache" in only(told(MODEL))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    move(monkeypatch, "http://127.0.0.1:9")
    assert "can't be reached" in only(told(MODEL))


def test_a_copy_that_unsloth_loads_in_the_place_of_a_gated_model(
    hub: FakeHub, told: Callable[..., list[Problem]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gated = "meta-llama/Llama-3.2-1B-Instruct"
    copy = copy_loaded(gated, in_4bit=False)
    assert copy == "unsloth/Llama-3.2-1B-Instruct"
    assert copy_loaded(copy, in_4bit=False) is None
    assert str(copy_loaded(gated, in_4bit=True)).endswith("-bnb-4bit")
    hub.refused = {gated: (401, "GatedRepo")}
    hub.files[copy] = {"main": {"config.json": b"{}"}}
    assert f"is gated on the Hub, and no token is given; on a GPU Unsloth loads {copy}" in only(told(gated), "warning")
    assert "accept its terms" in only(told(gated, distributed={"device": "cpu"}))
    hub.refused |= {copy: (401, "GatedRepo")}
    assert "accept its terms" in only(told(gated))
    in_cache(tmp_path, copy)
    assert told(gated) == []


def test_the_shape_of_an_unknown_model_is_asked_for_briefly(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files[MODEL]["main"]["config.json"] = CONFIGS["phi3"].read_bytes()
    assert ModelSpec.load(MODEL).model_type == "phi3"
    hub.refused = {"owner/other": (404, "RevisionNotFound")}
    with pytest.raises(ConfigError, match="has no revision 'v2' on the Hub"):
        ModelSpec.load("owner/other", revision="v2")


def test_a_preview_needs_the_tokenizer_alone(
    hub: FakeHub, description: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waited: list[str]
) -> None:
    in_cache(tmp_path, MODEL, "model.safetensors", "config.json")
    move(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match="its tokenizer can't be loaded"):  # there is one: {} is none
        preview_rows(from_dict({**description, "model": {"name": MODEL}}), 1, 1)
    assert waited == ["a question"], "huggingface_hub asked again and again"
