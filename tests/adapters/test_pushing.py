"""A run's pushes: real huggingface_hub, and a Hub on this machine that it speaks to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from fake_hub import TOKEN, FakeHub, fake_hub

from unsloth_accel.adapters import pushing
from unsloth_accel.adapters.pushing import Pushes, command, push
from unsloth_accel.artifacts.own_files import write_record
from unsloth_accel.config.push_target import PushTarget
from unsloth_accel.config.read_run import from_dict

TO_LOAD = ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md", "versions.json")
OF_THE_RUN = ("run.planned.yaml", "accelerate.yaml")
OF_TRAINING = (
    *("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "rng_state_1.pth", "trainer_state.json"),
    *("training_args.bin", "optimizer_dcp/.metadata"),
)
CARD = "---\nbase_model: owner/base\nlibrary_name: peft\n---\n# it\n"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        yield hub


def target(**said: Any) -> PushTarget:
    training = {"push_to_hub": True, "hub_token": TOKEN, "hub_model_id": "someone/it", **said}
    values = {"model": {"name": "owner/base"}, "data": {"path": "rows.jsonl"}, "training": training}
    found = PushTarget.of(from_dict(values | {"output_dir": "runs/a-run"}))
    assert found is not None
    return found


def pushes_to(**said: Any) -> Pushes:
    return Pushes(target(**said), lambda fault, step: pytest.fail(fault))


def written(directory: Path, *more: str) -> Path:
    for name in (*TO_LOAD, *more):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(CARD if name == "README.md" else f"{directory.name}: {name}", encoding="utf-8")
    write_record(directory)
    (directory / "notes.txt").write_text("a user's own", encoding="utf-8")
    return directory


class State:
    is_world_process_zero = True

    def __init__(self, step: int) -> None:
        self.global_step = step


class Arguments:
    def __init__(self, out: Path) -> None:
        self.output_dir = str(out)


def saved(pushes: Pushes, out: Path, step: int) -> None:
    written(out / f"checkpoint-{step}", *OF_TRAINING)
    pushes.on_save(Arguments(out), State(step), None)  # type: ignore[arg-type]


def test_what_loads_the_adapter_is_pushed_and_nothing_else(hub: FakeHub, tmp_path: Path) -> None:
    adapter = written(tmp_path / "adapter", *OF_THE_RUN)
    pushes = pushes_to()
    assert pushes.finish(adapter, 6) == {"repository": "someone/it", "url": f"{hub.url}/someone/it"}
    assert {*hub.files["someone/it"]["main"]} == {*TO_LOAD}
    assert hub.files["someone/it"]["main"]["adapter_model.safetensors"] == b"adapter: adapter_model.safetensors"
    assert hub.commits == [("someone/it", "main", "End of training")]
    assert hub.private == {"someone/it": False}


def test_the_fields_of_the_push(hub: FakeHub, tmp_path: Path) -> None:
    """A name without its owner, a private repository, a branch that isn't there yet."""
    adapter = written(tmp_path / "adapter")
    url = push(adapter, target(hub_model_id="mine", hub_private_repo=True, hub_revision="v2"), "x")
    assert (url, hub.private) == (f"{hub.url}/someone/mine/tree/v2", {"someone/mine": True})
    assert {*hub.files["someone/mine"]["v2"]} == {*TO_LOAD}
    assert hub.files["someone/mine"]["main"] == {}
    assert push(adapter, target(hub_model_id=None), "x") == f"{hub.url}/someone/a-run", "named as output_dir"


@pytest.mark.parametrize(
    ("strategy", "folders"),
    [
        ("end", None),
        ("every_save", set()),
        ("checkpoint", {"last-checkpoint"}),
        ("all_checkpoints", {"checkpoint-2", "checkpoint-4"}),
    ],
)
def test_pushes_at_checkpoints(hub: FakeHub, tmp_path: Path, strategy: str, folders: set[str] | None) -> None:
    pushes = pushes_to(hub_strategy=strategy, hub_always_push=True)
    for step in (2, 4):
        saved(pushes, tmp_path, step)
    assert "error" not in pushes.finish(written(tmp_path / "adapter"), 6)
    files = hub.files["someone/it"]["main"]
    assert files["adapter_config.json"] == b"adapter: adapter_config.json", "the last one's"
    held = {name.partition("/")[0] for name in files if "/" in name}
    assert held == (folders or set())
    titles = [title for _, _, title in hub.commits]
    assert titles[-1] == "End of training"
    assert ("Training in progress, step 2" in titles) == (folders is not None)
    for folder in held:
        inside = {name.partition("/")[2] for name in files if name.startswith(f"{folder}/")}
        assert inside == {*TO_LOAD, *OF_TRAINING, "unsloth_accel.json"}, "all that a run goes on from"
        assert json.loads(files[f"{folder}/unsloth_accel.json"])["files"].keys() == {*TO_LOAD, *OF_TRAINING}
    if strategy == "checkpoint":
        assert files["last-checkpoint/optimizer.pt"] == b"checkpoint-4: optimizer.pt"


def test_training_does_not_wait_for_a_push(hub: FakeHub, tmp_path: Path) -> None:
    """Nor does a second one begin while the first is on its way, but with hub_always_push."""
    hub.hold.clear()
    later = threading.Timer(60, hub.hold.set)
    later.start()
    often, always = pushes_to(), pushes_to(hub_model_id="someone/other", hub_always_push=True)
    for pushes in (often, always):
        saved(pushes, tmp_path, 2)
        saved(pushes, tmp_path, 4)
    assert not hub.hold.is_set(), "it waited until the Hub took them"
    later.cancel()
    hub.hold.set()
    adapter = written(tmp_path / "adapter")
    assert all("error" not in one.finish(adapter, 6) for one in (often, always))
    titles = {name: [title for to, _, title in hub.commits if to == name] for name in hub.files}
    assert titles["someone/it"] == ["Training in progress, step 2", "End of training"]
    assert titles["someone/other"] == [*(f"Training in progress, step {n}" for n in (2, 4)), "End of training"]


def test_a_push_that_fails(hub: FakeHub, tmp_path: Path) -> None:
    """Told while it trains, with the next log; told at the end with a command that works; never raised."""
    told: list[tuple[str, int]] = []
    pushes = Pushes(target(hub_private_repo=True, hub_revision="v2"), lambda *what: told.append(what))
    hub.fails["/commit/"] = 403
    saved(pushes, tmp_path, 2)
    assert pushes._last is not None
    pushes._last.join()
    pushes.on_log(Arguments(tmp_path), State(3), None)  # type: ignore[arg-type]
    ((fault, step),) = told
    assert "checkpoint-2 was not pushed to someone/it: HfHubHTTPError" in fault
    assert step == 3
    adapter = written(tmp_path / "adapter", *OF_THE_RUN)
    found = pushes.finish(adapter, 6)
    assert (found["repository"], found["url"]) == ("someone/it", None)
    fault = found["error"]
    assert told[1:] == [(fault, 6)]
    assert "adapter was not pushed to someone/it: HfHubHTTPError" in fault
    assert f"It lies whole in {adapter}. Fix: hf upload someone/it {adapter} ." in fault
    assert TOKEN not in fault
    assert {path.name for path in adapter.iterdir()} >= {*TO_LOAD, *OF_THE_RUN}
    hub.fails.clear()
    words = command(adapter, pushes.target).split()
    code = "import sys; from huggingface_hub.cli.hf import main; sys.argv = ['hf', *sys.argv[1:]]; main()"
    environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code, *words[1:]], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {*hub.files["someone/it"]["v2"]} == {*TO_LOAD}


@pytest.mark.parametrize(
    ("part", "statuses", "tries"),
    [
        ("/commit/", [500, 502], 3),
        ("/repos/create", [503], 2),
        ("/commit/", [429], 2),
        ("/commit/", [0], 2),
        ("/commit/", [500] * 3, 3),
        ("/commit/", [403], 1),
    ],
    ids=["twice at the commit", "at the repository", "too often", "cut off", "for good", "refused"],
)
def test_the_last_push_is_tried_again(
    part: str, statuses: list[int], tries: int, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the Hub fails; not where it refuses. Nothing pushes after it, and huggingface_hub tries a commit once."""
    monkeypatch.setattr(pushing, "AGAIN", (0.01, 0.01))
    answer, left = hub.answer, iter(statuses)
    asked: list[str] = []

    def fails(method: str, path: str, *more: Any) -> Any:
        if part not in path:
            return answer(method, path, *more)
        asked.append(path)
        status = next(left, None)
        if status == 0:
            raise SystemExit  # of the thread that answers: the connection ends without a word
        return answer(method, path, *more) if status is None else (status, {"error": "fails"})

    monkeypatch.setattr(hub, "answer", fails)
    told: list[str] = []
    found = Pushes(target(), lambda fault, step: told.append(fault)).finish(written(tmp_path / "adapter"), 6)
    works = statuses not in ([500] * 3, [403])
    assert len(asked) == tries
    assert ("error" not in found, bool(hub.commits), told == []) == (works,) * 3


def test_a_hub_that_does_not_answer(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(pushing, "PATIENCE", 0.2)
    hub.hold.clear()
    adapter = written(tmp_path / "adapter")
    Pushes(target(), lambda fault, step: told.append(fault)).finish(adapter, 6)
    assert "the Hub has not answered for 0 s" in told.pop()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(pushing, "PATIENCE", 60.0)
    monkeypatch.setattr(pushing, "AGAIN", ())
    Pushes(target(), lambda fault, step: told.append(fault)).finish(adapter, 6)
    assert "was not pushed to someone/it: ConnectError" in told.pop()


HANGING = """
import sys, threading
from pathlib import Path
from fake_hub import fake_hub
from huggingface_hub import constants
from test_pushing import pushing, pushes_to, written
with fake_hub() as hub:
    constants.ENDPOINT, constants.HF_HUB_DISABLE_XET, constants.HF_HUB_OFFLINE = hub.url, True, False
    answer, never = hub.answer, threading.Event()
    hub.answer = lambda method, *more: never.wait() if method == "PUT" else answer(method, *more)
    pushing.PATIENCE = 1
    pushes = pushing.Pushes(pushes_to().target, lambda *told: None)
    adapter = written(Path(sys.argv[1]), "other.safetensors")  # two, which huggingface_hub has threads for
    print(pushes.finish(adapter, 6)["error"], pushes._last.is_alive())
"""


@pytest.mark.slow
def test_an_upload_that_hangs_holds_no_process(tmp_path: Path) -> None:
    place = Path(__file__).resolve().parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (place, place.parent, ROOT)))}
    words = [sys.executable, "-c", HANGING, str(tmp_path / "adapter")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "the Hub has not answered for 1 s" in done.stdout
    assert done.stdout.endswith("True\n"), "it goes on"


def test_no_push_of_a_checkpoint_that_was_not_written(hub: FakeHub, tmp_path: Path) -> None:
    pushes = pushes_to()
    pushes.on_save(Arguments(tmp_path), State(2), None)  # type: ignore[arg-type]
    assert pushes._last is None
