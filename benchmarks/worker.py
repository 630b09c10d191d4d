"""A run's own training in each process, with what a measurement needs around it; benchmarks launch this module.

BENCHMARK_GATE=FILE, BENCHMARK_PAUSES=STEPS: import everything, and load nothing before FILE is there, so that many runs
start at once and train one after the other; and wait so after STEPS (benchmarks.pauses).
BENCHMARK_GIB=N or N:RANK: torch's allocator gets N GiB of the GPU (of that rank's only), as if it had no more.
BENCHMARK_KEEP=1: fsdp2 fetches each block once and keeps it, so that a step copies no weights: what it costs then is
the division itself. It computes the same, and saves no memory. (Leaving copies away from the two sets of buffers tells
nothing: with weights that are wrong or zero a GPU needs less power, and clocks higher.)
BENCHMARK_PROFILE=FILE: write FILE-RANK.json, what each CUDA stream did in three steps (benchmarks.streams).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import unsloth_accel  # noqa: F401  (first: sets what must be set before unsloth is imported)
from benchmarks.pauses import pause_every_trainer, wait_at_gate

GIB = "BENCHMARK_GIB"
PROFILE = "BENCHMARK_PROFILE"
KEEP = "BENCHMARK_KEEP"
MODULE = "benchmarks.worker"


def main(*words: str) -> int:
    import unsloth  # noqa: F401  # isort: skip
    import torch
    import trl  # noqa: F401

    from unsloth_accel.training import process

    if os.environ.get(PROFILE):
        from benchmarks import streams

        streams.profile_every_trainer(Path(f"{os.environ[PROFILE]}-{os.environ.get('RANK', '0')}.json"))
    if os.environ.get(KEEP):
        keep_blocks()
    pause_every_trainer()
    wait_at_gate()
    limit, _, only = os.environ.get(GIB, "").partition(":")
    if limit and only in ("", os.environ.get("RANK", "0")):
        device = int(os.environ.get("LOCAL_RANK", "0"))
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(float(limit) * 2**30 / total, device)
    return process.main(*words)


def keep_blocks() -> None:
    """Give every block that `adapters.fsdp2.peer_fetch.fetch` fetches a set of buffers of its own."""
    from unsloth_accel.adapters.fsdp2.peer_fetch.peer_unit import Unit, Units

    plain = Unit.__init__

    def with_own_buffers(self: Any, units: Any, group: Any, turn: int | None, *, largest: bool = False) -> None:
        plain(self, units, group, None if turn is None else len(units.all), largest=largest)

    Unit.__init__ = with_own_buffers  # type: ignore[method-assign]
    Units.make_room = lambda self: None  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
