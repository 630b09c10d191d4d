"""A collated micro-batch, divided into smaller ones of the same rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..data.balance import divide

if TYPE_CHECKING:
    import torch


def split(inputs: Mapping[str, Any], parts: int) -> list[dict[str, Any]]:
    """`inputs` of a model in up to `parts` parts of about as many tokens; fewer where there are fewer rows.

    Rows are those of `input_ids`, shape (rows, tokens), padded on either side; or, laid end to end in its one row, what
    `packed_seq_lengths` says. Tensors of another shape and other values go into every part.
    """
    ids = inputs["input_ids"]
    lengths = inputs.get("packed_seq_lengths")
    if ids.shape[0] == 1 and lengths is not None:
        return _flat(inputs, lengths.tolist(), parts)
    return _padded(inputs, parts)


def rows_and_tokens(inputs: Mapping[str, Any]) -> tuple[int, int]:
    """How many rows a micro-batch has, and how many tokens it is computed with."""
    ids = inputs["input_ids"]
    lengths = inputs.get("packed_seq_lengths")
    return (len(lengths) if ids.shape[0] == 1 and lengths is not None else ids.shape[0]), ids.numel()


def _flat(inputs: Mapping[str, Any], lengths: list[int], parts: int) -> list[dict[str, Any]]:
    import torch

    ids = inputs["input_ids"]
    rows = torch.arange(ids.shape[1], device=ids.device)[: sum(lengths)].split(lengths)
    found = []
    for group in _groups(lengths, parts, padded=False):
        columns = torch.cat([rows[row] for row in group])
        part = {
            name: value.index_select(1, columns) if _is(value, ids.shape) else value for name, value in inputs.items()
        }
        kept = inputs["packed_seq_lengths"]
        found.append(part | {"packed_seq_lengths": kept[torch.tensor(group, device=kept.device)]})
    return found


def _padded(inputs: Mapping[str, Any], parts: int) -> list[dict[str, Any]]:
    import torch

    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    rows, tokens = ids.shape
    lengths = [tokens] * rows if mask is None else mask.sum(1).tolist()
    right = mask is not None and bool(mask[:, 0].all())
    found = []
    for group in _groups(lengths, parts, padded=True):
        chosen = torch.tensor(group, device=ids.device)
        longest = max(lengths[row] for row in group) if right else tokens
        found.append(
            {
                name: value.index_select(0, chosen)[:, :longest] if _is(value, ids.shape) else value
                for name, value in inputs.items()
            }
        )
    return found


def _groups(lengths: list[int], parts: int, *, padded: bool) -> list[list[int]]:
    return [sorted(group) for group in divide(lengths, parts, padded=padded) if group]


def _is(value: Any, shape: torch.Size) -> bool:
    """Whether `value` is a tensor with something for every token."""
    return tuple(getattr(value, "shape", ())[:2]) == tuple(shape)
