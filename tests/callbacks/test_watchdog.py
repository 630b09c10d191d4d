"""What one rank sees of the others: with real processes, and without a training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from unsloth_accel.artifacts.run_directory import RunDirectory
from unsloth_accel.callbacks import heartbeat, watch_ranks, watchdog
from unsloth_accel.callbacks.hang_stacks import Stacks
from unsloth_accel.callbacks.hang_verdict import Seen, Verdict
from unsloth_accel.callbacks.heartbeat import Beat, write_beat
from unsloth_accel.callbacks.rank_log import RankLog
from unsloth_accel.callbacks.stop_request import REQUEST, Stopped
from unsloth_accel.callbacks.watchdog import Watchdog
from unsloth_accel.files import this_machine, write_atomically
from unsloth_accel.launch.living import state_of
from unsloth_accel.report.run_record import read_lines

OWN = Beat(rank=0, host=this_machine(), pid=os.getpid(), started=1.0, idle=70.0, still=70.0, waits=True, place="here")

LEAVES = Watchdog._leave_at_last


@pytest.fixture
def files(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


@pytest.fixture
def dog(files: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> Watchdog:
    monkeypatch.setattr(Watchdog, "_leave_at_last", lambda *_: None)  # it would end this process, seconds later
    stacks = Stacks(files, 0)
    return Watchdog(files, RankLog(files.logs, 0), 2, 30.0, lambda: "Fix: again.", stacks, aloud=True)


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"], text=True,
                          stdout=subprocess.PIPE) as made:  # fmt: skip
        assert made.stdout is not None
        made.stdout.readline()
        yield made
        made.kill()


def beat_of(process: subprocess.Popen[str], **said: Any) -> Beat:
    return Beat(rank=1, host=this_machine(), pid=process.pid, started=state_of(process.pid)[1], **said)


def look(dog: Watchdog, times: int, own: Beat = OWN) -> None:
    for _ in range(times):
        dog.look(own, 3.0)


def test_a_stopped_process_is_told_from_one_that_has_ended(
    dog: Watchdog, files: RunDirectory, process: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_beat(files.heartbeat(1), beat_of(process, place="there"))
    ended: list[Any] = []
    monkeypatch.setattr(dog, "_end", lambda own, found: ended.append(found))
    look(dog, 2)
    assert dog._seen[1].process == "busy"  # until it is seen not to be
    look(dog, 3)
    assert dog._seen[1].process == "quiet"
    process.send_signal(signal.SIGSTOP)
    while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.01)
    look(dog, 1)
    assert dog._seen[1].process == "stopped"
    assert not ended
    look(dog, 6)
    assert "rank 1 hangs: stopped (SIGSTOP) for " in ended[0].message
    assert "last seen in there; rank 0 is in here" in ended[0].message
    process.kill()
    process.wait()
    count = len(ended)
    look(dog, 3)
    assert dog._seen[1].process == "gone"
    assert len(ended) == count
    look(dog, 5)  # torchrun has told nothing: it takes it for finished
    assert ended[-1].message == "rank 1 left after step 0, before the end and without an error; rank 0 is in here"


def test_who_left_in_the_middle(files: RunDirectory, process: subprocess.Popen[str]) -> None:
    """A rank that ends its heartbeat or leaves an error has not."""
    files.logs.mkdir(parents=True)
    write_beat(files.heartbeat(1), beat_of(process))
    assert watch_ranks.who_left(files, 0, 2) == []
    process.kill()
    process.wait()
    assert watch_ranks.who_left(files, 0, 2) == [1]
    assert watch_ranks.who_left(files, 1, 2) == []
    write_atomically(files.rank_error(1), "{}")
    assert watch_ranks.who_left(files, 0, 2) == []


def test_what_was_silent_before_the_first_look_counts(
    dog: Watchdog, files: RunDirectory, process: subprocess.Popen[str]
) -> None:
    """As far as this rank has waited: a machine that slept is nobody's silence."""
    write_beat(files.heartbeat(1), beat_of(process))
    os.utime(files.heartbeat(1), (time.time() - 20, time.time() - 20))
    write_beat(files.heartbeat(0), OWN)
    look(dog, 1, replace(OWN, idle=7.0))
    assert dog._seen[1].silent == 7.0
    dog._seen.clear()
    look(dog, 1)
    assert 19 < dog._seen[1].silent < 25


def test_another_process_with_its_number_is_not_the_rank(
    dog: Watchdog, files: RunDirectory, process: subprocess.Popen[str]
) -> None:
    write_beat(files.heartbeat(1), replace(beat_of(process), started=5.0))
    look(dog, 4)
    assert dog._seen[1].process == "gone"


def test_what_keeps_the_one_who_tells_keeps_nobody_else(
    dog: Watchdog, files: RunDirectory, process: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is gone, a lock: the verdict is told without what could not be found out, and who is deaf is ended,
    for whom torchrun would wait half a minute."""
    process.send_signal(signal.SIGSTOP)
    write_beat(files.heartbeat(1), beat_of(process, place="there"))
    never, left = threading.Event(), threading.Event()

    def leave(status: int) -> None:
        left.set()
        sys.exit(status)  # of the thread only

    monkeypatch.setattr(Watchdog, "_leave_at_last", LEAVES)
    monkeypatch.setattr(watchdog, "AT_LAST", 0.2)
    monkeypatch.setattr(os, "_exit", leave)
    dog.advice = lambda: str(never.wait(30))
    keeps = threading.Thread(target=look, args=(dog, 12), daemon=True)
    keeps.start()
    assert left.wait(20)
    assert process.wait(10) == -signal.SIGKILL
    told = json.loads(files.rank_error(1).read_text())
    assert told["message"].startswith("rank 1 hangs: stopped (SIGSTOP)")
    assert "in look" in files.rank_stacks(0).read_text()  # where it was kept
    never.set()
    keeps.join(20)
    assert not keeps.is_alive()


@pytest.mark.parametrize(("state", "signals"), [("gone", 0), ("elsewhere", 0), ("quiet", 2)])
def test_only_a_living_rank_of_this_machine_gets_signals(
    state: Any, signals: int, dog: Watchdog, process: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its number may be another process's: after its end, and in another container."""
    sent: list[int] = []
    dog._seen = {0: Seen(beat=OWN), 1: Seen(beat=beat_of(process), silent=50.0, process=state)}
    with monkeypatch.context() as context:
        context.setattr(watchdog.os, "kill", lambda pid, number: sent.append(number))
        context.setattr(watchdog.os, "_exit", lambda status: None)
        context.setattr("unsloth_accel.callbacks.hang_stacks.PATIENCE", 0.0)
        dog._end(OWN, Verdict(action="end", ranks=(1,), message="rank 1 hangs"))
    assert len(sent) == signals


def test_heartbeats_of_an_earlier_launch_are_not_read(
    dog: Watchdog, files: RunDirectory, process: subprocess.Popen[str]
) -> None:
    write_beat(files.heartbeat(1), beat_of(process))
    files.errors.mkdir()
    files.hang.write_text('{"message": "of before", "silent": []}', encoding="utf-8")
    for path in (files.heartbeat(1), files.hang):
        os.utime(path, (time.time() - 3600, time.time() - 3600))
    look(dog, 3)
    assert [*dog._seen] == [0]


def test_a_word_is_said_once_and_so_is_its_end(
    dog: Watchdog, files: RunDirectory, process: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    said = beat_of(process, idle=70.0, still=70.0, working=False, place="the data loader", phase="training")
    for beats in range(6):
        write_beat(files.heartbeat(1), replace(said, beats=beats))
        look(dog, 1)
    look(dog, 1, replace(OWN, idle=0.0))
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "unsloth_accel: warning: rank 1 may hang: no progress for 70 s, in phase training, in the data loader; rank 0 "
        "is in here.",
        "unsloth_accel: warning: rank 1 goes on.",
    ]
    lines = [line for line in read_lines(files.logs / "rank-0.jsonl") if line["event"] == "warning"]
    assert [line["source"] for line in lines] == ["hang", "hang"]


def test_a_rank_that_makes_progress_looks_at_nobody(dog: Watchdog, files: RunDirectory) -> None:
    write_beat(files.heartbeat(1), Beat(rank=1, host="elsewhere", pid=1, started=1.0))
    look(dog, 3, replace(OWN, idle=2.0))
    assert not dog._seen


def test_a_notice_is_followed(dog: Watchdog, files: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stacks are written, the log ends, and the process too."""
    left: list[int] = []

    def leave(status: int) -> None:
        left.append(status)
        raise SystemExit

    monkeypatch.setattr(watchdog.os, "_exit", leave)
    files.errors.mkdir()
    notice = {"message": "rank 1 hangs: so.", "silent": [1], "pids": {"0": os.getpid() + 1, "1": 1}}
    files.hang.write_text(json.dumps(notice), encoding="utf-8")
    look(dog, 1, replace(OWN, idle=0.0))
    assert left == [], "of a process before this one, which torchrun (--max-restarts) has replaced"
    files.hang.write_text(json.dumps(notice | {"pids": {"0": os.getpid(), "1": 1}}), encoding="utf-8")
    with pytest.raises(SystemExit):
        look(dog, 1, replace(OWN, idle=0.0))
    assert left == [1]
    stacks = files.rank_stacks(0).read_text(encoding="utf-8")
    assert f": rank 0, process {os.getpid()}, in here\n" in stacks
    assert "test_a_notice_is_followed" in stacks
    lines = read_lines(files.logs / "rank-0.jsonl")
    assert [line["event"] for line in lines] == ["hang", "end"]
    assert lines[1]["message"] == lines[0]["message"] == "rank 1 hangs: so."


def test_what_killed_launches_left_is_removed_but_for_hangs(tmp_path: Path) -> None:
    made = {
        name: RunDirectory(tmp_path / f"unsloth-accel-ranks-{os.getuid()}-{number}")
        for number, name in enumerate(("going", "living", "killed", "hung"))
    }
    for files in made.values():
        write_atomically(files.heartbeat(0), "")
    # As a file that another rank removes while this one looks.
    files = made.pop("going")
    files.heartbeat(1).symlink_to("nowhere")
    write_atomically(made["hung"].hang, "{}")
    for name in ("killed", "hung"):
        for path in (made[name].path, *made[name].path.rglob("*")):
            os.utime(path, (1.0, 1.0))
    watch_ranks._remove_left(tmp_path / "of this launch")
    assert [name for name, files in made.items() if files.path.is_dir()] == ["living", "hung"]


def test_a_second_trainer_is_watched_as_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dog: Watchdog
) -> None:
    """In one script: by its own limit, with its own checkpoints, and not at all where that is told."""
    begun: list[Any] = []
    monkeypatch.setattr(watch_ranks, "own", lambda: "beats" if begun else None)
    monkeypatch.setattr(watch_ranks, "_begin", lambda *told, **_: begun.append(told) or dog)
    monkeypatch.setattr(watch_ranks, "_of_script", None)
    monkeypatch.setattr(watch_ranks.atexit, "register", lambda *_: None)
    monkeypatch.setattr(watch_ranks.tempfile, "gettempdir", lambda: str(tmp_path))
    assert watch_ranks.watch_script(str(tmp_path / "first"), 0, 2, None)
    assert watch_ranks.watch_script(str(tmp_path / "second"), 0, 2, 900.0)
    assert len(begun) == 1
    assert dog.hang_after == 900.0
    assert dog.advice.args[0] == str(tmp_path / "second")  # type: ignore[attr-defined]
    assert watch_ranks.watch_script(str(tmp_path / "third"), 0, 2, 0) is None


def test_a_script_whose_ranks_cannot_be_watched_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watch_ranks, "_of_script", None)
    monkeypatch.setattr(watch_ranks.tempfile, "gettempdir", lambda: str(tmp_path / "gone"))
    assert watch_ranks.watch_script(str(tmp_path), 0, 2, None) is None
    assert "warning: a rank that hangs will not be named: " in capsys.readouterr().err


def test_a_rank_that_is_stopped_from_outside_leaves_no_heartbeat(
    files: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves by os._exit, and a rank of the next launch would take it for one that has ended."""
    monkeypatch.setattr(heartbeat, "_own", None)
    monkeypatch.setattr(REQUEST, "_tell", [])
    watch_ranks._begin(files, RankLog(None, 0), 2, None, str, whole_run=True, aloud=False)
    deadline = time.monotonic() + 120
    while not files.heartbeat(0).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for tell in REQUEST._tell:
        tell(Stopped("", signal.SIGTERM))
    assert not [path for path in files.logs.iterdir() if path.suffix in (".json", ".stacks")]
