"""FSDP2 through Accelerate's plugin, for LoRA over a frozen model.

Mends, beside `loading`, in accelerate 1.15 with torch 2.11 to 2.13 and Unsloth 2026.10.9 (figures: docs/fsdp2.md):

- Unsloth gathers the output head before the first block and keeps it through the backward pass, where nobody reads it.
  Here it is gathered beside the last block and given back after the loss.
- Each block gathers and reduces its few LoRA weights by itself: 96 small collectives per step for 32 blocks, which hold
  the ranks in lock-step and wait for the copies of offloaded activations. Here LoRA weights stay whole on every rank,
  as in DDP, and their gradients are averaged once per backward pass (by Unsloth, which does so for all that FSDP2 is
  told to ignore).
- Accelerate computes in autocast under every strategy but FSDP2, which casts the weights that it gathers. LoRA weights
  that stay whole are float32, and the LoRA layers of models without kernels of Unsloth's own (Qwen3-VL, LFM2, Gemma 3)
  computed in float32, from float32 copies of their inputs. Here all is computed in autocast, as on one GPU and in
  Unsloth's own sharding.
- A tower for images or sound would be gathered in every step, though rows of text don't pass it. Here it is a unit of
  its own.
- A unit that no row has passed yet, as such a tower, ends a backward pass that sums no gradients over the ranks, where
  they are summed in another dtype than they are computed in: FSDP2 looks for one in the weight that a gather would have
  made (Unsloth mends that for its own sharding). Here it looks at weights that were gathered only.
- The frozen weights travel by NCCL kernels, which take multiprocessors from the matrix products. `peer_fetch` has them
  copied by the GPUs' copy engines where the GPUs reach each other's memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from math import prod
from types import MethodType
from typing import TYPE_CHECKING, Any

from ...capabilities.probe import available
from ...strategies import STRATEGIES
from ..towers import towers_of
from . import whole_gradients
from .generation import INSIDE
from .loading import put_back_rows, set_aside_rows
from .peer_fetch import fetch
from .units import blocks_of, groups_of, units_of

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator


def adapt_accelerator(accelerator: Accelerator) -> None:
    """Let `accelerator.prepare` shard a model that `sharded_loading` loaded, or any other, as this module says."""
    prepare = accelerator.prepare
    if not accelerator.is_fsdp2 or getattr(prepare, "_unsloth_accel", False):
        return
    available("FSDP2's units")
    available("gradients of whole weights")

    def prepare_sharded(*objects: Any, **options: Any) -> Any:
        import torch
        from torch.distributed.fsdp import FSDPModule
        from unsloth.models.fsdp2_save import reduce_unsharded_trainable_grads

        models = [item for item in objects if isinstance(item, torch.nn.Module) and not isinstance(item, FSDPModule)]
        if len(models) != 1:  # accelerate's FSDP2 prepares one model; several it refuses itself
            return prepare(*objects, **options)
        (model,) = models
        for optimizer in (item for item in objects if isinstance(item, torch.optim.Optimizer)):
            for group in optimizer.param_groups:  # frozen weights get stand-ins, which an optimizer can't follow
                group["params"] = [weight for weight in group["params"] if weight.requires_grad]
        pending = set_aside_rows(model, accelerator)
        _keep_lora_whole(model, accelerator)
        _keep_towers_apart(model, accelerator)
        prepared = prepare(*objects, **options)
        put_back_rows(model, pending)
        _pass_over_what_was_never_gathered(model)
        _compute_in_autocast(model, accelerator)
        # On GPUs Unsloth has done so already; then this finds nothing left to do.
        reduce_unsharded_trainable_grads(model)
        whole_gradients.average_once(model)
        whole_gradients.copy_together()
        _gather_head_for_the_loss(model)
        fetch.install(model)
        return prepared

    prepare_sharded._unsloth_accel = True  # type: ignore[attr-defined]
    accelerator.prepare = prepare_sharded


def _keep_lora_whole(model: torch.nn.Module, accelerator: Accelerator) -> None:
    """Leave the trainable weights out of FSDP2 while they are few, equal on all ranks."""
    import torch.distributed as dist

    plugin: Any = accelerator.state.fsdp_plugin
    trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    frozen = sum(_count(weight) for weight in model.parameters() if not weight.requires_grad)
    few = sum(weight.numel() for weight in trainable.values()) <= STRATEGIES["fsdp2"].whole_adapter_share * frozen
    if plugin.ignored_modules is not None or not few or not trainable:
        return
    owners = {name.rpartition(".")[0] for name in trainable}
    modules = [model.get_submodule(name) for name in owners]
    if any(not weight.requires_grad for module in modules for weight in module.parameters()):
        return  # a module that trains some of its weights only: ignoring it would leave frozen ones unsharded
    for name in sorted(trainable):
        dist.broadcast(trainable[name].detach(), src=0)
    plugin.ignored_modules = modules


def _keep_towers_apart(model: torch.nn.Module, accelerator: Accelerator) -> None:
    """Make each tower for images or sound a unit, which rows of text never gather; the model's own unit would gather
    it in every step."""
    if not available("a tower that is a unit of its own"):
        return
    plugin: Any = accelerator.state.fsdp_plugin
    named = plugin.transformer_cls_names_to_wrap
    if named is None:  # then Accelerate takes the blocks of towers too, by the model's `_no_split_modules`
        return
    kinds = {type(model.get_submodule(path)) for path in towers_of(model)}
    # Accelerate goes by the class alone: a projector that is a plain Linear would make every Linear a unit.
    own = sorted(kind.__name__ for kind in kinds if not kind.__module__.startswith("torch."))
    plugin.transformer_cls_names_to_wrap = list(dict.fromkeys([*named, *own]))


def _pass_over_what_was_never_gathered(model: torch.nn.Module) -> None:
    """Keep FSDP2 from looking for a gradient in weights that it has not gathered yet: they have none."""
    if not available("gradients of weights that were gathered"):
        return
    for unit in units_of(model):
        for group in groups_of(unit):
            for parameter in group.fsdp_params:
                accumulate = parameter.to_accumulated_grad_if_needed
                parameter.to_accumulated_grad_if_needed = partial(_if_gathered, parameter, accumulate)


def _if_gathered(parameter: Any, accumulate: Callable[[], None]) -> None:
    if hasattr(parameter, "_unsharded_param"):
        accumulate()


def _compute_in_autocast(model: Any, accelerator: Accelerator) -> None:
    """Wrap the forward of `model` as accelerate does on one GPU (`prepare_model`): in autocast, outputs in float32."""
    from accelerate.utils import convert_outputs_to_fp32

    if accelerator.mixed_precision == "no":
        return
    forward = model._original_forward = model.forward  # GRPO takes the wrapping off (`unwrap_model`)
    if isinstance(forward, MethodType):
        model.forward = MethodType(convert_outputs_to_fp32(accelerator.autocast()(forward.__func__)), model)
    else:
        model.forward = convert_outputs_to_fp32(accelerator.autocast()(forward))


def _count(weight: Any) -> int:
    """Weights in `weight`, which may be in 4 bit: several in each stored number."""
    state = getattr(weight, "quant_state", None)
    return int(weight.numel()) if state is None else prod(state.shape)


def _gather_head_for_the_loss(model: Any) -> None:
    """Gather the output head while the last block computes, and give it back once the loss is there.

    Unsloth's fused loss computes the gradient of its input together with the loss, so the backward pass needs no head.
    Where the model returns logits instead, autograd does, and the head stays until the backward pass is over.
    """
    from torch.distributed.fsdp import FSDPModule

    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    layers = blocks_of(model)
    if not layers:
        return
    layers[-1].set_reshard_after_forward(True, recurse=False)
    if not available("the output head gathered for the loss only"):
        return
    if not isinstance(head, FSDPModule) or head.weight is embedding.weight or head.weight.requires_grad:
        return
    if any(len(group.modules) > 1 for group in groups_of(head)):
        return  # shared with the final norm, which is read before the loss
    for key, hook in list(model._forward_pre_hooks.items()):
        if getattr(hook, "__name__", "") == "_unsloth_gather_direct_reads":
            del model._forward_pre_hooks[key]
    if isinstance(embedding, FSDPModule) and not embedding.weight.requires_grad:
        embedding.set_unshard_in_backward(False)

    def before(module: Any, arguments: Any) -> None:
        # Not for good: a recomputed forward pass would gather it again.
        layers[-1].set_modules_to_forward_prefetch([head])

    def after(module: Any, arguments: Any, output: Any) -> None:
        import torch

        layers[-1].set_modules_to_forward_prefetch([])
        # GRPO multiplies hidden states with the head itself, after the model has returned them.
        if os.environ.get("UNSLOTH_RETURN_HIDDEN_STATES") == "1" or getattr(model, INSIDE, False):
            return
        if not torch.is_grad_enabled() or not isinstance(getattr(output, "logits", None), torch.Tensor):
            head.reshard()

    model.register_forward_pre_hook(before)
    model.register_forward_hook(after)
