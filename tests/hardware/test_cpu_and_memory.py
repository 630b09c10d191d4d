"""Processors and memory that are here, through made-up cgroup files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_gpus import GIB

from unsloth_accel.hardware import cpu_and_memory


def test_without_cgroups_the_machine_is_the_limit(groups: Any) -> None:
    assert cpu_and_memory.cores() == (16, "the CPU affinity of this process")
    assert cpu_and_memory.memory_gib() == (64, "the machine's, from psutil")


@pytest.mark.parametrize(
    ("own", "files", "cores", "memory"),
    [
        ("0::/\n", {"memory.max": "max\n", "cpu.max": "max 100000\n"}, 16, 64),
        ("0::/\n", {"memory.max": str(8 * GIB), "cpu.max": "400000 100000\n"}, 4, 8),
        ("0::/\n", {"memory.max": str(99 * GIB), "cpu.max": "9900000 100000\n"}, 16, 64),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1, 64),
        ("0::/\n", {"cpu.max": "350000 100000\n"}, 3, 64),
        ("0::/job/step\n", {"job/memory.max": str(4 * GIB), "job/step/memory.max": "max"}, 16, 4),
        ("0::/job/step\n", {"job/memory.max": str(4 * GIB), "job/step/memory.max": str(8 * GIB)}, 16, 4),
        ("0::/job/step\n", {"job/memory.max": str(8 * GIB), "job/step/memory.max": str(4 * GIB)}, 16, 4),
        ("0::/job/step\n", {"job/cpu.max": "800000 100000", "job/step/cpu.max": "200000 100000"}, 2, 64),
        (
            "5:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n0::/\n",
            {
                "memory/memory.limit_in_bytes": str(2 * GIB),
                "cpu/docker/x/cpu.cfs_quota_us": "200000",
                "cpu/docker/x/cpu.cfs_period_us": "100000",
            },
            2,
            2,
        ),
        (
            "5:memory:/\n4:cpu,cpuacct:/\n",
            {
                "memory/memory.limit_in_bytes": "9223372036854771712",
                "cpu/cpu.cfs_quota_us": "-1",
                "cpu/cpu.cfs_period_us": "100000",
            },
            16,
            64,
        ),
    ],
)
def test_a_containers_limits_count(groups: Any, own: str, files: dict[str, str], cores: int, memory: float) -> None:
    groups(own, files)
    assert (cpu_and_memory.cores()[0], cpu_and_memory.memory_gib()[0]) == (cores, memory)
    assert ("quota" in cpu_and_memory.cores()[1]) == (cores < 16)
    assert ("limit" in cpu_and_memory.memory_gib()[1]) == (memory < 64)


def test_bfloat16_of_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr(cpu_and_memory, "_CPU_INFO", info)
    assert cpu_and_memory.bf16.__wrapped__() == (False, "there is no /proc/cpuinfo")
    info.write_text("processor: 0\nflags\t\t: fpu avx512f amx_bf16\n")
    assert cpu_and_memory.bf16.__wrapped__() == (True, "amx_bf16")
    info.write_text("processor: 0\nflags\t\t: fpu avx2\n")
    assert not cpu_and_memory.bf16.__wrapped__()[0]
