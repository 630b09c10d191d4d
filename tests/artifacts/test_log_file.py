"""Logs on a disk without room: told once, never raised, and written again when there is room."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import ROOT, fill

from unsloth_accel.artifacts import log_file
from unsloth_accel.artifacts.log_file import LogFile, write_or_tell
from unsloth_accel.callbacks.rank_log import RankLog
from unsloth_accel.files import why_unwritten
from unsloth_accel.report.run_record import read_lines


@pytest.fixture(autouse=True)
def _untold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_file, "_told", False)


def test_lines_that_had_no_room_are_written_when_there_is(small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In their order, each whole, one that was written in part too."""
    log = RankLog(small_disk, 0)
    log.write("start", world_size=1)
    filler = fill(small_disk)
    for step in range(200):
        log.write("step", step=step, message="x" * 100)
    assert capsys.readouterr().err.count("logs can't be written: No space left on device; training goes on") == 1
    assert 0 < len(read_lines(small_disk / "rank-0.jsonl")) < 200
    filler.unlink()
    log.write("end")
    lines = read_lines(small_disk / "rank-0.jsonl")
    assert [line.get("step") for line in lines] == [None, *range(200), None]
    assert capsys.readouterr().err == ""


def test_threads_write_whole_lines_once(tmp_path: Path) -> None:
    log = RankLog(tmp_path, 0)
    threads = [threading.Thread(target=lambda: [log.write("step", step=step) for step in range(500)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(line["step"] for line in read_lines(tmp_path / "rank-0.jsonl")) == sorted([*range(500)] * 4)


def test_a_file_that_can_not_be_made_at_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its place is a file; then it isn't."""
    (tmp_path / "logs").write_text("", encoding="utf-8")
    log = LogFile(tmp_path / "logs" / "a.log", anew=True)
    log.write(b"one\n")
    write_or_tell(tmp_path / "logs" / "results.json", "{}")
    assert capsys.readouterr().err.count("unsloth_accel: warning: logs can't be written: ") == 1
    (tmp_path / "logs").unlink()
    log.write(b"two\n")
    assert (tmp_path / "logs" / "a.log").read_bytes() == b"one\ntwo\n"


def test_one_process_of_a_machine_tells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    LogFile("/dev/full").write(b"x")
    write_or_tell(Path("/dev/null/results.json"), "{}")
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("LOCAL_RANK", "0")
    LogFile("/dev/full").write(b"x")
    assert "Fix: make room there." in capsys.readouterr().err


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_print_ends_no_process(unbuffered: str) -> None:
    """Into a file on a full disk, and into a pipe that nobody reads any more."""
    code = (
        "import sys\nfrom unsloth_accel.artifacts.log_file import keep_printing\nkeep_printing()\n"
        "for n in range(3): print('x' * 9000, flush=True)\nprint('y', file=sys.stderr)\nsys.exit(7)"
    )
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        words = [sys.executable, "-c", code]
        environment = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered}
        assert subprocess.run(words, stdout=full, stderr=full, env=environment).returncode == 7
    done = subprocess.Popen(words, stdout=subprocess.PIPE, env=environment)
    assert done.stdout is not None
    done.stdout.close()
    assert done.wait() == 7


@pytest.mark.parametrize(
    ("error", "reason", "fix"),
    [
        (OSError(errno.ENOSPC, "x"), "No space left on device", "make room there"),
        (OSError(errno.EDQUOT, "x"), "Disk quota exceeded", "make room there"),
        (OSError(errno.EROFS, "x"), "Read-only file system", "mount it for writing"),
        (PermissionError(errno.EACCES, "x"), "Permission denied", "let the user that trains write there"),
        (FileNotFoundError(errno.ENOENT, "no", "a/b"), "[Errno 2] no: 'a/b' (No such file or directory)", "bring the"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "No space left on device", "make room"),
        (RuntimeError("unexpected pos 64 vs 0"), "unexpected pos 64 vs 0", "see that it can be written"),
    ],
)
def test_the_fix_fits_the_error(error: Exception, reason: str, fix: str, tmp_path: Path) -> None:
    found = why_unwritten(error, tmp_path)
    assert found[0] == reason
    assert found[1].startswith(fix)


def test_an_error_that_does_not_say_why_is_looked_into(small_disk: Path) -> None:
    """As torch's, whose writer only says that a position is another."""
    fill(small_disk)
    found = why_unwritten(RuntimeError("unexpected pos 64 vs 0"), small_disk / "checkpoint-2")
    assert found == ("No space left on device", "make room there")
