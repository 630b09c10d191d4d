"""Gradients of weights that FSDP2 leaves whole, averaged over the ranks with a few kernels.

Mends, in Unsloth 2026.10.9: they are copied one by one into the buffer that is reduced, and back: 900 small copies for
the LoRA weights of 32 blocks, after which nothing is left to compute that could hide them (docs/fsdp2.md). The buffer,
as large as the adapter in float32, is kept from step to step; here it is given back, since memory is scarcest when
there are no gradients yet.

Transformers, from 5.19 on, has an averaging of its own for weights that FSDP2 leaves whole
(`Trainer._sync_replicated_trainable_parameters`): rank 0's weights are sent to all, and each gradient is averaged by an
all-reduce of its own as soon as it is whole. Up to 5.24 it does so only for a model that transformers itself divided
while loading (`from_pretrained(distributed_config=…)`), which is never the case here. Were it to do so here too, the
second average would be that of equal numbers and change none, as was tried; but it would cost an all-reduce for each
weight, and hang where one rank does its part again (`adapters.out_of_memory`). So weights that Unsloth averages are
told to be none of transformers'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ...capabilities.probe import available

if TYPE_CHECKING:
    import torch

_MARK = "_unsloth_accel"
_UNSLOTHS = "_unsloth_grad_all_reduce"
_TRANSFORMERS = "_replicated_grad_hook_registered"
"""Marks that Unsloth and transformers set on a weight whose gradient they average, so as not to do it twice."""


def average_once(model: torch.nn.Module) -> None:
    """Keep transformers from averaging the gradients that Unsloth averages; before it would begin to, for it registers
    hooks when a Trainer starts to train."""
    for parameter in model.parameters():
        if getattr(parameter, _UNSLOTHS, False):
            setattr(parameter, _TRANSFORMERS, True)


def copy_together() -> None:
    """Have Unsloth's averaging copy all gradients at once, wherever they lie alike; does nothing the second time."""
    if not available("gradients copied together"):
        return
    from unsloth.models import fsdp2_save

    one_by_one = fsdp2_save._sync_replicated_grads
    if getattr(one_by_one, _MARK, False):
        return

    def average(params: list[Any], dist: Any, mesh: Any = None, buffers: dict[Any, Any] | None = None) -> None:
        if not params or not alike(params):
            one_by_one(params, dist, mesh, buffers)
        else:
            average_alike(params, lambda flat: int(fsdp2_save.mesh_all_reduce(flat, mesh, dist)))

    setattr(average, _MARK, True)
    fsdp2_save._sync_replicated_grads = average


def average_alike(params: Sequence[Any], all_reduce: Callable[[torch.Tensor], int]) -> None:
    """Average the gradients of `params`, which are `alike`, in place.

    `all_reduce` sums a tensor over the ranks and returns how many there are.
    """
    import torch

    sizes = [parameter.numel() for parameter in params]
    total = sum(sizes)
    flat = torch.empty(total + len(params), dtype=torch.float32, device=params[0].device)
    # As Unsloth lays it out, with a flag for each: a rank that lacks a gradient goes its way, and must meet us.
    flat[total:].fill_(1)
    parts, gradients = list(flat[:total].split(sizes)), [parameter.grad.view(-1) for parameter in params]
    torch._foreach_copy_(parts, gradients)
    flat[:total].div_(all_reduce(flat))
    torch._foreach_copy_(gradients, parts)


def alike(params: Sequence[Any]) -> bool:
    """Return whether all `params` have a gradient, on one device, contiguous, in a dtype that is summed as float32."""
    import torch

    device = params[0].device
    return all(
        parameter.grad is not None
        and parameter.grad.device == device
        and parameter.dtype != torch.float64
        and parameter.grad.is_contiguous()
        for parameter in params
    )
