import errno
import os
import types
from collections import namedtuple
from pathlib import Path
from typing import Any

import psutil
import pytest
from doctor_machines import Place, bad, machine, only

from unsloth_accel import files
from unsloth_accel.doctor import host

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(("free_gib", "statuses"), [(500, []), (5, ["warning", "warning"]), (0.5, ["error"] * 3)])
def test_disk_space(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free_gib: float, statuses: list[str]
) -> None:
    monkeypatch.setattr(host.shutil, "disk_usage", lambda _: Usage(2**40, 0, int(free_gib * 2**30)))
    subject = machine(place, environ={"HF_HOME": str(tmp_path / "not" / "there")})
    assert [result.status for result in bad(host.disk, subject)] == statuses


@pytest.mark.parametrize(
    ("number", "why", "mend"),
    [
        (errno.EROFS, "Read-only file system", "mount it for writing"),
        (errno.EACCES, "Permission denied", "let the user that trains write there"),
    ],
)
def test_a_cache_that_cannot_be_written(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int, why: str, mend: str
) -> None:
    """A mounted image has no room either, and is no full disk: its models load."""
    cache = tmp_path / "cache"
    cache.mkdir()
    really = files.tempfile.TemporaryFile

    def refused(dir: Path) -> Any:
        if dir == cache:
            raise OSError(number, os.strerror(number))
        return really(dir=dir)

    monkeypatch.setattr(files.tempfile, "TemporaryFile", refused)
    room = {cache: 0}
    monkeypatch.setattr(host.shutil, "disk_usage", lambda path: Usage(2**40, 0, room.get(Path(path), 2**39)))
    found = only(host.disk, machine(place, environ={"HF_HUB_CACHE": str(cache)}))
    assert (found.name, found.status) == ("disk, models", "warning")
    assert found.detail == f"{cache} can't be written: {why}; models in it load, and none can be downloaded"
    assert found.fix == f"{mend}, or export HF_HOME=… on a disk that can be written"


def test_a_full_disk_is_told_as_one(place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(dir: Path) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.tempfile, "TemporaryFile", full)
    monkeypatch.setattr(host.shutil, "disk_usage", lambda _: Usage(2**40, 0, 0))
    found = bad(host.disk, machine(place, environ={"HF_HOME": str(tmp_path)}))
    assert {result.status for result in found} == {"error"}
    assert "0.0 GiB free" in found[1].detail
    assert "on a larger disk" in found[1].fix


def test_dockers_shared_memory_is_too_small(place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(host, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(host.shutil, "disk_usage", lambda _: Usage(64 * 2**20, 0, 0))
    assert "--shm-size" in only(host.shared_memory, machine(place)).fix


def test_few_open_files(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    assert only(host.open_files, machine(place)).fix.startswith("ulimit -n")


@pytest.mark.parametrize(("limit", "statuses"), [(2.0, ["warning"]), (1e6, [])])
def test_memory_is_what_the_containers_limit_leaves(
    place: Place, monkeypatch: pytest.MonkeyPatch, limit: float, statuses: list[str]
) -> None:
    monkeypatch.setattr(host, "memory_gib", lambda: (limit, "the cgroup's memory limit"))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=64 * 2**30))
    assert [result.status for result in bad(host.host_memory, machine(place))] == statuses
    assert f"{min(limit, 64):.0f} GiB available" in next(host.host_memory(machine(place))).detail
