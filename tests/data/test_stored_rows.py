"""A cache of tokenised rows that a full disk or a killed process poisoned: made anew, and no run ends for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import SMOLLM2, fill
from datasets import Dataset
from row_files import write

from unsloth_accel.config.read_run import from_dict
from unsloth_accel.data import hub, prepare, sources
from unsloth_accel.data.pack import packed
from unsloth_accel.data.stored_rows import stored
from unsloth_accel.errors import ConfigError


def rows_file(place: Path) -> Path:
    (found,) = (place / "rows").glob("*.arrow")
    return found


def zeros(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


HARM: dict[str, Callable[[Path], Any]] = {
    "an empty report": lambda place: (place / "unsloth_accel.json").write_bytes(b""),
    "no report": lambda place: (place / "unsloth_accel.json").unlink(),
    "empty rows": lambda place: rows_file(place).write_bytes(b""),
    "rows cut short": lambda place: rows_file(place).write_bytes(rows_file(place).read_bytes()[:-100]),
    "rows without their bytes": lambda place: zeros(rows_file(place)),
    "an empty state": lambda place: (place / "rows" / "state.json").write_bytes(b""),
    "a file in its place": lambda place: (place.rename(place.with_name("other")), place.write_bytes(b"")),
}


@pytest.mark.parametrize("harm", HARM)
def test_what_is_not_whole_is_made_anew(harm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, made = tmp_path / "cache" / "name", []

    def make() -> tuple[Dataset, dict[str, Any]]:
        made.append(1)
        return Dataset.from_dict({"input_ids": [[1, 2], [3]]}), {"rows": 2}

    for times in (1, 1):
        dataset, report = stored(place, make)
        assert (dataset[:], report, len(made)) == ({"input_ids": [[1, 2], [3]]}, {"rows": 2}, times)
    assert capsys.readouterr().out == ""
    HARM[harm](place)
    dataset, report = stored(place, make)
    assert (dataset[:], report, len(made)) == ({"input_ids": [[1, 2], [3]]}, {"rows": 2}, 2)
    assert f"{place} is damaged or cut short: it is made anew" in capsys.readouterr().out
    assert stored(place, make)[1] == report
    assert len(made) == 2


def described(tmp_path: Path, out: Path) -> Any:
    path = write(tmp_path / "rows.jsonl", [{"text": f"row {n}" * 9} for n in range(9)])
    model = {"name": str(SMOLLM2), "max_seq_length": 64}
    return from_dict({"model": model, "data": {"path": str(path)}, "output_dir": str(out)})


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(SMOLLM2)


def test_a_cache_without_room(
    tmp_path: Path,
    small_disk: Path,
    tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The run's own directory takes the rows; where that has no room either, both are told, with the fix."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(small_disk / "cache"))
    filler = fill(small_disk)
    made = prepare.prepare(described(tmp_path, tmp_path / "out"), tokenizer)
    assert len(made.train) == 9
    assert made.train_directory is not None
    assert made.train_directory.parent == tmp_path / "out" / "data"
    told = f"tokenised rows can't be kept in {small_disk / 'cache' / 'unsloth_accel'}: No space left on device"
    assert told in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"kept in .*cache.*\(make room there\); in .*out/data.*HF_DATASETS_CACHE"):
        prepare.prepare(described(tmp_path, small_disk / "out"), tokenizer)
    again = packed(made.train, small_disk / "packed", 64, "bfd")
    assert 0 < len(again) < 9
    assert "packed rows stay in memory" in capsys.readouterr().out
    filler.unlink()
    made = prepare.prepare(described(tmp_path, tmp_path / "out"), tokenizer)
    assert made.train_directory is not None
    assert made.train_directory.parent == small_disk / "cache" / "unsloth_accel"
    assert not list(small_disk.rglob(".*unsloth-accel*")), "halves are left"


def test_an_empty_digest_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of another file would be found under its name."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"a" * sources.SMALL)
    sources._cached_digest.cache_clear()
    found = sources.fingerprint(file)
    (kept,) = (path for path in (tmp_path / "cache").rglob("digests/*") if path.suffix != ".lock")
    kept.write_bytes(b"")
    sources._cached_digest.cache_clear()
    assert sources.fingerprint(file) == found
    assert kept.read_text(encoding="ascii") == found


def test_a_set_of_the_hub_that_is_damaged_in_the_cache_of_datasets(
    tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here a directory of files, which goes the same way; and a cache without room is told with the fix."""
    import datasets

    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "train.jsonl", [{"text": f"row {n}"} for n in range(3)])
    assert len(hub.load(str(tmp_path / "set"), "data.path", None)) == 3
    (kept,) = cache.rglob("*.arrow")
    kept.write_bytes(b"")
    assert len(hub.load(str(tmp_path / "set"), "data.path", None)) == 3
    assert "is damaged in the cache of datasets (Tried reading schema message, was null or length 0): made anew" in (
        capsys.readouterr().out
    )
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", small_disk)
    fill(small_disk)
    with pytest.raises(ConfigError, match=r"Fix: make room in .*, or set HF_DATASETS_CACHE"):
        hub.load(str(tmp_path / "set"), "data.path", None)
