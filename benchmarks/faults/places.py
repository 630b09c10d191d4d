"""Small disks: a tmpfs that can be filled to the last byte, and a directory that turns read-only, for root too."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

INSIDE = "UNSLOTH_FAULTS_UNSHARED"


def can_mount() -> bool:
    with tempfile.TemporaryDirectory() as directory:
        disk = Disk(Path(directory))
        try:
            disk.make(1)
        except OSError:
            return False
        disk.drop()
        return True


def begin_where_mounts_are_allowed() -> None:
    """Start this command anew in a namespace of its own, where a user who isn't root may mount; or go on without."""
    if can_mount() or INSIDE in os.environ:
        return
    with suppress(OSError):
        if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode == 0:
            os.environ[INSIDE] = "1"
            os.execvp("unshare", ["unshare", "-rm", sys.executable, "-m", "benchmarks.faults", *sys.argv[1:]])


def _mount(*words: str | Path) -> None:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{words[0]}: {done.stderr.strip()}")


mounted: set[Disk] = set()
"""Disks that have not been dropped yet."""


class Disk:
    """A disk of its own, with the run's output_dir on it."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "disk"
        self._read_only: list[Path] = []
        self._made = False

    def make(self, mib: int) -> None:
        """Mount `mib` MiB; raises `OSError` where that isn't allowed."""
        self.path.mkdir(parents=True, exist_ok=True)
        _mount("mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", self.path)
        self._made = True
        mounted.add(self)

    def fill(self, leaving: int = 0) -> None:
        """Leave `leaving` bytes, in whole pages of 4096."""
        with (self.path / "ballast").open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(65536))
        with (self.path / "ballast").open("ab", buffering=0) as file:
            with suppress(OSError):
                while True:
                    file.write(bytes(4096))
            file.truncate(max(file.tell() - leaving, 0))

    def free(self) -> None:
        (self.path / "ballast").unlink(missing_ok=True)

    def make_read_only(self, directory: Path) -> None:
        _mount("mount", "--bind", directory, directory)
        self._read_only.append(directory)
        _mount("mount", "-o", "remount,ro,bind", directory)

    def heal(self) -> None:
        """Make room, and let it be written again."""
        while self._read_only:
            _mount("umount", "-l", self._read_only.pop())
        self.free()

    def drop(self) -> None:
        self.heal()
        if self._made:
            _mount("umount", "-l", self.path)
            self._made = False
            mounted.discard(self)
