"""Rows that lie end to end are attended to in one call per layer, also with a torch before 2.12.

Mends, in Unsloth 2026.10.9 with torch before 2.12 and neither flash-attn nor xformers: packed rows, and batches without
padding, start each layer's attention once for every row (unsloth/utils/attention_dispatch.py: _sdpa_packed_segments),
since `torch.nn.attention.varlen.varlen_attn` learnt grouped heads (`enable_gqa`) in 2.12 only. A step of short rows is
then bound by those launches: its time goes by its rows, not by its tokens, on one GPU as on eight.

The kernel underneath, aten's flash attention, has taken grouped heads and windows all along, and Unsloth calls it
directly wherever it may (`_LeanFlashVarlen`). Here Unsloth is told that it may, once the kernel has shown on this GPU
that it computes the same output and the same gradients as row by row.

`UNSLOTH_TORCH_VARLEN=0`, Unsloth's own switch, leaves it off.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..capabilities.probe import available

if TYPE_CHECKING:
    import torch

SWITCH = "UNSLOTH_TORCH_VARLEN"
DISPATCH = "unsloth.utils.attention_dispatch"
LENGTHS = (5, 1, 64, 33)
"""Tokens of each row of the trial."""
HEADS, GROUPS, WIDTH = 4, 2, 64
"""Sizes of the trial: query heads, query heads for each key head, numbers in a head."""
WINDOWS = ((-1, 0), (7, 0))
"""Windows of the trial, as the kernel writes them: causal, and causal over 8 tokens."""
TOLERANCE = 0.03
"""Largest difference as a share of the largest number: some times bfloat16's rounding, 0.004."""
Attend = Callable[..., "torch.Tensor"]


def attend_at_once(device: torch.device) -> str | None:
    """Have Unsloth attend to all rows of a batch in one call; returns why not, or None where it does, or did already.

    `device` is the one that this process trains on.

    Call it after Unsloth was imported and before the first forward pass.
    """
    dispatch: Any = sys.modules.get(DISPATCH)
    if dispatch is None or not available("attention that Unsloth dispatches", needed=device.type == "cuda"):
        return "this Unsloth has no call for many rows"
    if dispatch._TORCH_VARLEN_ATTN is not None:
        return None
    reason = _obstacle(dispatch, device)
    if reason is not None:
        return reason

    def attend(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        starts: torch.Tensor,
        starts_of_keys: torch.Tensor,
        longest: int,
        longest_of_keys: int,
        *,
        scale: float | None,
        window_size: tuple[int, int],
        enable_gqa: bool,
    ) -> torch.Tensor:
        """Replace torch 2.12's `varlen_attn` for rows that attend to themselves; the kernel needs no `enable_gqa`."""
        causal = window_size == (-1, 0)
        found: torch.Tensor = dispatch._LeanFlashVarlen.apply(
            query, key, value, starts, longest, causal, scale, *window_size
        )
        return found

    reason = trial(attend, device)
    if reason is not None:
        warnings.warn(f"each layer's attention starts once for every row of a batch: {reason}.", stacklevel=2)
        return reason
    dispatch._TORCH_VARLEN_ATTN = attend
    # Unsloth's own shortcut past torch's Python; with the names missing it isn't taken, and `attend` is the same.
    dispatch._LEAN_VARLEN = False
    return None


def _obstacle(dispatch: Any, device: torch.device) -> str | None:
    import torch

    if os.environ.get(SWITCH, "1").lower() in ("0", "false", "no", "off"):
        return f"{SWITCH}={os.environ[SWITCH]}"
    if getattr(dispatch, "HAS_FLASH_ATTENTION", False) or getattr(dispatch, "HAS_XFORMERS", False):
        return "flash-attn or xformers does it"
    if device.type != "cuda" or torch.version.hip is not None:
        return "no NVIDIA GPU"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "the GPU is older than torch's flash attention, which needs compute capability 8.0"
    if not torch.backends.cuda.is_flash_attention_available():
        return "this torch was built without flash attention"
    return None


def trial(attend: Attend, device: torch.device, dtype: torch.dtype | None = None) -> str | None:
    """Compare `attend` with attention row by row in float32, outputs and gradients; returns what differs, or None."""
    import torch

    dtype = dtype or torch.bfloat16
    # Its own generator: a run's seed must give the same run, whether or not this was tried.
    chance = torch.Generator().manual_seed(0)
    shapes = [(sum(LENGTHS), heads, WIDTH) for heads in (HEADS, HEADS // GROUPS, HEADS // GROUPS, HEADS)]
    *inputs, upstream = (torch.randn(shape, generator=chance).to(device, dtype) for shape in shapes)
    starts = torch.tensor([sum(LENGTHS[:n]) for n in range(len(LENGTHS) + 1)], dtype=torch.int32, device=device)
    for window in WINDOWS:
        try:
            leaves = [one.clone().requires_grad_() for one in inputs]
            options = {"scale": None, "window_size": window, "enable_gqa": GROUPS > 1}
            with torch.enable_grad():
                found = attend(*leaves, starts, starts, max(LENGTHS), max(LENGTHS), **options)
                ours = [found, *torch.autograd.grad(found, leaves, upstream)]
        except Exception as error:  # whatever it is, row by row still works
            return f"torch's flash attention does not take such rows: {type(error).__name__}: {error}"
        with torch.enable_grad():
            exact = query, key, value = [one.float().requires_grad_() for one in inputs]
            expected = row_by_row(query, key, value, LENGTHS, window)
            theirs = [expected, *torch.autograd.grad(expected, exact, upstream.float())]
        names = ("output", "query's gradient", "key's gradient", "value's gradient")
        for what, one, other in zip(names, ours, theirs, strict=True):
            off = float((one.detach().float() - other.detach()).abs().max() / other.detach().abs().max())
            if not off <= TOLERANCE:  # also where it is no number
                return f"torch's flash attention computes another {what}, off by {off:.2g}"
    return None


def row_by_row(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: Sequence[int], window: tuple[int, int]
) -> torch.Tensor:
    """Return the attention of each row to itself, [tokens, heads, width], written down plainly."""
    import torch

    groups = query.shape[1] // key.shape[1]
    key, value = (one.repeat_interleave(groups, dim=1) for one in (key, value))
    found = []
    for q, k, v in zip(*(one.split(list(lengths)) for one in (query, key, value)), strict=True):
        scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
        place = torch.arange(len(q), device=q.device)
        back = place[:, None] - place[None, :]
        seen = back >= 0 if window[0] < 0 else (back >= 0) & (back <= window[0])
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        found.append(torch.einsum("hqk,khd->qhd", weights, v))
    return torch.cat(found)
