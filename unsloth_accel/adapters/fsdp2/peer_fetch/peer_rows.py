"""Rows of divided weights, and the buffers that they are put together in (`adapters.fsdp2.peer_fetch.peer_unit`)."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any

from .peer_reach import ALIGNMENT

if TYPE_CHECKING:
    import torch


def rows_of(tokens: torch.Tensor, tables: list[torch.Tensor], length: int, dtype: torch.dtype | None) -> torch.Tensor:
    """Return the rows of `tokens`, [*tokens.shape, width], of the table that lies in `tables`, `length` rows in all."""
    import torch

    with torch.no_grad():
        known = ((tokens >= 0) & (tokens < length)).all()
        torch._assert_async(known, f"a token is outside of the embedding's {length} rows")
        found, first = None, 0
        for table in tables:
            if not len(table):
                continue
            rows = torch.nn.functional.embedding((tokens - first).clamp(0, len(table) - 1), table)
            found = rows if found is None else torch.where((tokens >= first).unsqueeze(-1), rows, found)
            first += len(table)
        assert found is not None
        return found if dtype is None else found.to(dtype)


def rows_in(memories: list[torch.Tensor], parameter: Any, offset: int) -> list[torch.Tensor]:
    """Return every rank's rows of `parameter`, in `memories` from `offset` on."""
    local = parameter.sharded_param._local_tensor
    length = parameter._orig_size[0]
    most = parameter.padded_sharded_param_size[0]
    width = parameter._orig_size[1:].numel()
    rows = [max(0, min(most, length - number * most)) for number in range(len(memories))]
    ends = [offset + count * width * local.element_size() for count in rows]
    return [memory[offset:end].view(local.dtype) for memory, end in zip(memories, ends, strict=True)]


def can_be_mapped(parameter: Any, world: int, granularity: int) -> bool:
    """Return whether every rank has as many rows of `parameter`, and they fill whole pages."""
    alike = bool(parameter._orig_size[0] == parameter.padded_sharded_param_size[0] * world)
    return alike and bytes_of_rows(parameter) % granularity == 0


def bytes_of_rows(parameter: Any) -> int:
    return int(parameter.padded_sharded_param_size.numel() * parameter.sharded_param._local_tensor.element_size())


def padded_bytes(parameter: Any) -> int:
    """Return the bytes of one rank's rows, the same on every rank."""
    return int(-(-bytes_of_rows(parameter) // ALIGNMENT) * ALIGNMENT)


def bytes_of(buffers: list[torch.Tensor]) -> int:
    """Return the bytes that `buffers` hold now."""
    return sum(buffer.untyped_storage().size() for buffer in buffers)


def allocated(buffers: list[torch.Tensor]) -> bool:
    """Allocate those of `buffers` that hold no memory; return whether there were any."""
    empty = [buffer for buffer in buffers if not buffer.untyped_storage().size()]
    for buffer in empty:
        buffer.untyped_storage().resize_(buffer.numel() * buffer.element_size())
    return bool(empty)


def copy_rows(whole: torch.Tensor, rows: list[torch.Tensor], first: int) -> None:
    """Copy all ranks' `rows` one after the other into `whole`, this rank's own first, unless they are there."""
    offsets = list(accumulate((part.numel() for part in rows), initial=0))
    for turn in range(len(rows)):
        rank = (first + turn) % len(rows)
        part = whole[offsets[rank] : offsets[rank + 1]]
        if part.data_ptr() != rows[rank].data_ptr():
            part.copy_(rows[rank])
