"""A run's own training in each process, with what a measurement needs around it; benchmarks launch this module.

BENCHMARK_GATE=FILE: import everything, write FILE.ready-RANK, and load nothing before FILE is there, so that many runs
start at once and train one after the other.
BENCHMARK_GIB=N or N:RANK: torch's allocator gets N GiB of the GPU (of that rank's only), as if it had no more.
BENCHMARK_WITHOUT=own, peers or all: fsdp2 leaves away the copies of this rank's rows, of its peers' or all, once each
buffer was filled. It computes with wrong weights then, and only its time means something.
BENCHMARK_PROFILE=FILE: write FILE-RANK.json, what each CUDA stream did in three steps (benchmarks.streams).
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import unsloth_accel  # noqa: F401  (first: sets what must be set before unsloth is imported)

GATE = "BENCHMARK_GATE"
GIB = "BENCHMARK_GIB"
PROFILE = "BENCHMARK_PROFILE"
WITHOUT = "BENCHMARK_WITHOUT"
MODULE = "benchmarks.worker"


def main(*words: str) -> int:
    import unsloth  # noqa: F401  # isort: skip
    import torch
    import trl  # noqa: F401

    from unsloth_accel.training import sft

    if os.environ.get(PROFILE):
        from benchmarks import streams

        streams.profile_every_trainer(Path(f"{os.environ[PROFILE]}-{os.environ.get('RANK', '0')}.json"))
    if os.environ.get(WITHOUT):
        leave_away(os.environ[WITHOUT])
    gate = os.environ.get(GATE)
    if gate:
        Path(f"{gate}.ready-{os.environ.get('RANK', '0')}").touch()
    while gate and not Path(gate).exists():
        time.sleep(0.05)
    limit, _, only = os.environ.get(GIB, "").partition(":")
    if limit and only in ("", os.environ.get("RANK", "0")):
        device = int(os.environ.get("LOCAL_RANK", "0"))
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(float(limit) * 2**30 / total, device)
    return sft.main(*words)


def leave_away(which: str) -> None:
    from unsloth_accel.adapters import peer

    copy, filled = peer._copy, set[int]()

    def part(whole: Any, rows: list[Any], first: int) -> None:
        if whole.data_ptr() not in filled:
            filled.add(whole.data_ptr())
            copy(whole, rows, first)
            return
        start = 0
        for rank, own in enumerate(rows):
            if which != "all" and (rank == first) != (which == "own"):
                whole[start : start + own.numel()].copy_(own)
            start += own.numel()

    peer._copy = part


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
