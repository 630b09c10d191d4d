"""Loading, on each rank of an FSDP2 launch, only the rows of the weights that it keeps.

In accelerate 1.15 with Unsloth 2026.10.9 every rank loads the whole model before it is sharded, so no model trains that
is larger than one GPU, and loading takes more memory than one GPU's training does. `sharded_loading` lets each rank
keep its rows only, of 16-bit weights (Unsloth's own loader) and of 4-bit ones (quantised weight by weight, cut at
once). `shard` then puts the rows where FSDP2 expects them.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from ...capabilities.probe import available
from ..environment import rank, world_size

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator


def is_launched(environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether `accelerate launch` started this process with an FSDP2 config, as one of several."""
    chosen = environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" and environ.get("FSDP_VERSION") == "2"
    return chosen and world_size(environ) > 1


_LOAD_SHARDS = "UNSLOTH_FSDP2_SHARDED_LOAD"
"""Unsloth's variable for loading that reads this rank's rows only."""
OTHER_WAYS = ("FSDP_OFFLOAD_PARAMS", "FSDP_CPU_RAM_EFFICIENT_LOADING", "ACCELERATE_USE_PARALLELISM_CONFIG")
"""Variables of `accelerate launch` for configs that place weights in a way of their own: on the host, on rank 0 first,
or over groups of ranks. Rows that each rank loaded for itself don't fit them."""


def loads_rows(environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether each rank of this launch is to load its rows only; warn where the config stands in the way."""
    if not is_launched(environ):
        return False
    other = [name for name in OTHER_WAYS if environ.get(name, "").lower() == "true"]
    if other and not rank(environ):
        keys = ", ".join(name.removeprefix("ACCELERATE_").lower() for name in other)
        warnings.warn(f"every GPU loads the whole model, because of the config's {keys}.", stacklevel=2)
    return not other


def loading_of(*, load_in_4bit: bool, mixture: bool, reads_base: bool) -> AbstractContextManager[None]:
    """Return the context in which a model is loaded: its rows on each rank of an FSDP2 launch, or all of it.

    `mixture`: whether it is a mixture of experts. `reads_base`: whether first weights of its adapter are computed from
    the base's (`config.lora_fields.reads_the_base`).
    """
    return whole_loading() if mixture or reads_base else sharded_loading(load_in_4bit)


@contextmanager
def sharded_loading(load_in_4bit: bool) -> Iterator[None]:
    """Let `FastLanguageModel.from_pretrained` keep this rank's rows of the linear weights only.

    Does nothing outside an FSDP2 launch, nor on a CPU, nor where the config offloads weights, has rank 0 load them, or
    divides the ranks into groups, nor inside `whole_loading`. Embedding and head are loaded whole and cut when the
    model is prepared. The model can't run before that: `adapt` the Trainer, or `unsloth_accel.prepare`.
    """
    import torch

    whole = os.environ.get(_LOAD_SHARDS) == "0" or not loads_rows() or not torch.cuda.is_available()
    if whole or not available("rows that Unsloth loads"):
        yield
        return
    from accelerate import PartialState

    PartialState()  # the process group, over which the rows are divided
    if not load_in_4bit:
        from unsloth.models.fsdp2_load import fsdp2_sharded_loading as loading
    else:
        loading = _cut_when_quantised if available("4-bit weights cut as they are made") else nullcontext
    with loading():
        yield


@contextmanager
def whole_loading() -> Iterator[None]:
    """Let Unsloth load the whole model on every rank, also where the launch, or `enable_multi_gpu`, says otherwise.

    For mixtures of experts: transformers puts their weights together from several tensors of the checkpoint, of which
    Unsloth's sharded loading can't read the rows (seen with Qwen3's). And for adapters whose first weights are computed
    from the base's, such as DoRA's.
    """
    asked = os.environ.get(_LOAD_SHARDS)
    os.environ[_LOAD_SHARDS] = "0"
    try:
        yield
    finally:
        if asked is None:
            del os.environ[_LOAD_SHARDS]
        else:
            os.environ[_LOAD_SHARDS] = asked


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
    """Keep this rank's part of a 4-bit weight, marked as Unsloth marks the rows that it loads.

    FSDP2 divides the weight as elements of the compute dtype, so bytes are counted in pairs.
    """
    import torch.distributed as dist
    from unsloth.models import fsdp2_load

    world, own = dist.get_world_size(), dist.get_rank()
    stored = weight.data.reshape(-1)
    per_row = weight.quant_state.dtype.itemsize // stored.element_size()
    rows = stored.numel() // per_row
    start, stop = fsdp2_load._chunk_rows(rows, world, own)
    weight.data = stored[start * per_row : stop * per_row].clone().view(-1, 1)
    mark = {"shape": (rows, 1), "ranks": list(range(world)), "world": world, "rank": own, "rows": (start, stop)}
    weight.__dict__[fsdp2_load._PRELOAD] = mark


def holds_rows(model: torch.nn.Module) -> bool:
    """Return whether `model` was loaded as this rank's rows, and isn't sharded yet."""
    if not available("rows that Unsloth loads", needed=False):  # said when they weren't loaded
        return False
    from unsloth.models.fsdp2_load import has_preloaded_shards

    return bool(has_preloaded_shards(model))


def set_aside_rows(model: torch.nn.Module, accelerator: Accelerator) -> dict[Any, Any]:
    """Put stand-ins of the whole shape, which `fully_shard` can divide, in place of loaded rows; returns the rows."""
    if not holds_rows(model):
        return {}
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from unsloth.models import fsdp2_load
    from unsloth.models.fsdp2_native import FSDP2Config

    in_4bit = []
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            quantised: Any = weight
            if fsdp2_load._preload(weight) is None or getattr(weight, "quant_state", None) is None:
                continue
            storage = quantised.quant_state.dtype
            quantised.data = quantised.data.reshape(-1).view(storage).view(-1, 1)
            quantised.quant_storage = storage
            if hasattr(module, "quant_storage"):
                module.quant_storage = storage
            in_4bit.append((module, name, type(quantised)))
    mesh = init_device_mesh(accelerator.device.type, (dist.get_world_size(),))
    pending, _ = fsdp2_load.begin_shard(model, mesh, FSDP2Config())
    for module, name, kind in in_4bit:
        # Unsloth keeps the quantisation state of what it recognises as a 4-bit weight, by its class.
        stand_in: Any = getattr(module, name)
        stand_in.__class__ = kind
        stand_in.module = module
    return dict(pending)


def put_back_rows(model: torch.nn.Module, pending: dict[Any, Any]) -> None:
    import torch

    if pending:
        from unsloth.models.fsdp2_load import finish_shard

        finish_shard(model, pending)
    torch.cuda.empty_cache()
