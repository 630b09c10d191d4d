"""Memory of a GPU mapped where it is wanted, so that one weight may lie in several places, and two weights share one.

An address is not a place: CUDA's driver gives out physical memory by handles and maps them to ranges of addresses, one
beside the other, the same one several times, or into another process (CUDA driver API, "Virtual Memory Management").
A weight whose rows are mapped from the ranks' own memory and from a buffer needs no copy of the rows that are here.

`Cuda` are the driver's calls, `Exchange` passes handles between the ranks of one machine as file descriptors. What is
mapped stays so until the process ends: peers may read it at any time.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import CDLL, Structure, byref, c_char_p, c_int, c_size_t, c_ubyte, c_uint64, c_ushort, c_void_p
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ....hardware.ranks import of_every_rank

if TYPE_CHECKING:
    import torch

MOST_DESCRIPTORS = 250
"""Most descriptors in one message; Linux passes 253 (SCM_MAX_FD)."""
Handle = int
"""Handle of physical memory, as the driver numbers it."""


class MappingError(RuntimeError):
    """Refusal by the driver or the system."""


class Memory(Protocol):
    """Allocator of physical memory, which maps it; sizes are bytes, multiples of `granularity`."""

    granularity: int

    def create(self, size: int) -> Handle:
        """Allocate new memory, not zeroed."""

    def share(self, handle: Handle) -> int:
        """Return a file descriptor by which another process finds the memory; the caller closes it."""

    def find(self, descriptor: int) -> Handle:
        """Find the memory that another process shares; `descriptor` may be closed afterwards."""

    def map(self, parts: Sequence[tuple[Handle, int]]) -> torch.Tensor:
        """Return bytes, [sum of the sizes], in which `parts`, each with its size, lie one behind the other."""


class _Location(Structure):
    """CUmemLocation."""

    _fields_ = (("type", c_int), ("id", c_int))


class _Flags(Structure):
    """CUmemAllocationProp.allocFlags."""

    _fields_ = (
        ("compression_type", c_ubyte),
        ("gpu_direct_rdma_capable", c_ubyte),
        ("usage", c_ushort),
        ("reserved", c_ubyte * 4),
    )


class _Properties(Structure):
    """CUmemAllocationProp."""

    _fields_ = (
        ("type", c_int),
        ("requested_handle_types", c_int),
        ("location", _Location),
        ("win32_handle_metadata", c_void_p),
        ("flags", _Flags),
    )


class _Access(Structure):
    """CUmemAccessDesc."""

    _fields_ = (("location", _Location), ("flags", c_int))


class Cuda:
    """The driver's virtual memory of GPU `device` of this process; raises `MappingError`."""

    # cuda.h: CU_MEM_ALLOCATION_TYPE_PINNED, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, CU_MEM_LOCATION_TYPE_DEVICE,
    # CU_MEM_ACCESS_FLAGS_PROT_READWRITE, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED.
    PINNED, DESCRIPTOR, ON_DEVICE, READ_WRITE, RECOMMENDED = 1, 1, 1, 3, 1

    def __init__(self, device: int) -> None:
        try:
            self._driver = CDLL("libcuda.so.1")
        except OSError as error:
            raise MappingError(f"no CUDA driver: {error}") from None
        self._device = device
        place = _Location(self.ON_DEVICE, device)
        self._properties = _Properties(self.PINNED, self.DESCRIPTOR, place)
        self._access = _Access(place, self.READ_WRITE)
        size = c_size_t()
        self._call("cuMemGetAllocationGranularity", byref(size), byref(self._properties), self.RECOMMENDED)
        self.granularity = int(size.value)

    def create(self, size: int) -> Handle:
        handle = c_uint64()
        self._call("cuMemCreate", byref(handle), c_size_t(size), byref(self._properties), c_uint64(0))
        return int(handle.value)

    def share(self, handle: Handle) -> int:
        descriptor = c_int()
        self._call("cuMemExportToShareableHandle", byref(descriptor), c_uint64(handle), self.DESCRIPTOR, c_uint64(0))
        return int(descriptor.value)

    def find(self, descriptor: int) -> Handle:
        handle = c_uint64()
        # The descriptor itself takes the place of a pointer to a handle of the system.
        self._call("cuMemImportFromShareableHandle", byref(handle), c_void_p(descriptor), self.DESCRIPTOR)
        return int(handle.value)

    def map(self, parts: Sequence[tuple[Handle, int]]) -> torch.Tensor:
        import torch

        total = sum(size for _, size in parts)
        address, none, alignment = c_uint64(), c_uint64(0), c_size_t(0)
        self._call("cuMemAddressReserve", byref(address), c_size_t(total), alignment, none, none)
        start = int(address.value)
        for handle, size in parts:
            offset = c_size_t(0)  # into the handle's memory; the driver takes no other
            self._call("cuMemMap", c_uint64(start), c_size_t(size), offset, c_uint64(handle), none)
            start += size
        count = c_size_t(1)
        self._call("cuMemSetAccess", address, c_size_t(total), byref(self._access), count)
        return bytes_at(int(address.value), total, torch.device("cuda", self._device))

    def _call(self, name: str, *arguments: Any) -> None:
        function = getattr(self._driver, name, None)
        if function is None:
            raise MappingError(f"this CUDA driver has no {name}")
        status = function(*arguments)
        if status:
            text = c_char_p()
            self._driver.cuGetErrorString(status, byref(text))
            raise MappingError(f"{name}: {(text.value or b'unknown error').decode()} ({status})")


def bytes_at(address: int, size: int, device: torch.device) -> torch.Tensor:
    """Return `size` bytes at `address` as a tensor, which doesn't own them."""
    import torch

    storage = torch._C._construct_storage_from_data_pointer(address, device, size)
    return torch.empty(0, dtype=torch.uint8, device=device).set_(storage, 0, (size,), (1,))


class Exchange:
    """Passes file descriptors between all ranks, which must sit on one machine; every rank calls everything, and
    raises `MappingError` where any of them can't."""

    def __init__(self) -> None:
        import torch.distributed as dist

        self.rank, self._world = dist.get_rank(), dist.get_world_size()
        told = [""]
        with agreeing():
            if not self.rank:
                told = [tempfile.mkdtemp(prefix="unsloth-accel-")]
        dist.broadcast_object_list(told, src=0)
        self._directory = Path(told[0])
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(60)
        try:
            with agreeing():
                self._socket.bind(str(self._directory / str(self.rank)))
        except MappingError:
            self.close()
            raise

    def all(self, descriptors: Sequence[int]) -> list[list[int]]:
        """Return every rank's `descriptors`, by rank, as this process can use them; its own stay as they are."""
        found = [list(descriptors) if rank == self.rank else [] for rank in range(self._world)]
        # Agreed afterwards also because a message of the next call could come before one of this.
        with agreeing():
            if len(descriptors) > MOST_DESCRIPTORS:
                raise MappingError(f"{len(descriptors)} descriptors at once, where {MOST_DESCRIPTORS} can be passed")
            # Not by socket.send_fds, which forgets the address before Python 3.12.
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))]
            for step in range(1, self._world):
                to = str(self._directory / str((self.rank + step) % self._world))
                self._socket.sendmsg([str(self.rank).encode()], rights, 0, to)
            for _ in range(1, self._world):
                sender, passed, *_ = socket.recv_fds(self._socket, 16, MOST_DESCRIPTORS)
                found[int(sender)] = list(passed)
        return found

    def close(self) -> None:
        import torch.distributed as dist

        dist.barrier()
        self._socket.close()
        if not self.rank:
            shutil.rmtree(self._directory, ignore_errors=True)


@contextmanager
def agreeing() -> Iterator[None]:
    """Raise `MappingError` on all ranks where the block fails on one, once all are at its end."""
    import torch.distributed as dist

    own: str | None = None
    try:
        yield
    except (MappingError, OSError, RuntimeError) as error:
        own = f"rank {dist.get_rank()}: {error}"
    if told := next(filter(None, of_every_rank(own)), None):
        raise MappingError(told)


class Mapping:
    """Memory of this rank that its peers see, and theirs; every rank makes the same calls in the same order."""

    def __init__(self, memory: Callable[[], Memory]) -> None:
        """Take what `memory` makes; raise `MappingError` where it can't, or ranks can't exchange."""
        with agreeing():
            self.memory = memory()
        self._exchange = Exchange()

    def shared(self, sizes: Sequence[int]) -> list[list[Handle]]:
        """Allocate memory of these sizes on every rank; return the handles for this process, by rank and size."""
        with agreeing():
            own = [self.memory.create(size) for size in sizes]
            descriptors = [self.memory.share(handle) for handle in own]
        passed = self._exchange.all(descriptors)
        found: list[list[Handle]] = []
        with agreeing():
            for rank, others in enumerate(passed):
                found.append(own if rank == self._exchange.rank else [self.memory.find(one) for one in others])
                if len(found[rank]) != len(sizes):
                    raise MappingError(f"rank {rank} shares {len(found[rank])} pieces of memory, not {len(sizes)}")
                for descriptor in others:
                    os.close(descriptor)
        return found

    def trial(self) -> None:
        """See whether a rank finds in its peers' memory what they wrote, and in two places what it wrote in one.

        Raises `MappingError` where not.
        """
        import torch
        import torch.distributed as dist

        size = self.memory.granularity
        handles = [one for (one,) in self.shared([size])]
        rank, world = dist.get_rank(), dist.get_world_size()
        with agreeing():
            everyone = self.memory.map([(handle, size) for handle in handles])
            twice = self.memory.map([(handles[rank], size)] * 2)
            twice[:size].fill_(rank + 1)
            if twice.is_cuda:
                torch.cuda.synchronize()
        with agreeing():
            expected = torch.arange(1, world + 1, dtype=torch.uint8, device=everyone.device)
            if not bool((everyone.view(world, size) == expected[:, None]).all()) or not bool((twice == rank + 1).all()):
                raise MappingError("memory that is shared doesn't hold what was written to it")

    def close(self) -> None:
        """Stop sharing memory; what is shared stays."""
        self._exchange.close()
