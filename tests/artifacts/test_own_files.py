"""A user's own files: none is touched, whatever it is called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import finished_run

from unsloth_accel import files
from unsloth_accel.artifacts import own_files
from unsloth_accel.artifacts.run_directory import RunDirectory


def written(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(name, encoding="utf-8")


def held(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


def test_whose_a_directory_is(tmp_path: Path) -> None:
    assert not own_files.is_of_a_run(tmp_path)
    (tmp_path / "accelerate.yaml").write_text("# fsdp2, written by unsloth-accel config. Launch:", encoding="utf-8")
    assert not own_files.is_of_a_run(tmp_path), "a config that was asked for alone"
    written(tmp_path, "results.json", "logs/steps.jsonl", "adapter/adapter_config.json", "errors/rank-0.json")
    assert own_files.products(tmp_path) == own_files.errors_of(tmp_path) == own_files.describing(tmp_path) == []
    (told,) = own_files.taken(tmp_path)
    assert "accelerate.yaml, results.json, adapter, logs/steps.jsonl and errors/rank-0.json, which no" in str(told)
    finished_run(tmp_path)
    assert own_files.taken(tmp_path) == []
    assert len(own_files.products(tmp_path)) == 3


def test_a_users_own_files_may_be_called_much_as_a_ranks(tmp_path: Path) -> None:
    """A report that isn't one would end the launcher where it tells what failed, too."""
    finished_run(tmp_path)
    ours = ("logs/rank-0.jsonl", "logs/rank-1.log", "logs/rank-12.stacks", "logs/heartbeat-1.json")
    ours += ("logs/flight-record-0", "logs/flight-record-1.json", "errors/rank-1.json")
    mine = ("logs/rank-notes.log", "logs/rank-0.bak.jsonl", "logs/flight-record-1.txt", "errors/rank-all.json")
    written(tmp_path, *ours, *mine)
    found = {*own_files.products(tmp_path), *own_files.errors_of(tmp_path)}
    found = {path.relative_to(tmp_path).as_posix() for path in found}
    assert {name for name in found if "/rank" in name or "/heart" in name or "/flight" in name} == {*ours}
    assert [path.name for path in RunDirectory(tmp_path).told_errors()] == ["rank-1.json"]


def test_a_record_tells_what_is_ours(tmp_path: Path) -> None:
    """Also under a name that any adapter has; without one the usual names do."""
    adapter = tmp_path / "adapter"
    written(adapter, "adapter_config.json", "vocab.json", "notes.md", "mine/tokenizer.json")
    made = {path.relative_to(adapter).as_posix() for path in own_files.made_in(adapter)}
    assert made == {"adapter_config.json", "vocab.json"}
    record = {"files": {"adapter_config.json": 1, "gone.json": 1}}
    (adapter / "unsloth_accel.json").write_text(json.dumps(record), encoding="utf-8")
    made = {path.name for path in own_files.made_in(adapter)}
    assert made == {"adapter_config.json", "unsloth_accel.json"}
    own_files.remove_filled(adapter)
    assert held(adapter) == {"vocab.json", "notes.md", "mine/tokenizer.json"}
    other = tmp_path / "other"
    with own_files.filling(other) as directory:
        written(directory, "a", "b/c")
    own_files.remove_filled(other)
    assert not other.exists(), "with nothing of a user's in it"
    assert tmp_path.is_dir()


def test_what_a_user_put_into_it_stays_when_it_is_filled_anew(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    for names in (("adapter_config.json", "old.json", "sub/old"), ("adapter_config.json", "new.json")):
        with own_files.filling(adapter) as directory:
            written(directory, *names)
        written(adapter, "notes.md", "sub/mine")
    assert held(adapter) == {"adapter_config.json", "new.json", "unsloth_accel.json", "notes.md", "sub/mine"}
    for _ in range(2):  # of a name that the run's own takes, it gets another
        with own_files.filling(adapter) as directory:
            written(directory, "adapter_config.json", "notes.md")
    assert held(adapter) == {"adapter_config.json", "unsloth_accel.json", "notes.md", "notes.md.kept", "sub/mine"}
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_a_user_put_into_it_outlives_a_fault(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that strikes when the new files are in their place, and the user's own are not yet."""
    adapter = tmp_path / "adapter"
    with own_files.filling(adapter) as directory:
        written(directory, "a")
    written(adapter, "notes.md", "sub/mine")
    mkdir = Path.mkdir

    def fails(path: Path, *args: Any, **kwargs: Any) -> None:
        if path == adapter / "sub":
            raise error
        mkdir(path, *args, **kwargs)

    def filled_anew() -> None:
        with own_files.filling(adapter) as directory:
            written(directory, "a", "b")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", fails)
        with pytest.raises(type(error)):
            filled_anew()
    assert {"a", "b"} <= held(adapter)
    monkeypatch.setattr(files, "_is_gone", lambda *_: True)
    own_files.clear_run(tmp_path)
    assert held(adapter) == {"a", "b", "unsloth_accel.json", "notes.md", "sub/mine"}
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """To an empty directory it may be there before the first run."""
    place = tmp_path / "disk" / "place"
    place.mkdir(parents=True)
    (tmp_path / "adapter").symlink_to(place)
    assert own_files.taken(tmp_path) == []
    written(place, "mine")
    assert "holds adapter, which no run" in str(*own_files.taken(tmp_path))
    (place / "mine").unlink()
    with own_files.filling(tmp_path / "adapter") as directory:
        written(directory, "a")
    assert (tmp_path / "adapter").is_symlink()
    assert held(place) == {"a", "unsloth_accel.json"}
    assert own_files.made_in(tmp_path / "adapter") == [], "what it leads to isn't removed"


@pytest.mark.parametrize("name", ["logs", "errors"])
def test_a_file_in_the_place_of_a_directory(name: str, tmp_path: Path) -> None:
    finished_run(tmp_path)
    written(tmp_path, name)
    assert f"holds {name}, which" in str(own_files.taken(tmp_path)[0])


def test_what_ranks_have_begun_is_no_users(tmp_path: Path) -> None:
    """Where nothing of ours launched them, rank 0 looks when others may have written."""
    written(tmp_path, "logs/rank-1.log", "logs/rank-1.jsonl", "errors/rank-1.json")
    assert own_files.taken(tmp_path)
    assert own_files.taken(tmp_path, per_rank=False) == []
    written(tmp_path, "results.json")
    assert own_files.taken(tmp_path, per_rank=False)
    assert own_files.taken(tmp_path, only=[RunDirectory(tmp_path).plan]) == []


PLACES = ("adapter", "checkpoint-3", "logs", "errors", "_unsloth-accel-previous")


@pytest.mark.parametrize("known", [True, False], ids=["a run's", "nobody's"])
def test_a_link_that_leads_nowhere_is_told_before(known: bool, tmp_path: Path) -> None:
    """Of every directory that a run fills, all together: an adapter's would be found when training is done."""
    if known:
        finished_run(tmp_path)
        own_files.remove_filled(tmp_path / "adapter")
    for name in PLACES:
        (tmp_path / name).symlink_to(tmp_path / "disk" / name)
    told = own_files.taken(tmp_path, checkpoints=False)
    assert [problem.key for problem in told] == ["output_dir"] * len(PLACES)
    for name, problem in zip(
        ("logs", "errors", "adapter", "_unsloth-accel-previous", "checkpoint-3"), told, strict=True
    ):
        assert f"holds {name}, a link to {tmp_path / 'disk' / name}, which isn't there" in problem.consequence
        assert f"mkdir -p {tmp_path / 'disk' / name}" in problem.fix
        (tmp_path / "disk" / name).mkdir(parents=True)
    left = [str(problem) for problem in own_files.taken(tmp_path, checkpoints=False)]
    assert len(left) == 1
    assert "_unsloth-accel-previous" in left[0], "which a run would move its files to"
    assert "holds _unsloth-accel-previous, which" in left[0], "and not the empty place of an adapter"


def test_a_place_that_nothing_can_take_is_told_before(tmp_path: Path, small_disk: Path) -> None:
    """A disk's own directory can't be renamed, so an adapter could not take its place once training is done."""
    out = finished_run(tmp_path / "out")
    own_files.remove_filled(out / "adapter")
    (out / "adapter").symlink_to(small_disk)
    (told,) = own_files.taken(out)
    assert f"{out / 'adapter'} leads to {small_disk}, whose place the new adapter can't take" in str(told)
    place = small_disk / "adapter"
    assert f"Fix: mkdir -p {place}; ln -sfn {place} {out / 'adapter'}" in str(told)
    place.mkdir()
    (out / "adapter").unlink()
    (out / "adapter").symlink_to(place)
    assert own_files.taken(out) == []
    with own_files.filling(out / "adapter") as directory:
        written(directory, "a")


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("link", [True, False])
def test_a_file_where_a_run_makes_a_directory(name: str, link: bool, tmp_path: Path) -> None:
    finished_run(tmp_path)
    own_files.remove_filled(tmp_path / "adapter")
    written(tmp_path, "mine" if link else name)
    if link:
        (tmp_path / name).symlink_to("mine")
    (told,) = own_files.taken(tmp_path)
    assert f"holds {name}, which" in str(told)


def test_a_checkpoint_that_is_a_link_is_no_place_to_write(tmp_path: Path) -> None:
    """A run may go on from it; one that starts anew would write into the directory that it leads to."""
    finished_run(tmp_path)
    written(tmp_path / "mine", "adapter_config.json")
    (tmp_path / "checkpoint-3").symlink_to("mine")
    (told,) = own_files.taken(tmp_path)
    assert "holds checkpoint-3, which no run" in str(told)
    assert own_files.taken(tmp_path, checkpoints=False) == []


def test_links_of_a_users_in_a_filled_directory_stay(tmp_path: Path) -> None:
    place, adapter = tmp_path / "place", tmp_path / "adapter"
    written(place, "mine")
    with own_files.filling(adapter) as directory:
        written(directory, "a")
    for name, target in (("there", place), ("nowhere", tmp_path / "none"), ("file", place / "mine")):
        (adapter / name).symlink_to(target)
    with own_files.filling(adapter) as directory:
        written(directory, "a")
    assert {path.name for path in adapter.iterdir() if path.is_symlink()} == {"there", "nowhere", "file"}
    own_files.remove_filled(adapter)
    assert held(place) == {"mine"}
    assert {path.name for path in adapter.iterdir()} == {"there", "nowhere", "file"}


def test_a_killed_ranks_heartbeat_goes_with_its_errors(tmp_path: Path) -> None:
    """Its logs and stacks stay for the run that goes on."""
    finished_run(tmp_path)
    files = RunDirectory(tmp_path)
    for path in (files.heartbeat(1), files.rank_stacks(1), files.rank_error(1), files.hang):
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}", encoding="utf-8")
    assert {*own_files.errors_of(tmp_path)} == {files.heartbeat(1), files.rank_error(1), files.hang}
