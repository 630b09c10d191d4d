"""Lets `fsdp2.peer_fetch` run without GPUs: ranks share files in the place of GPU memory, and streams don't exist.

What is left is its own: which rows go where, which buffers a block takes, and what FSDP2 makes of it. Order between
streams can only be seen on GPUs.
"""

import ctypes
import mmap
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric

from unsloth_accel.adapters.fsdp2.peer_fetch import peer_reach
from unsloth_accel.adapters.fsdp2.peer_fetch.mapped_memory import bytes_at


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


class Files:
    """Memory as `peer_fetch.mapped_memory` has it, of files without a name and the system's own mapping of pages."""

    granularity = 4096

    def __init__(self) -> None:
        self.maps = 0
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.mmap.restype = ctypes.c_void_p
        self.libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]

    def create(self, size: int) -> int:
        assert size % self.granularity == 0
        descriptor = os.memfd_create("memory")
        os.ftruncate(descriptor, size)
        return descriptor

    def share(self, handle: int) -> int:
        return os.dup(handle)

    def find(self, descriptor: int) -> int:
        return os.dup(descriptor)

    def map(self, parts: Sequence[tuple[int, int]]) -> torch.Tensor:
        self.maps += 1
        if os.environ.get("RANK") == "1" and str(self.maps) == os.environ.get("MAPPING_FAILS"):
            raise OSError("no memory left (injected)")
        total = sum(size for _, size in parts)
        start = self.libc.mmap(None, total, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        at = start
        for handle, size in parts:
            kind = mmap.MAP_SHARED | 0x10  # MAP_FIXED
            assert self.libc.mmap(at, size, mmap.PROT_READ | mmap.PROT_WRITE, kind, handle, 0) == at
            at += size
        return bytes_at(start, total, torch.device("cpu"))


def use(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    shared = Shared(directory)
    symmetric.empty, symmetric.rendezvous = shared.empty, shared.rendezvous
    peer_reach.cuda_memory = Files
    peer_reach.obstacle = peer_reach.trial = lambda: None
    torch.cuda.Stream = torch.cuda.Event = Nothing  # type: ignore[assignment,misc]
    torch.cuda.current_stream = lambda *_: Nothing()  # type: ignore[assignment,return-value]
    torch.accelerator.current_stream = lambda *_: Nothing()  # type: ignore[assignment,return-value]
    torch.cuda.stream = lambda *_: nullcontext()  # type: ignore[assignment,return-value]
    torch.cuda.synchronize = torch.cuda.empty_cache = lambda *_: None  # type: ignore[assignment]


def wanted() -> bool:
    return os.environ.get("PEERS_IN_FILES") == "1"
