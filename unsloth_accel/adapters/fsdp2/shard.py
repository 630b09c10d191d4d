"""FSDP2 through Accelerate's plugin, for LoRA over a frozen model.

Mends, in accelerate 1.15 with torch 2.11 to 2.13 and Unsloth 2026.10.9 (figures: docs/fsdp2.md):

- Every rank loads the whole model before it is sharded, so no model trains that is larger than one GPU, and loading
  takes more memory than one GPU's training does. `sharded_loading` lets each rank keep its rows only, of 16-bit weights
  (Unsloth's own loader) and of 4-bit ones (quantised weight by weight, cut at once).
- Unsloth gathers the output head before the first block and keeps it through the backward pass, where nobody reads it.
  Here it is gathered beside the last block and given back after the loss.
- Each block gathers and reduces its few LoRA weights by itself: 96 small collectives per step for 32 blocks, which hold
  the ranks in lock-step and wait for the copies of offloaded activations. Here LoRA weights stay whole on every rank,
  as in DDP, and their gradients are averaged once per backward pass (by Unsloth, which does so for all that FSDP2 is
  told to ignore). They also stay float32 in the forward pass, as on one GPU.
- The frozen weights travel by NCCL kernels, which take multiprocessors from the matrix products. `peer` has them copied
  by the GPUs' copy engines where the GPUs reach each other's memory.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import TYPE_CHECKING, Any

from ...strategies import STRATEGIES
from ..environment import rank, world_size
from . import whole_gradients
from .generation import INSIDE
from .peer_fetch import fetch
from .units import blocks_of, groups_of

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator


def is_launched(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether `accelerate launch` started this process with an FSDP2 config, as one of several."""
    chosen = environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" and environ.get("FSDP_VERSION") == "2"
    return chosen and world_size(environ) > 1


OTHER_WAYS = ("FSDP_OFFLOAD_PARAMS", "FSDP_CPU_RAM_EFFICIENT_LOADING", "ACCELERATE_USE_PARALLELISM_CONFIG")
"""Variables of `accelerate launch` for configs that place weights in a way of their own: on the host, on rank 0 first,
or over groups of ranks. Rows that each rank loaded for itself don't fit them."""


def loads_rows(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether each rank of this launch is to load its rows only; warns where the config stands in the way."""
    if not is_launched(environ):
        return False
    other = [name for name in OTHER_WAYS if environ.get(name, "").lower() == "true"]
    if other and not rank(environ):
        keys = ", ".join(name.removeprefix("ACCELERATE_").lower() for name in other)
        warnings.warn(f"every GPU loads the whole model, because of the config's {keys}.", stacklevel=2)
    return not other


@contextmanager
def sharded_loading(load_in_4bit: bool) -> Iterator[None]:
    """Inside, `FastLanguageModel.from_pretrained` keeps this rank's rows of the linear weights only.

    Does nothing outside an FSDP2 launch, nor on a CPU, nor where the config offloads weights, has rank 0 load them, or
    divides the ranks into groups. Embedding and head are loaded whole and cut when the model is prepared. The model
    can't run before that: `adapt` the Trainer, or `unsloth_accel.prepare`.
    """
    import torch

    if not loads_rows() or not torch.cuda.is_available():
        yield
        return
    from accelerate import PartialState

    PartialState()  # the process group, over which the rows are divided
    if load_in_4bit:
        with _cut_when_quantised():
            yield
        return
    from unsloth.models.fsdp2_load import fsdp2_sharded_loading

    with fsdp2_sharded_loading():
        yield


def adapt_accelerator(accelerator: Accelerator) -> None:
    """Let `accelerator.prepare` shard a model that `sharded_loading` loaded, or any other, as this module says."""
    prepare = accelerator.prepare
    if not accelerator.is_fsdp2 or getattr(prepare, "_unsloth_accel", False):
        return

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
        pending = _set_aside_rows(model, accelerator)
        _keep_lora_whole(model, accelerator)
        prepared = prepare(*objects, **options)
        _put_back_rows(model, pending)
        # On GPUs Unsloth has done so already; then this finds nothing left to do.
        reduce_unsharded_trainable_grads(model)
        whole_gradients.copy_together()
        _gather_head_for_the_loss(model)
        fetch.install(model)
        return prepared

    prepare_sharded._unsloth_accel = True  # type: ignore[attr-defined]
    accelerator.prepare = prepare_sharded


@contextmanager
def _cut_when_quantised() -> Iterator[None]:
    """Let transformers cut each 4-bit weight to this rank's rows as soon as it is quantised or read."""
    import transformers.modeling_utils
    from transformers.integrations.bitsandbytes import Bnb4bitDeserialize, Bnb4bitQuantize

    originals = {kind: kind.convert for kind in (Bnb4bitQuantize, Bnb4bitDeserialize)}

    def cutting(original: Any) -> Any:
        def convert(self: Any, *arguments: Any, **options: Any) -> Any:
            result = original(self, *arguments, **options)
            for weight in result.values():
                if getattr(weight, "quant_state", None) is not None:
                    _cut(weight)
            return result

        return convert

    warm_up = transformers.modeling_utils.caching_allocator_warmup
    asynchronous = os.environ.get("HF_DEACTIVATE_ASYNC_LOAD")
    for kind, original in originals.items():
        kind.convert = cutting(original)
    # Both would put the whole model on the GPU at once.
    transformers.modeling_utils.caching_allocator_warmup = lambda *arguments, **options: None
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
    try:
        yield
    finally:
        for kind, original in originals.items():
            kind.convert = original
        transformers.modeling_utils.caching_allocator_warmup = warm_up
        if asynchronous is None:
            del os.environ["HF_DEACTIVATE_ASYNC_LOAD"]
        else:
            os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = asynchronous


def _cut(weight: Any) -> None:
    """Keep this rank's part of a packed 4-bit weight, marked as Unsloth marks the rows that it loads.

    FSDP2 divides the weight as elements of the compute dtype, so bytes are counted in pairs.
    """
    import torch.distributed as dist
    from unsloth.models import fsdp2_load

    world, own = dist.get_world_size(), dist.get_rank()
    packed = weight.data.reshape(-1)
    per_row = weight.quant_state.dtype.itemsize // packed.element_size()
    rows = packed.numel() // per_row
    start, stop = fsdp2_load._chunk_rows(rows, world, own)
    weight.data = packed[start * per_row : stop * per_row].clone().view(-1, 1)
    mark = {"shape": (rows, 1), "ranks": list(range(world)), "world": world, "rank": own, "rows": (start, stop)}
    weight.__dict__[fsdp2_load._PRELOAD] = mark


def _set_aside_rows(model: torch.nn.Module, accelerator: Accelerator) -> dict[Any, Any]:
    """Put stand-ins of the whole shape, which `fully_shard` can divide, in place of loaded rows; returns the rows."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from unsloth.models import fsdp2_load
    from unsloth.models.fsdp2_native import FSDP2Config

    if not fsdp2_load.has_preloaded_shards(model):
        return {}
    packed = []
    for module in model.modules():
        for name, weight in module._parameters.items():
            quantised: Any = weight
            if fsdp2_load._preload(weight) is None or getattr(weight, "quant_state", None) is None:
                continue
            storage = quantised.quant_state.dtype
            quantised.data = quantised.data.reshape(-1).view(storage).view(-1, 1)
            quantised.quant_storage = storage
            if hasattr(module, "quant_storage"):
                module.quant_storage = storage
            packed.append((module, name, type(quantised)))
    mesh = init_device_mesh(accelerator.device.type, (dist.get_world_size(),))
    pending, _ = fsdp2_load.begin_shard(model, mesh, FSDP2Config())
    for module, name, kind in packed:
        # Unsloth keeps the quantisation state of what it recognises as a 4-bit weight, by its class.
        stand_in: Any = module._parameters[name]
        stand_in.__class__ = kind
        stand_in.module = module
    return dict(pending)


def _put_back_rows(model: torch.nn.Module, pending: dict[Any, Any]) -> None:
    import torch
    from unsloth.models.fsdp2_load import finish_shard

    finish_shard(model, pending)
    torch.cuda.empty_cache()


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


def _count(weight: Any) -> int:
    """Weights in `weight`, which may be packed."""
    state = getattr(weight, "quant_state", None)
    if state is None:
        return int(weight.numel())
    return prod(state.shape)


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
