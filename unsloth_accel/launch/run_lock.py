"""The lock of an output_dir: one launch at a time writes there.

The kernel keeps it (flock) for the launcher and for each of its ranks, so that it lasts until the last of them has
ended, however that was; no process number is judged, which says nothing in another container. Machines that see each
other's files but not each other's locks go by the file's time, which whoever holds the lock sets again and again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..artifacts.run_directory import RunDirectory
from ..errors import ConfigError, Problem
from ..files import read_json
from .living import state_of

MARK = "UNSLOTH_ACCEL_LAUNCH"
"""Environment variable that every process of one launch carries: the launch's name, which stands in the lock's file.
torchrun gives each rank a session of its own and a rank whose launcher was killed has another parent, so neither group
nor parent finds them all."""
DESCRIPTION = "UNSLOTH_ACCEL_DESCRIPTION"
"""Environment variable: the SHA-256 of the run.planned.yaml that a rank was launched with."""
BEAT = 5.0
"""Seconds between two signs of life in the lock's file."""
PATIENCE = 4 * BEAT
"""Seconds without a sign of life after which a lock of another machine is stale."""
ORPHANS = 60.0
"""Seconds within which ranks have ended whose launcher is gone: they save, and end within half a minute."""
AT_ONCE = 1.0
"""Seconds for which a lock is tried again: another launch may just be looking at it."""


class Lock:
    """An output_dir's lock in this process, for the launch `launch`."""

    def __init__(self, directory: str | Path, launch: str) -> None:
        self.directory, self.launch = directory, launch
        self.path = RunDirectory(directory).lock
        self._handle = -1
        self._released = threading.Event()
        self._beats = threading.Thread(target=self._beat, daemon=True)

    @property
    def is_ours(self) -> bool:
        """Whether this launch has it still: a machine that doesn't see our lock may have taken the directory."""
        return read_json(self.path).get("launch") == self.launch

    def take(self) -> None:
        """Take it for a launch, and tell in a line whose it was where that one ended without giving it back.

        Raises `ConfigError` where another launch has it, `OSError` where it can't be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        before, shown = self._open(fcntl.LOCK_EX, os.O_RDWR | os.O_CREAT)
        if before and not (shown and before.get("machine") == _machine()) and _lives(self.path, before):
            raise self._refused()
        if before:
            print(f"output_dir={self.directory}: {_whose(before)} is gone; its lock is taken over.", flush=True)
        told = {"launch": self.launch, "host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
        told |= {"machine": _machine(), "ticks": state_of(os.getpid())[1]}
        try:
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, json.dumps(told).encode(), 0)
            os.fsync(self._handle)
        except OSError as error:
            self._remove()
            raise OSError(error.errno, error.strerror, str(self.path)) from None
        if _flock(self._handle, fcntl.LOCK_SH) is False:  # in changing it is let go of, and another may be quicker
            raise self._refused()
        self._beats.start()

    def join(self, patience: float = 0.0) -> None:
        """Hold it too, as one of the launch's ranks, until this process ends; it may take `patience` seconds until the
        launch has it. Raises `ConfigError` where it is another's."""
        deadline = time.monotonic() + patience
        while not self.is_ours and time.monotonic() < deadline:
            time.sleep(0.1)
        with suppress(OSError):
            self._open(fcntl.LOCK_SH, os.O_RDWR)
        if self._handle == -1 or not self.is_ours:
            raise self._refused()
        self._beats.start()

    def release(self) -> None:
        """Give it back; its file is left where a rank lives on."""
        self._released.set()
        if self._beats.is_alive():
            self._beats.join(AT_ONCE)
        if self._handle != -1 and self.is_ours and _tried(self._handle, fcntl.LOCK_EX) is not False:
            self._remove()
        self._close()

    def _open(self, kind: int, flags: int) -> tuple[dict[str, Any], bool]:
        """Open the file with the kernel's lock on it; returns what it says, and whether its file system has locks."""
        while True:
            self._handle = os.open(self.path, flags | os.O_NOFOLLOW, 0o666)
            got = _tried(self._handle, kind)
            if got is False:
                raise self._refused()
            with suppress(FileNotFoundError):  # removed by the one that held it, since it was opened
                if os.path.samestat(os.stat(self.path), os.fstat(self._handle)):
                    return read_json(self.path), got is True
            self._close()

    def _refused(self) -> ConfigError:
        self._close()
        return ConfigError(_problem(self.directory, self.path))

    def _remove(self) -> None:
        with suppress(OSError):
            os.unlink(self.path)
        self._close()

    def _close(self) -> None:
        if self._handle != -1:
            os.close(self._handle)
        self._handle = -1

    def _beat(self) -> None:
        while not self._released.wait(BEAT):
            with suppress(OSError):
                os.utime(self._handle)


@contextmanager
def locked(directory: str | Path, launch: str = "") -> Iterator[Lock]:
    """Hold the lock of `directory` for a launch, by default one of a name of its own, as long as the block runs.

    Raises `ConfigError` where another launch has it, or it can't be written.
    """
    lock = Lock(directory, launch or uuid.uuid4().hex)
    try:
        try:
            lock.take()
        except OSError as error:
            raise unwritable(directory, error) from None
        yield lock
    finally:
        lock.release()


def held_problems(directory: str | Path) -> list[Problem]:
    """Return a problem where a launch on this machine writes into `directory`; looks, and changes nothing."""
    path = RunDirectory(directory).lock
    try:
        handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except (OSError, ValueError):  # also a name that no file system takes, which is told elsewhere
        return []
    try:
        return [_problem(directory, path)] if _tried(handle, fcntl.LOCK_EX) is False else []
    finally:
        os.close(handle)


def wait_for_orphans(directory: str | Path) -> None:
    """Wait until ranks that write into `directory` have ended, where their launcher is gone: they are saving."""
    path, deadline, told = RunDirectory(directory).lock, time.monotonic() + ORPHANS, False
    while _is_gone(read_json(path)) and held_problems(directory) and time.monotonic() < deadline:
        if not told:
            whose = _whose(read_json(path))
            print(f"output_dir={directory}: waiting for ranks of {whose} which is gone, to save and end", flush=True)
        told = True


def variables_of(lock: Lock, description: Path) -> dict[str, str]:
    """Return the variables by which a rank knows its launch, and the description that it was launched with."""
    return {MARK: lock.launch, DESCRIPTION: _sha256(description)}


def check_description(file: str | Path) -> None:
    """Raise `ConfigError` where this rank was launched with another description than the one in `file`."""
    if os.environ.get(DESCRIPTION, (now := _sha256(file))) != now:
        consequence = (
            "was written anew since this run was launched with it, so its ranks may differ; nothing is trained."
        )
        fix = "launch again, one run at a time; to change a run, change your own description"
        raise ConfigError(Problem(key=str(file), consequence=consequence, fix=fix))


def unwritable(directory: str | Path, error: OSError) -> ConfigError:
    """Return the error of an output_dir that can't be written."""
    consequence = f"{error.strerror}: {error.filename}."
    fix = "choose a directory that you may write, on a disk with room"
    return ConfigError(Problem(key="output_dir", value=str(directory), consequence=consequence, fix=fix))


def _flock(handle: int, kind: int) -> bool | None:
    """Return whether the kernel gave the lock; None on a file system without locks."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _tried(handle: int, kind: int) -> bool | None:
    deadline = time.monotonic() + AT_ONCE
    while (got := _flock(handle, kind)) is False and time.monotonic() < deadline:
        time.sleep(0.02)
    return got


def _machine() -> str:
    """Return what all processes under one kernel, and no others, have in common; empty where the system doesn't say."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


def _lives(path: Path, told: Mapping[str, Any]) -> bool:
    """Return whether somebody sets the file's time anew; clocks of two machines are not compared."""

    def changed() -> int:
        with suppress(OSError), path.open("rb") as file:  # opened, since NFS may know an old time until then
            return os.fstat(file.fileno()).st_mtime_ns
        return -1

    print(f"{path} is of {_whose(told)}: looking for {PATIENCE:.0f} seconds whether that lives …", flush=True)
    before, deadline = changed(), time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        time.sleep(min(1.0, PATIENCE / 10))
        if changed() != before:
            return True
    return False


def _whose(told: Mapping[str, Any]) -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(told.get("since", 0)))
    return f"the launch of process {told.get('pid')} on {told.get('host')}, since {since},"


def _is_here(told: Mapping[str, Any]) -> bool:
    return told.get("machine") == _machine() and told.get("host") == socket.gethostname()


def _is_gone(told: Mapping[str, Any]) -> bool:
    """Whether a launcher of this machine has ended, or its number is another's by now."""
    return bool(told) and _is_here(told) and state_of(told.get("pid"))[1] != told.get("ticks")


def _problem(directory: str | Path, path: Path) -> Problem:
    deadline = time.monotonic() + AT_ONCE
    while not (told := read_json(path)) and path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)  # made, and not written yet
    if _is_gone(told):
        consequence = f"is still written by ranks of {_whose(told)} which is gone."
        fix = "wait until they have ended (half a minute)"
    elif told:
        consequence = f"is written by {_whose(told)} and two would replace each other's files."
        where = "" if _is_here(told) else f" on {told.get('host')}"
        fix = f"wait until it has ended, or kill {told.get('pid')}{where}"
    else:
        consequence, fix = "is another launch's by now.", "launch again"
    return Problem(key="output_dir", value=str(directory), consequence=consequence, fix=f"{fix}; or another output_dir")


def _sha256(file: str | Path) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()
