"""Program that `unsloth-accel doctor` launches: join the group, sum one tensor over all processes, check every number.

Run by `accelerate launch all_reduce.py DIRECTORY DEVICE`. Each process leaves in DIRECTORY how far it came, so that a
hang can be told by its place; it imports nothing of this package, so that it runs wherever accelerate does.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

NUMBERS = 1 << 20
BANDWIDTH_BYTES = 256 * 2**20
REPEATS = 20


def main(directory: str, device: str) -> None:
    rank = int(os.environ.get("RANK", "0"))
    say = _ProcessNotes(Path(directory, f"rank-{rank}.json"), rank)
    say(stage="started")
    import torch
    import torch.distributed as dist
    from accelerate import PartialState

    say(stage="imported")
    state = PartialState(cpu=device == "cpu")
    world = state.num_processes
    say(stage="formed", world=world, backend=str(state.backend))
    if world == 1:
        say(stage="done")  # the launcher counts the processes
        return
    # Whole numbers far below 2**24 sum exactly in float32, and no two neighbours are equal.
    pattern = torch.arange(NUMBERS, device=state.device) % 1021
    numbers = (pattern + rank).float()
    dist.all_reduce(numbers)
    right = bool(torch.equal(numbers, (world * pattern + world * (world - 1) // 2).float()))
    speed = _bus_bandwidth(world, state.device) if device == "cuda" else None
    say(stage="done", right=right, bus_gb_s=speed)
    if device == "cuda":
        dist.destroy_process_group()


def _bus_bandwidth(world: int, device: Any) -> float:
    """Return GB/s on the busiest link: bytes / time × 2 (n - 1) / n (nccl-tests, doc/PERFORMANCE.md)."""
    import torch
    import torch.distributed as dist

    tensor = torch.zeros(BANDWIDTH_BYTES // 4, device=device)
    for _ in range(5):
        dist.all_reduce(tensor)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(REPEATS):
        dist.all_reduce(tensor)
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / REPEATS
    return BANDWIDTH_BYTES / seconds * 2 * (world - 1) / world / 1e9


class _ProcessNotes:
    """Writes what this process has to say, all of it each time."""

    def __init__(self, path: Path, rank: int) -> None:
        self._path = path
        self._values: dict[str, Any] = {"rank": rank}

    def __call__(self, **values: Any) -> None:
        self._values |= values
        self._path.write_text(json.dumps(self._values), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
