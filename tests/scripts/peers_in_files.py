"""Lets `adapters.peer` run without GPUs: ranks share files in the place of GPU memory, and streams don't exist.

What is left is its own: which rows go where, which buffers a block takes, and what FSDP2 makes of it. Order between
streams can only be seen on GPUs.
"""

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric

from unsloth_accel.adapters import peer


class Nothing:
    """A stream or an event."""

    def wait_event(self, event: Any) -> None: ...

    def wait_stream(self, stream: Any) -> None: ...

    def record(self) -> None: ...


class Shared:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.count = 0

    def empty(self, size: int, *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        self.count += 1
        return self.file(dist.get_rank(), self.count, size)

    def file(self, rank: int, number: int, size: int) -> torch.Tensor:
        path = self.directory / f"{number}-{rank}"
        if not path.exists():
            path.write_bytes(bytes(size))
        return torch.from_file(str(path), shared=True, size=size, dtype=torch.uint8)

    def rendezvous(self, tensor: torch.Tensor, group: str) -> Any:
        dist.barrier()
        number = self.count
        shared = self

        class Handle:
            def get_buffer(self, rank: int, shape: tuple[int], dtype: torch.dtype) -> torch.Tensor:
                return shared.file(rank, number, shape[0])

        return Handle()


def use(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    shared = Shared(directory)
    symmetric.empty, symmetric.rendezvous = shared.empty, shared.rendezvous
    peer._obstacle = peer._trial = lambda: None
    torch.cuda.Stream = torch.cuda.Event = Nothing  # type: ignore[assignment,misc]
    torch.cuda.current_stream = lambda *_: Nothing()  # type: ignore[assignment,return-value]
    torch.cuda.stream = lambda *_: nullcontext()  # type: ignore[assignment,return-value]
    torch.cuda.synchronize = torch.cuda.empty_cache = lambda *_: None  # type: ignore[assignment]


def wanted() -> bool:
    return os.environ.get("PEERS_IN_FILES") == "1"
