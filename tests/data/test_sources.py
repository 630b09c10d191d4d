import hashlib
import os
import re
from pathlib import Path
from typing import Any

import pytest
from row_files import ALPACA, write

from unsloth_accel.config.read_run import from_dict
from unsloth_accel.data import sources
from unsloth_accel.data.sources import locate
from unsloth_accel.errors import ConfigError
from unsloth_accel.validation.inputs import input_problems


def test_rows_of_the_hub_are_left_to_the_launch(description: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unsloth_accel.validation.inputs.access_problems", lambda *where: [])
    assert locate("trl-lib/Capybara").hub == "trl-lib/Capybara"
    assert input_problems(from_dict({**description, "data": {"path": "trl-lib/Capybara"}})) == []


def test_a_directory_of_several_kinds_and_one_of_none(tmp_path: Path) -> None:
    write(tmp_path / "a" / "x.csv", ALPACA)
    write(tmp_path / "a" / "x.jsonl", ALPACA)
    (tmp_path / "b").mkdir()
    for path, words in (("a", "several kinds (csv, jsonl)"), ("b", "no file of rows"), ("b/*.csv", "no file matches")):
        with pytest.raises(ConfigError, match=re.escape(words)):
            locate(tmp_path / path)


@pytest.mark.parametrize(
    ("names", "one"),
    [
        (("train/data.jsonl", "test/data.jsonl"), "train"),
        (("data/train-0.jsonl", "data/train-1.jsonl", "data/validation-0.jsonl"), "data/*train*.jsonl"),
        (("a/train.jsonl", "b/train.jsonl", "b/test.jsonl"), "**/train*.jsonl"),
    ],
)
def test_a_directory_of_several_splits(names: tuple[str, ...], one: str, tmp_path: Path) -> None:
    """All of which would be trained, those to test on, too; and what is proposed names the first alone."""
    for name in names:
        write(tmp_path / "set" / name, ALPACA)
    with pytest.raises(ConfigError, match="holds several splits") as refused:
        locate(tmp_path / "set")
    assert f"such as {tmp_path / 'set' / one};" in str(refused.value)
    assert {*locate(tmp_path / "set" / "**" / "*.jsonl").files} == {tmp_path / "set" / name for name in names}
    found = locate(tmp_path / "set" / one).files
    assert found == tuple(tmp_path / "set" / name for name in names if "train" in name)
    for name in names:
        if "train" not in name:
            (tmp_path / "set" / name).unlink()
    for name in ("unit-test.jsonl", "dev/train.jsonl", "python.dev.jsonl"):
        write(tmp_path / "set" / name, ALPACA)
    assert len(locate(tmp_path / "set").files) == 3 + len(found), "words within other names"


def test_braces_name_several_files_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.jsonl", "b.jsonl", "c/d.jsonl"):
        write(tmp_path / name, ALPACA)
    files = locate(tmp_path / "{b,a,c/*}.jsonl").files
    assert files == tuple(tmp_path / name for name in ("b.jsonl", "a.jsonl", "c/d.jsonl"))
    assert locate(tmp_path / "{a,*}.jsonl").files == (tmp_path / "a.jsonl", tmp_path / "b.jsonl"), "each once"
    monkeypatch.chdir(tmp_path)  # a long path is told in part
    with pytest.raises(ConfigError, match=r"none\.jsonl.*: no file matches it"):
        locate(Path("{a,none}.jsonl"))


def test_a_large_file_is_read_once_per_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    reads: list[Path] = []
    plain = sources._read_digest
    monkeypatch.setattr(sources, "_read_digest", lambda path: reads.append(path) or plain(path))
    file = tmp_path / "rows.jsonl"

    def in_another_process() -> str:
        sources._cached_digest.cache_clear()
        return sources.fingerprint(file)

    file.write_bytes(b"a" * sources.SMALL)
    found = in_another_process()
    assert found == hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    assert sources.fingerprint(file) == in_another_process() == found
    assert len(reads) == 1
    before = file.stat()
    file.write_bytes(b"b" * sources.SMALL)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as rsync --times does
    assert in_another_process() != found
    assert len(reads) == 2
    monkeypatch.setenv("HF_DATASETS_CACHE", str(file / "none"))  # where nothing can be written
    assert in_another_process() == hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    assert len(reads) == 3
