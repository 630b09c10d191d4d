"""Which of the processes writes; that all of it is there in real ones is in tests/training/test_own_script.py."""

import copy
import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from unsloth_accel.adapters import one_writer
from unsloth_accel.adapters.one_writer import let_one_write, once


class Holder:
    """What is saved."""

    def save_pretrained(self, save_directory: str, **how: Any) -> tuple[str, ...]:
        """Save."""
        Path(save_directory).mkdir()
        return (str(id(self)), *how)


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Have this process be rank 0, or another, of two that save, with a moment's patience."""

    def be(writes: bool, *, here: bool = True) -> Any:
        monkeypatch.setattr(one_writer, "_writes", writes)
        monkeypatch.setattr(one_writer, "_is_here", here)
        monkeypatch.setattr(one_writer, "_calls", one_writer.Counter())
        return once

    monkeypatch.setattr(one_writer, "_place", tmp_path / "notes")
    monkeypatch.setattr(one_writer, "PATIENCE", 0.05)
    return be


def test_the_others_get_what_the_writer_got(ranks: Any) -> None:
    """The second time too, and not that of another directory."""
    ranks(True)("merge", "out", lambda: "first")
    once("merge", "out", lambda: Path("second"))
    other = ranks(False)
    assert [other("merge", "out", pytest.fail) for _ in range(2)] == ["second", "second"]
    assert other("merge", "elsewhere", lambda: "own") == "own", "nobody else came to write that"


def test_the_writer_always_writes(ranks: Any) -> None:
    """What another rank had to write itself may be a part: transformers writes a model on rank 0 alone."""
    ranks(False)("save", "out", lambda: "own")
    assert ranks(True)("save", "out", lambda: "whole") == "whole"


def test_what_the_writer_failed_at_is_not_passed_off_as_done(ranks: Any) -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        ranks(True)("save", "out", fail)
    assert ranks(False)("save", "out", lambda: "own") == "own"


def test_a_machine_without_the_writer_writes_nothing(ranks: Any) -> None:
    assert ranks(False, here=False)("save", "out", pytest.fail) is None


def test_without_room_for_notes_it_is_saved_as_ever(ranks: Any, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("a file", encoding="utf-8")
    assert [ranks(writes)("save", "out", lambda: "own") for writes in (True, False)] == ["own", "own"]


def test_a_note_that_a_full_disk_cut_short_tells_nothing(ranks: Any, tmp_path: Path) -> None:
    ranks(True)("save", "out", lambda: "first")
    (note,) = (tmp_path / "notes").iterdir()
    note.write_bytes(note.read_bytes()[:-1])
    assert ranks(False)("save", "out", lambda: "own") == "own"


def test_the_last_to_end_removes_the_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the first to end had saved nothing."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    place = tmp_path / "notes"
    for rank, left in ((1, True), (0, False)):
        monkeypatch.setenv("RANK", str(rank))
        one_writer._leave(place)
        assert place.exists() == left


def test_a_script_that_was_not_adapted_merges_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_writer, "_place", None)
    assert once("merge", "out", lambda: "done") == "done"
    monkeypatch.setenv("RANK", "1")
    assert once("merge", "out", pytest.fail) is None


@pytest.fixture
def holder(ranks: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A tokenizer of a Trainer in two processes, of which this is rank 0."""
    ranks(True)
    monkeypatch.setattr(one_writer, "unwrapped", lambda model: model)
    tokenizer = Holder()
    args = SimpleNamespace(should_save=True, save_on_each_node=False)
    trainer: Any = Holder()
    trainer.args, trainer.accelerator = args, SimpleNamespace(num_processes=2)
    trainer.model, trainer.processing_class = Holder(), tokenizer
    let_one_write(trainer)
    return tokenizer


def test_what_is_guarded_can_be_copied_and_pickled(holder: Any, tmp_path: Path) -> None:
    """As `datasets` does with a tokenizer, and Unsloth with a model; a copy saves itself, and not what it is of."""
    assert holder.save_pretrained.__name__ == "save_pretrained"  # Unsloth looks at it
    copied = copy.deepcopy(holder)
    assert copied.save_pretrained(str(tmp_path / "one")) == (str(id(copied)),)
    loaded = pickle.loads(pickle.dumps(holder))
    assert loaded.save_pretrained(str(tmp_path / "two")) == (str(id(loaded)),)


def test_who_says_who_writes_is_left_alone(holder: Any, tmp_path: Path, ranks: Any) -> None:
    ranks(False)
    assert "is_main_process" in holder.save_pretrained(str(tmp_path / "own"), is_main_process=True)
    assert not (tmp_path / "notes").exists()


def test_a_save_within_a_save_waits_for_nobody(holder: Any, tmp_path: Path) -> None:
    """A merged model's tokenizer is saved by whom the model is."""
    inner = holder.save_pretrained

    def merge(*_: Any) -> Any:
        return inner(str(tmp_path / "inner"))

    one_writer._save(merge, "save_pretrained_merged", str(tmp_path / "outer"))
    (note,) = (tmp_path / "notes").iterdir()
    assert json.loads(note.read_text(encoding="utf-8"))["times"] == 1
