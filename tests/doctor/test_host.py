import types
from collections import namedtuple
from pathlib import Path

import psutil
import pytest
from doctor_machines import Place, bad, machine, only

from unsloth_accel.doctor import (
    host,
)

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(("free_gib", "statuses"), [(500, []), (5, ["warning", "warning"]), (0.5, ["error"] * 3)])
def test_disk_space(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free_gib: float, statuses: list[str]
) -> None:
    monkeypatch.setattr(host.shutil, "disk_usage", lambda _: Usage(2**40, 0, int(free_gib * 2**30)))
    subject = machine(place, environ={"HF_HOME": str(tmp_path / "not" / "there")})
    assert [result.status for result in bad(host.disk, subject)] == statuses


def test_a_cache_that_cannot_be_written(place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr(host.os, "access", lambda path, _: Path(path) != cache)
    found = only(host.disk, machine(place, environ={"HF_HUB_CACHE": str(cache)}))
    assert (found.name, found.status) == ("disk, models", "error")
    assert "HF_HOME" in found.fix


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
