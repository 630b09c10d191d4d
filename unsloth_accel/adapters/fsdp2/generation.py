"""Generation from a model that FSDP2 shards: its weights are gathered for the time of it.

Mends, in torch 2.13 with accelerate 1.15 and Unsloth 2026.10.9:
- Accelerate's FSDP2: weights are gathered in the hook of a unit's call. `PeftModel.generate` calls the model inside and
  not the root unit, and Unsloth's decoding reads a block's weights without calling it; both meet shards, "got mixed
  torch.Tensor and DTensor". GRPO and every answer to a held-out row ended there. (Unsloth gathers in its own sharding.)
- Unsloth's own sharding too: what is called first becomes FSDP2's root. Where that is a block, in a `generate` before
  the first training step, that step fails ("already been lazily initialized"): GRPO in the sharded layout.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ...capabilities.probe import available
from .units import groups_of, units_of

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

INSIDE = "_unsloth_accel_generating"
_WRAPPED = "_unsloth_accel_gathers"


@contextmanager
def generating(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Gather the weights of an FSDP2 `model` for as long as the block runs; any other model is left as it is.

    `model` is the outermost module, as prepared. Every rank must enter and leave together, outside inference_mode.
    Inside, each GPU holds the whole model, in the dtype that it computes in, beside its own part: a model that is
    larger than one GPU can't generate this way. To gather once costs less than every block again for every token.
    Blocks may be nested; the outermost gathers and frees. Inside, `generate(…, synced_gpus=False)` lets ranks generate
    without waiting for each other, also different numbers of times.
    """
    import torch

    units = units_of(model)
    if not units or getattr(model, INSIDE, False):
        yield model
        return
    if model in units:
        model._get_fsdp_state()._lazy_init()  # it, and not the block that is called first, is the root
    native = _unsloths_own(model)
    if native is not None:
        with native.native_fsdp2_unsharded(model):
            yield model
        return
    setattr(model, INSIDE, True)
    groups = [group for unit in units for group in groups_of(unit)]
    meshes = [group.post_forward_mesh_info for group in groups]
    try:
        for group in groups:
            group.post_forward_mesh_info = None  # a block that is called inside keeps its weights
        # Tensors that are made under inference_mode can't be trained on later, and FSDP2 keeps what it makes here.
        with torch.inference_mode(False), torch.no_grad():
            for unit in units:
                unit.unshard()
        yield model
    finally:
        delattr(model, INSIDE)
        for group, mesh in zip(groups, meshes, strict=True):
            group.post_forward_mesh_info = mesh
        for unit in units:
            unit.reshard()


def gather_in_generate(accelerator: Accelerator, model: Any) -> None:
    """Let `model.generate` run inside `generating(model)` under FSDP2, accelerate's or Unsloth's own.

    It may come before accelerate shards the model, as in a Trainer, which shards when it starts to train. Every rank
    must then call `generate` as often as the others. Once is enough.
    """
    if _unsloths_own(model) is not None or (accelerator.is_fsdp2 and available("FSDP2's units")):
        wrap_generate(model)


def wrap_generate(model: Any) -> None:
    """Let `model.generate`, and those of the models inside it, run inside `generating(model)`."""
    for module in model.modules():
        generate = getattr(module, "generate", None)
        if callable(generate) and not hasattr(generate, _WRAPPED):
            module.generate = generating(model)(generate)  # enters and leaves it anew in every call
            setattr(module.generate, _WRAPPED, True)


def _unsloths_own(model: torch.nn.Module) -> Any:
    """Unsloth's module for its own sharding if that has sharded `model`, else None."""
    native: Any = sys.modules.get("unsloth.models.fsdp2_native")
    return native if native is not None and native.is_native_fsdp2(model) else None
