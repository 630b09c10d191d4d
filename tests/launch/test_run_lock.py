"""One launch at a time writes into an output_dir: held, left behind, taken over, in races and between machines."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import fork_server
import psutil
import pytest
from conftest import ROOT, TRAIN, accelerate_launch, cli_command, write_checkpoint, write_yaml

from unsloth_accel.artifacts.checkpoints import newest
from unsloth_accel.artifacts.run_directory import RunDirectory
from unsloth_accel.config.read_run import load
from unsloth_accel.errors import ConfigError
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.launch import run_lock
from unsloth_accel.launch.launcher import launch
from unsloth_accel.launch.living import state_of
from unsloth_accel.launch.run_lock import MARK, Lock, held_problems, locked

CPU = Hardware(cpu_cores=2, host_memory_gib=8, reason="no driver")
HOLD = """\
import sys, time
from pathlib import Path
from unsloth_accel.errors import ConfigError
from unsloth_accel.launch.run_lock import Lock, locked
directory, go, *name = sys.argv[1:]
try:
    if go:
        print("ready", flush=True)
    while go and not Path(go).exists():
        time.sleep(0.001)
    if name:
        Lock(directory, *name).join()
        print("joined", flush=True)
        time.sleep(60)
    with locked(directory):
        print("held", flush=True)
        time.sleep(60)
except ConfigError as refused:
    print(refused, flush=True)
"""
LEFT = {"launch": "left", "host": "far", "pid": 4711, "since": 1_790_000_000.0}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "AT_ONCE", 0.1)
    monkeypatch.setattr(run_lock, "BEAT", 0.05)
    monkeypatch.setattr(run_lock, "PATIENCE", 0.3)


def holder(directory: Path, *name: str, go: Path | str = "") -> subprocess.Popen[str]:
    """A process that takes the lock once `go` is there, or joins it by a launch's name."""
    words = [sys.executable, "-c", HOLD, str(directory), str(go), *name]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def end(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def left(directory: Path, **changes: Any) -> Path:
    """A lock's file whose launch didn't give it back."""
    path = RunDirectory(directory).lock
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**LEFT, "machine": run_lock._machine(), **changes}), encoding="utf-8")
    return path


def test_a_second_launch_is_told_whose_the_directory_is(tmp_path: Path, description: dict[str, Any]) -> None:
    file, out = write_yaml(tmp_path / "run.yaml", description), tmp_path / "out"
    first = holder(out)
    try:
        assert line_of(first) == "held\n"
        write_checkpoint(out / "checkpoint-4", load(file))  # which "training.overwrite=true" is no advice for
        since = time.strftime("%Y-%m-%d %H:")
        for more in ((), ("training.overwrite=true",)):
            with pytest.raises(ConfigError) as caught:
                launch([str(file), *more], run=lambda command: pytest.fail("it ran"), hardware=CPU)
            (problem,) = caught.value.problems
            assert (problem.key, problem.value) == ("output_dir", str(out))
            assert problem.consequence.startswith(
                f"is written by the launch of process {first.pid} on {os.uname()[1]},"
            )
            assert f"since {since}" in problem.consequence
            assert f"kill {first.pid}; or another output_dir" in problem.fix
        with pytest.raises(ConfigError, match=f"process {first.pid} on"), locked(out):
            pass
        assert held_problems(tmp_path) == held_problems(tmp_path / "none") == held_problems("x" * 300) == []
    finally:
        end(first)
    assert (out / "_unsloth-accel-lock").exists()
    assert held_problems(out) == [], "its process is gone"


def test_no_other_process_of_the_same_number_is_named(tmp_path: Path) -> None:
    """Which a reader would end."""
    with locked(tmp_path) as lock:
        told = json.loads(lock.path.read_text(encoding="utf-8"))
        assert f"kill {os.getpid()};" in held_problems(tmp_path)[0].fix
        lock.path.write_text(json.dumps({**told, "ticks": "1"}), encoding="utf-8")
        (problem,) = held_problems(tmp_path)
        assert "by ranks of the launch" in problem.consequence
        assert "kill" not in problem.fix
        ended = subprocess.Popen([sys.executable, "-c", ""])
        while (found := state_of(ended.pid)) != ("", 0):  # until it is a zombie
            assert len(found[0]) == 1
            time.sleep(0.05)
        ended.wait()


def test_it_is_gone_with_the_launch(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path / "out") as lock:
            assert lock.is_ours
            assert len(held_problems(tmp_path / "out")) == 1, "also for another thread of the same process"
        assert [*(tmp_path / "out").iterdir()] == []


def test_what_a_killed_launch_left_is_taken_over_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left(tmp_path, host="here")
    with locked(tmp_path) as lock:
        told = json.loads(lock.path.read_text(encoding="utf-8"))
        assert (told["pid"], told["launch"]) == (os.getpid(), lock.launch)
    words = (
        r"output_dir=.*: the launch of process 4711 on here, since 2026-09-\d\d .*, is gone; its lock is taken over\.\n"
    )
    assert re.fullmatch(words, capsys.readouterr().out)
    left(tmp_path).write_text("", encoding="utf-8")  # killed while it wrote
    with locked(tmp_path):
        pass
    assert capsys.readouterr().out == ""


def test_one_of_many_takes_it_over(tmp_path: Path) -> None:
    """At the same moment, from one that was killed, and where there was none."""
    for place in (tmp_path / "stale", tmp_path / "new"):
        go = tmp_path / f"go-{place.name}"
        if place.name == "stale":
            left(place)
        many = [holder(place, go=go) for _ in range(8)]
        try:
            assert {line_of(process) for process in many} == {"ready\n"}
            go.touch()
            first = [line_of(process) for process in many]
            said = [
                f"{line}{line_of(process)}" if "taken over" in line else line
                for line, process in zip(first, many, strict=True)
            ]
            winners = [text for text in said if text.endswith("held\n")]
            assert len(winners) == 1, said
            assert ("taken over" in winners[0]) == (place.name == "stale")
            number = many[said.index(winners[0])].pid
            assert all(f"process {number} on" in text for text in said if text not in winners), said
        finally:
            end(*many)


def test_moments_in_which_another_is_quicker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, as_ever, others = RunDirectory(tmp_path).lock, fcntl.flock, [left(tmp_path)]

    def removed(handle: int, kind: int) -> None:
        """Whoever held it ends, between our opening the file and our locking it."""
        if others:
            others.pop().unlink()
        as_ever(handle, kind)

    monkeypatch.setattr(fcntl, "flock", removed)
    with locked(tmp_path) as lock:
        assert lock.is_ours
        monkeypatch.setattr(fcntl, "flock", as_ever)
        assert len(held_problems(tmp_path)) == 1
    assert not path.exists()
    taken: list[int] = []

    def quicker(handle: int, kind: int) -> None:
        """The kernel lets go of a lock before it gives it in another kind."""
        if kind == fcntl.LOCK_SH | fcntl.LOCK_NB and not taken:
            as_ever(handle, fcntl.LOCK_UN)
            taken.append(os.open(path, os.O_RDWR))
            as_ever(taken[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        as_ever(handle, kind)

    monkeypatch.setattr(fcntl, "flock", quicker)
    with pytest.raises(ConfigError, match="output_dir"), locked(tmp_path):
        pass
    assert taken
    os.close(taken[0])


def test_ranks_that_outlive_their_launcher_keep_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = holder(tmp_path)
    rank = other = None
    try:
        assert line_of(first) == "held\n"
        name = json.loads(RunDirectory(tmp_path).lock.read_text(encoding="utf-8"))["launch"]
        rank = holder(tmp_path, name)
        assert line_of(rank) == "joined\n"
        end(first)
        words = f"by ranks of the launch of process {first.pid} .* which is gone"
        with pytest.raises(ConfigError, match=words), locked(tmp_path):
            pass
        monkeypatch.setattr(run_lock, "ORPHANS", 0.5)
        run_lock.wait_for_orphans(tmp_path)  # no longer than that
        assert f"waiting for ranks of the launch of process {first.pid} on" in capsys.readouterr().out
        end(rank)
        run_lock.wait_for_orphans(tmp_path)
        assert not capsys.readouterr().out
        with locked(tmp_path) as lock:
            assert f"process {first.pid} on" in capsys.readouterr().out
            other = holder(tmp_path, name)  # a rank of the first that is late
            assert f"is written by the launch of process {os.getpid()}" in line_of(other)
            with pytest.raises(ConfigError):
                Lock(tmp_path, name).join()
            assert lock.is_ours
        with pytest.raises(ConfigError, match="is another launch's by now"):
            Lock(tmp_path, name).join()
    finally:
        end(*filter(None, (first, rank, other)))


def test_a_rank_may_be_quicker_than_its_launch(tmp_path: Path) -> None:
    """Where nothing of ours launched them: rank 0 takes the lock and the others wait for it."""
    left(tmp_path)
    rank = threading.Thread(target=Lock(tmp_path, "of process 7").join, args=(60.0,))
    rank.start()
    time.sleep(0.3)
    with locked(tmp_path, "of process 7"):
        rank.join()
    with pytest.raises(ConfigError):
        Lock(tmp_path, "of process 8").join(0.2)


class Machine:
    """Another machine's launch: its locks aren't seen here, and its clock is wrong."""

    def __init__(self, path: Path, clock: float) -> None:
        self.path, self.clock, self.stopped = path, clock, threading.Event()
        self.thread = threading.Thread(target=self._beat)

    def _beat(self) -> None:
        while not self.stopped.wait(run_lock.BEAT):
            os.utime(self.path, (time.time() + self.clock,) * 2)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.thread.join()


@pytest.mark.parametrize("clock", [-86_400.0, 0.0, 86_400.0])
def test_another_machine_is_judged_by_its_signs_of_life(
    clock: float, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = left(tmp_path, machine="another")
    os.utime(path, (time.time() + clock,) * 2)
    monkeypatch.setattr(run_lock, "PATIENCE", 5.0)  # which a sign of life cuts short
    with (
        Machine(path, clock),
        pytest.raises(ConfigError, match=r"process 4711 on far.*kill 4711 on far"),
        locked(tmp_path),
    ):
        pass
    monkeypatch.setattr(run_lock, "PATIENCE", 0.3)
    assert json.loads(path.read_text(encoding="utf-8"))["launch"] == "left"
    with locked(tmp_path):
        assert "process 4711 on far, since" in capsys.readouterr().out


def test_an_interrupt_while_it_is_looked_at_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook, whose process goes on."""

    def interrupted(*_: object) -> bool:
        raise KeyboardInterrupt

    left(tmp_path, machine="another")
    with monkeypatch.context() as context:
        context.setattr(run_lock, "_lives", interrupted)
        with pytest.raises(KeyboardInterrupt), locked(tmp_path):
            pass
    assert held_problems(tmp_path) == []
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then signs of life decide on one machine too."""

    def none(handle: int, kind: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none)
    with locked(tmp_path) as lock:
        Lock(tmp_path, lock.launch).join()
        monkeypatch.setattr(run_lock, "PATIENCE", 5.0)
        with pytest.raises(ConfigError, match=f"process {os.getpid()} on"), locked(tmp_path):
            pass
        monkeypatch.setattr(run_lock, "PATIENCE", 0.3)
        assert lock.is_ours
    assert [*tmp_path.iterdir()] == []
    path = left(tmp_path)
    with locked(tmp_path) as lock:
        path.write_text(json.dumps({**LEFT, "launch": "quicker"}), encoding="utf-8")
        with pytest.raises(ConfigError, match="process 4711 on far"):  # so that one of two is left
            Lock(tmp_path, lock.launch).join()
    assert path.exists(), "which is the other's"


def test_a_lock_that_can_not_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigError, match=r"Not a directory: .*Fix: choose a directory"),
        locked(tmp_path / "file" / "out"),
    ):
        pass
    mine = tmp_path / "mine.txt"
    mine.write_text("mine", encoding="utf-8")
    (tmp_path / "_unsloth-accel-lock").symlink_to(mine)
    with pytest.raises(ConfigError, match=r"symbolic links: .*_unsloth-accel-lock"), locked(tmp_path):
        pass
    assert mine.read_text(encoding="utf-8") == "mine"


def test_a_full_disk_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with (
        pytest.raises(
            ConfigError, match=r"No space left on device: .*_unsloth-accel-lock\. Fix: .* on a disk with room"
        ),
        locked(tmp_path),
    ):
        pass
    assert [*tmp_path.iterdir()] == []


def test_a_rank_trains_only_what_it_was_launched_with(
    tmp_path: Path, description: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever has come into the file in the place of its description; before anything else is done with it."""
    from unsloth_accel.training import process

    seen: list[Any] = []
    launch([str(write_yaml(tmp_path / "run.yaml", description))], run=seen.append, hardware=CPU)
    monkeypatch.setattr(process, "train", lambda run: pytest.fail("it trained"))
    planned = RunDirectory(tmp_path / "out").planned_yaml
    variables = {name: seen[0].environment[name] for name in (MARK, run_lock.DESCRIPTION)}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("UNSLOTH_ACCEL_PROMISE", seen[0].environment["UNSLOTH_ACCEL_PROMISE"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert process.main(str(planned)) == 2
    assert "is another launch's by now" in capsys.readouterr().err, "the launch has ended, and with it the lock"
    text = planned.read_text(encoding="utf-8")
    with locked(tmp_path / "out", variables[MARK]):
        planned.write_text(text.replace("max_steps: 2", "max_steps: 3"), encoding="utf-8")
        planned.write_text(text + "\n", encoding="utf-8")
        assert process.main(str(planned), "training.resume=true") == 2
        assert "was written anew since this run was launched with it" in capsys.readouterr().err
        planned.write_text(text, encoding="utf-8")
        trained: list[Any] = []
        monkeypatch.setattr(process, "train", trained.append)
        assert process.main(str(planned), "training.resume=true") == 0
    assert trained[0].resume


# From here on with real launches.


def end_all(file: Path, *suspended: psutil.Process) -> None:
    """End what is `suspended`, and whatever has `file`'s directory on its command line: launchers, and ranks that one
    has left."""
    own = {os.getpid(), *(one.pid for one in psutil.Process().parents())}
    others = [one for one in psutil.process_iter(["cmdline"]) if one.pid not in own]
    left = [one for one in others if any(word.startswith(str(file.parent)) for word in one.info["cmdline"] or ())]
    for process in (*suspended, *left):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs([*suspended, *left], timeout=60)


def until_a_checkpoint(out: Path, launcher: subprocess.Popen[bytes], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not newest(out)[0]:
        assert launcher.poll() is None, launcher.returncode
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.slow
def test_two_launches_into_one_directory(tiny: Path, tmp_path: Path) -> None:
    """The second one is refused, however it is launched, also while the first one's ranks outlive their launcher.

    In a working directory with modules that end whoever imports them: no launcher and no rank does.
    """
    out, host, here = tmp_path / "out", os.uname()[1], tmp_path / "here"
    for name in ("random.py", "json.py", "trl.py", "unsloth/__init__.py", "datasets/__init__.py"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(f"raise SystemExit('imported: {name}')", encoding="utf-8")
    place: dict[str, Any] = {"cwd": here, "env": {**os.environ, "PYTHONPATH": str(ROOT)}}
    values = {
        "model": {"name": str(tiny), "max_seq_length": 96, "dtype": "float32"},
        "data": {"path": str(TRAIN)},
        "batch": {"global_size": 8},
        "training": {"max_steps": 100_000, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 2},
        "output_dir": str(out),
    }
    file = write_yaml(tmp_path / "run.yaml", values)
    command = cli_command("launch", file)

    def launched(*overrides: str) -> subprocess.CompletedProcess[str]:
        return fork_server.run([*command, *overrides], capture_output=True, text=True, timeout=400, **place)

    with fork_server.forked():
        first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, **place)
    below: list[psutil.Process] = []
    try:
        until_a_checkpoint(out, first)
        files = RunDirectory(out)
        described = files.planned_yaml.read_bytes()
        logs = {path: path.read_bytes()[:200] for path in (files.step_log, *files.rank_logs())}
        for more in ((), ("training.overwrite=true", "lora.r=8"), ("training.resume=true",)):
            second = launched(*more)
            assert second.returncode == 2, second.stdout + second.stderr
            assert f"is written by the launch of process {first.pid} on {host}, since" in second.stderr
        words = ["-m", "unsloth_accel.training.sft", files.planned_yaml, "lora.r=8"]
        bare = accelerate_launch("--config_file", files.accelerate_yaml, *words, forked=True)
        assert bare.returncode != 0
        assert f"is written by the launch of process {first.pid}" in bare.stderr
        below += psutil.Process(first.pid).children(recursive=True)
        for process in below:
            process.suspend()  # else they may have ended before the next launch looks
        first.kill()
        first.wait()
        orphaned = launched("training.overwrite=true")
        assert orphaned.returncode == 2
        assert f"is still written by ranks of the launch of process {first.pid}" in orphaned.stderr
        assert files.planned_yaml.read_bytes() == described
        assert {path: path.read_bytes()[:200] for path in logs} == logs, "none of them was begun anew"
    finally:
        end_all(file, *below)
        first.wait()
    last = launched("training.overwrite=true", "training.max_steps=1")
    assert last.returncode == 0, last.stdout + last.stderr
    assert f"the launch of process {first.pid} on {host}, since" in last.stdout
    assert "is gone; its lock is taken over." in last.stdout
    assert not files.lock.exists()
