import os
from pathlib import Path
from typing import Any

import pytest

from unsloth_accel.files import replacing_directory, sizes_below, write_atomically


def test_text_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "a.txt"
    write_atomically(path, "one")
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "two")
    assert path.read_text(encoding="utf-8") == "one"
    assert [found.name for found in path.parent.iterdir()] == ["a.txt"]


def test_a_directory_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    for text in ("one", "two"):
        with replacing_directory(target) as temporary:
            (temporary / "file").write_text(text, encoding="utf-8")
            assert not (target / "file").exists() or (target / "file").read_text(encoding="utf-8") == "one"
    assert (target / "file").read_text(encoding="utf-8") == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_the_old_directory_stays_when_the_new_one_fails(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "adapter"
    target.mkdir()
    (target / "file").write_text("old", encoding="utf-8")

    def write_half() -> None:
        with replacing_directory(target) as temporary:
            (temporary / "file").write_text("half", encoding="utf-8")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert (target / "file").read_text(encoding="utf-8") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("error", [OSError("busy"), KeyboardInterrupt()])
def test_the_old_directory_comes_back_when_it_cannot_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    target = tmp_path / "adapter"
    target.mkdir()
    (target / "file").write_text("old", encoding="utf-8")
    rename = os.rename

    def fails(source: Any, destination: Any) -> None:
        if destination == target and not str(source).endswith(".old"):
            raise error
        rename(source, destination)

    monkeypatch.setattr(os, "rename", fails)
    with pytest.raises(type(error)), replacing_directory(target):
        pass
    assert (target / "file").read_text(encoding="utf-8") == "old"


def test_files_that_another_rank_removes_are_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("c", "b/a", "gone"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    seen = Path.is_file

    def removed(path: Path) -> bool:
        there = seen(path)
        if path.name == "gone":
            path.unlink()
        return there

    monkeypatch.setattr(Path, "is_file", removed)
    assert [*sizes_below(tmp_path).items()] == [("b/a", 3), ("c", 1)]
