"""A collated micro-batch, divided into smaller ones of the same rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..data.balance import divide

if TYPE_CHECKING:
    import torch
    from transformers import Trainer


def parts_add_up(trainer: Trainer) -> bool:
    """Whether the losses of a step's rows add up to the step's, however they are divided into micro-batches: each is
    weighted by its share of all trained tokens, and not a mean over the rows of its micro-batch."""
    scaled: bool | None = getattr(trainer, "loss_is_scaled_for_ga", None)  # TRL's word; False for DPO, KTO, rewards
    if scaled is not None:
        return scaled
    return bool(trainer.model_accepts_loss_kwargs or trainer.compute_loss_func is not None)


WRITTEN = "completion_ids"
"""Field of a micro-batch of completions, shape (rows, tokens), beside `prompt_ids` (`adapters.written_steps`)."""


def split(inputs: Mapping[str, Any], parts: int) -> list[dict[str, Any]]:
    """Split `inputs` of a model into up to `parts` parts of about as many tokens; fewer where there are fewer rows.

    Rows are those of `input_ids`, shape (rows, tokens), padded on either side; or, laid end to end in its one row, what
    Unsloth's `packed_seq_lengths` or, from TRL 1.16 on, `cu_seq_lens_q` says. Each part gets boundaries of its own.
    Tensors of another shape and other values go into every part.
    """
    if WRITTEN in inputs:
        return _of_completions(inputs, parts)
    lengths = _lengths_of_rows(inputs)
    return _padded(inputs, parts) if lengths is None else _flat(inputs, lengths, parts)


def rows_and_tokens(inputs: Mapping[str, Any]) -> tuple[int, int]:
    """Return the number of rows of a micro-batch, and of the tokens that it is computed with, padding included."""
    if WRITTEN in inputs:
        rows, tokens = inputs[WRITTEN].shape
        return rows, rows * (tokens + inputs["prompt_ids"].shape[1])
    ids, lengths = inputs["input_ids"], _lengths_of_rows(inputs)
    return (ids.shape[0] if lengths is None else len(lengths)), ids.numel()


def _lengths_of_rows(inputs: Mapping[str, Any]) -> list[int] | None:
    """Return the tokens of each row that lies end to end; None where rows do not, or nothing says where they end."""
    if inputs["input_ids"].shape[0] != 1:
        return None
    lengths, starts = inputs.get("packed_seq_lengths"), inputs.get("cu_seq_lens_q")
    if lengths is None and starts is not None:
        lengths = starts.diff()
    return None if lengths is None else [int(length) for length in lengths.tolist()]


def _flat(inputs: Mapping[str, Any], lengths: list[int], parts: int) -> list[dict[str, Any]]:
    import torch

    ids = inputs["input_ids"]
    rows = torch.arange(ids.shape[1], device=ids.device)[: sum(lengths)].split(lengths)
    found = []
    for group in _groups(lengths, parts, padded=False):
        part = _chosen(inputs, 1, torch.cat([rows[row] for row in group]))
        found.append(part | _boundaries([lengths[row] for row in group], inputs))
    return found


def _boundaries(lengths: list[int], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the boundaries of rows of `lengths` tokens, under the names and in the dtypes and devices of `inputs`."""
    import torch

    each = torch.tensor(lengths, dtype=torch.int32)
    starts = torch.nn.functional.pad(each.cumsum(0), (1, 0))
    numbers = torch.arange(len(lengths)).repeat_interleave(each)[None]
    known = {"packed_seq_lengths": each, "seq_idx": numbers}
    known |= {f"cu_seq_lens_{side}": starts for side in "qk"}
    known |= {f"max_length_{side}": each.max() for side in "qk"}
    return {
        name: value.to(inputs[name]) if isinstance(inputs[name], torch.Tensor) else int(value)
        for name, value in known.items()
        if inputs.get(name) is not None
    }


def _of_completions(inputs: Mapping[str, Any], parts: int) -> list[dict[str, Any]]:
    """Return consecutive rows of completions, as padded as they were; what isn't a tensor of rows is in every part."""
    rows = inputs[WRITTEN].shape[0]
    size = -(-rows // parts)
    by_row = {name for name, value in inputs.items() if getattr(value, "shape", ())[:1] == (rows,)}
    return [
        {name: value[start : start + size] if name in by_row else value for name, value in inputs.items()}
        for start in range(0, rows, size)
    ]


def _padded(inputs: Mapping[str, Any], parts: int) -> list[dict[str, Any]]:
    import torch

    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    rows, tokens = ids.shape
    lengths = [tokens] * rows if mask is None else mask.sum(1).tolist()
    right = mask is not None and bool(mask[:, 0].all())
    found = []
    for group in _groups(lengths, parts, padded=True):
        longest = max(lengths[row] for row in group) if right else tokens
        found.append(_chosen(inputs, 0, torch.tensor(group, device=ids.device), longest))
    return found


def _groups(lengths: list[int], parts: int, *, padded: bool) -> list[list[int]]:
    return [sorted(group) for group in divide(lengths, parts, padded=padded) if group]


def _chosen(inputs: Mapping[str, Any], axis: int, places: torch.Tensor, longest: int | None = None) -> dict[str, Any]:
    """Return `inputs` with per-token tensors reduced to `places` on `axis`, and to `longest` tokens a row."""
    shape = inputs["input_ids"].shape
    of_tokens = {name for name, value in inputs.items() if getattr(value, "shape", ())[:2] == shape}
    return {
        name: value.index_select(axis, places)[:, :longest] if name in of_tokens else value
        for name, value in inputs.items()
    }
