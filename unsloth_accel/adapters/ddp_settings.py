"""DDP's settings, decided from the model; and whether each rank holds its model where it trains.

Mends:
- find_unused_parameters, in transformers 5.17 with any PEFT model that Unsloth 2026.10.9 says nothing about (a mixture
  of experts, trained embeddings, no checkpointing, its CPU backend), and in every older Unsloth: the Trainer turns the
  search on, which fails under reentrant checkpointing ("marked ready twice") and elsewhere walks the graph for nothing.
  Turned off where parameters go without a gradient, it fails too: the others of their bucket are not averaged.
- buffers, in every torch: rank 0 sends its buffers in every forward, though those of a language model are constants,
  and NCCL stops at one on the CPU. They are kept out by name, since torch 2.13 deprecates broadcast_buffers and
  accelerate 1.15 doesn't know its successor; Unsloth does so for rotary tables, with names from before PEFT's prefix.
- placement, in Unsloth before 2026.9.14: a 4-bit model loads onto GPU 0 in every process (2025), or onto the GPU of the
  global rank, which a second machine doesn't have.
Refuses:
- static_graph with accumulation: an internal assertion of torch under no_sync.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..capabilities.probe import Capabilities, available, here
from ..errors import ConfigError, Problem, UnslothAccelError
from .ddp import before_wrapping
from .environment import rank, world_size
from .rank_checks import distributed_type, is_sharded

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from .hook_types import Arguments

SKIPPED = (
    (r"experts?\.\d+\.", "an expert that no token of a step is sent to has no gradient"),
    (r"vision|visual|audio|image|speech|projector", "a step without images or sound has no gradient there"),
    (r"(^|\.)mtp", "the heads that predict further tokens may be left out of a step"),
    (r"(lm_head|embed_\w*)\.lora_", "Unsloth's fused loss reads the weight beside its LoRA"),
)
"""Parameters, by their names, that a step may leave without a gradient. A mixture whose experts are one tensor, as in
transformers 5, isn't among them: every tensor of it takes part in every step."""


class PlacementError(UnslothAccelError):
    """The model of a rank is not on the device that the rank trains on."""


def choose_settings(accelerator: Accelerator, args: Arguments | None = None) -> None:
    """Let `accelerator` wrap models with settings decided from the model; what the user set in `args` wins.

    Without a Trainer, a `DistributedDataParallelKwargs` that the Accelerator was given is the user's word.
    Raises `ConfigError` for static_graph with accumulation.
    """
    refuse_static_graph(args)
    if args is None and accelerator.ddp_handler is not None:
        return
    # transformers 4 replaces the handler when it wraps, and has no field for this one.
    view = bool(getattr(accelerator.ddp_handler, "gradient_as_bucket_view", False))

    def choose(model: torch.nn.Module) -> None:
        if not any(map(is_sharded, model.parameters())):
            check_placement(model, accelerator.device)
            _set(accelerator, model, args, view)

    before_wrapping(accelerator, "choose", choose)


def gradients_in_buckets(accelerator: Accelerator) -> None:
    """Let DDP keep gradients in its buckets: one copy of the adapter less in memory, and no copy back in each step."""
    accelerator.ddp_handler = _handler(accelerator)
    accelerator.ddp_handler.gradient_as_bucket_view = True


def may_go_without_gradient(model: torch.nn.Module) -> tuple[str, str] | None:
    """The first trainable parameter of `model` that a step may skip, and why; None where each takes part in all."""
    for name, parameter in model.named_parameters():
        for pattern, why in SKIPPED if parameter.requires_grad else ():
            if re.search(pattern, name.lower()):
                return name, why
    config = getattr(model, "config", None)
    for key, value in vars(config).items() if config is not None else ():
        if "layerdrop" in key and isinstance(value, float) and value > 0:
            return key, "a step may drop whole layers"
    return None


def checkpoints_reentrantly(model: torch.nn.Module) -> bool:
    """Return whether activations are recomputed in a backward of their own, which DDP would take for a second one."""
    import torch.utils.checkpoint

    available("the kind of a vision model's checkpointing")
    if getattr(torch.utils.checkpoint.checkpoint, "_unsloth_original", None) is not None:
        return False  # under DDP Unsloth makes every checkpoint of a vision model non-reentrant
    used = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False) is True]
    if not available("the kind of checkpointing", needed=bool(used)):
        return bool(used)
    functions = [getattr(module, "_gradient_checkpointing_func", None) for module in used]
    return any(getattr(function, "keywords", {}).get("use_reentrant", True) for function in functions if function)


def buffers_change(model: torch.nn.Module) -> bool:
    """Return whether training changes buffers of `model` (running means); rotary tables and the like are constants."""
    return any(getattr(module, "running_mean", None) is not None for module in model.modules())


def refuse_static_graph(args: Arguments | None) -> None:
    """Raise `ConfigError` for DDP's static graph with accumulation."""
    if args is None or world_size() == 1 or not getattr(args, "ddp_static_graph", None):
        return
    steps = args.gradient_accumulation_steps
    if steps > 1:
        consequence = f"with gradient_accumulation_steps={steps} DDP fails in an internal assertion."
        fix = "remove it, or gradient_accumulation_steps=1"
        raise ConfigError(Problem(key="ddp_static_graph", value=True, consequence=consequence, fix=fix))


def check_placement(model: torch.nn.Module, device: torch.device) -> None:
    """Raise `PlacementError` where `model` is not on `device` and Accelerate can't move it: 4 bit, 8 bit, or split."""
    quantised = getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False)
    placed = getattr(model, "hf_device_map", None) or {}
    if not quantised and len(set(map(str, placed.values()))) <= 1:
        return
    # On the CPU are weights that Unsloth offloads, and in training on a CPU all.
    found = {name: p.device for name, p in model.named_parameters() if p.device.type != "cpu" and p.device != device}
    if not found:
        return
    name = next(iter(found))
    raise PlacementError(
        f"{len(found)} parameters are not on {device}, where this process trains; {name} is on {found[name]}. "
        "Fix: FastLanguageModel.from_pretrained(…, device_map={'': int(os.environ['LOCAL_RANK'])})."
    )


def device_map(
    environ: Mapping[str, str] = os.environ, capabilities: Capabilities | None = None
) -> dict[str, int] | None:
    """Return the device map for this process's model; None if Unsloth knows it itself, and in one process.

    It goes by LOCAL_RANK, the rank on this machine: the global rank would name GPU 8 on a second machine with eight.
    """
    local = environ.get("LOCAL_RANK", "")
    if world_size(environ) == 1 or not local.isdigit():
        return None
    lost = {one.what for one in (capabilities or here()).missing}
    return {"": int(local)} if "placement by LOCAL_RANK" in lost else None


def without_gradient(accelerator: Accelerator, model: torch.nn.Module) -> list[str]:
    """The trainable parameters of `model` that have no gradient on some rank; every rank must call it.

    Empty where DDP looks for them itself, and where there is no DDP.
    """
    import torch

    handler = accelerator.ddp_handler
    ddp = accelerator.num_processes > 1 and distributed_type().startswith("MULTI_")
    if not ddp or handler is None or handler.find_unused_parameters or handler.static_graph:
        return []
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad and not is_sharded(p)]
    missing = torch.tensor([p.grad is None for _, p in named], dtype=torch.int32, device=accelerator.device)
    if missing.numel():
        torch.distributed.all_reduce(missing)
    return [name for (name, _), count in zip(named, missing.tolist(), strict=True) if count]


def _set(accelerator: Accelerator, model: torch.nn.Module, args: Arguments | None, view: bool) -> None:
    from torch.nn.parallel import DistributedDataParallel

    handler = _handler(accelerator)
    if getattr(args, "ddp_find_unused_parameters", None) is None:  # Unsloth's own decision stands there too
        skipped = may_go_without_gradient(model)
        handler.find_unused_parameters = skipped is not None and not checkpoints_reentrantly(model)
        if skipped and handler.find_unused_parameters and rank() == 0:
            why = f"{skipped[0]}, since {skipped[1]}"
            print(f"unsloth_accel: DDP looks for parameters without gradient in every step: {why}", flush=True)
    constant = getattr(args, "ddp_broadcast_buffers", None) is None and not buffers_change(model)
    if constant and available("buffers that DDP leaves alone"):
        ignored: Any = getattr(model, "_ddp_params_and_buffers_to_ignore", None) or ()
        names = list(dict.fromkeys([*ignored, *(name for name, _ in model.named_buffers())]))
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
    handler.gradient_as_bucket_view = handler.gradient_as_bucket_view or view
    accelerator.ddp_handler = handler


def _handler(accelerator: Accelerator) -> Any:
    from accelerate.utils import DistributedDataParallelKwargs

    return accelerator.ddp_handler or DistributedDataParallelKwargs()
