"""Kept activations: how many decoder blocks keep theirs, instead of computing them again in the backward pass.

Unsloth chooses the blocks (`skip_checkpointing`, evenly spaced) and marks them. It only ever adds marks, and it counts
the blocks that recompute in its first pass alone, so as not to offload the last one's input: here marks can be taken
back, and the count begins anew.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from ..capabilities.probe import available
from ..hardware.ranks import of_every_rank
from . import environment

if TYPE_CHECKING:
    import torch

MARK = "_unsloth_skip_checkpoint"
COUNTS = {"FIRST_PASS": True, "LAST_GC_INDEX": 0, "CURRENT_GC_INDEX": 0}
"""Names in Unsloth's checkpointing, with their values before its first pass."""


def keep(model: torch.nn.Module, count: int) -> int:
    """Let exactly `count` decoder blocks of `model` keep their activations, evenly spaced; returns how many do.

    Call it between steps, as often as need be, with the model that Unsloth returned or the Trainer's. It means
    something with gradient checkpointing only. More blocks than `model` has are all of them; those that Unsloth swaps
    out to the host's memory recompute in any case.
    """
    if not available("blocks that keep their activations", needed=count > 0 or kept(model) > 0):
        return 0
    found = blocks(model)
    for block in found:
        block.__dict__.pop(MARK, None)
    planner = getattr(model, "_unsloth_auto_skip", None)
    if planner is not None:  # it would mark blocks after the first step
        planner.remove()
    count_anew()
    if not count or not len(found):  # a count of 0 would have Unsloth read UNSLOTH_GC_KEEP_LAYERS
        return 0
    # Not before: on a CPU nothing else imports Unsloth's models for GPUs, which takes seconds and patches TRL anew.
    from unsloth.models._utils import skip_checkpointing

    return len(skip_checkpointing(model, count))


def count_anew() -> None:
    """Have Unsloth's checkpointing count the blocks that recompute in its next pass, as in its first."""
    checkpointing = sys.modules.get("unsloth_zoo.gradient_checkpointing")
    for name, value in COUNTS.items() if checkpointing else ():
        setattr(checkpointing, name, value)


def kept(model: torch.nn.Module) -> int:
    """Return how many decoder blocks of `model` keep their activations."""
    return sum(MARK in module.__dict__ for module in model.modules())


def blocks(model: torch.nn.Module) -> Any:
    """Return the decoder blocks of `model`, as Unsloth finds them; empty where it finds none."""
    if not available("blocks that keep their activations", needed=False):
        return ()
    from unsloth_zoo.block_swap import find_decoder_layers

    try:
        return find_decoder_layers(model)
    except RuntimeError:
        return ()


def told(model: torch.nn.Module) -> str:
    """Say how many blocks of `model` keep their activations; empty where none does."""
    count = kept(model)
    return f"{count} of {len(blocks(model))} decoder blocks keep their activations" if count else ""


def keep_unless_chosen(model: torch.nn.Module, count: int) -> None:
    """`keep` so many, unless blocks were chosen already: by `checkpoint_skip_layers`, or UNSLOTH_GC_KEEP_LAYERS."""
    if not kept(model) and getattr(model, "_unsloth_auto_skip", None) is None:
        keep(model, count)


def keep_as_planned(model: torch.nn.Module) -> None:
    """Let as many blocks of `model` keep their activations as were planned, unless the script has chosen; on all ranks
    as many as on the one with the fewest. Before it trains, on every rank."""
    promised = environment.promise()
    recomputes = "unsloth" in sys.modules and getattr(model, "_unsloth_gradient_checkpointing", True)
    if promised and promised.keep_activations and recomputes:
        keep_unless_chosen(model, promised.keep_activations)
    counts = of_every_rank(kept(model))
    if len(set(counts)) == 1:
        return
    keep(model, min(counts))
    if environment.rank() == 0:
        each = ", ".join(f"{count} on rank {rank}" for rank, count in enumerate(counts))
        print(
            f"unsloth_accel: warning: the ranks were to keep the activations of different numbers of blocks ({each}), "
            f"and would wait for the slowest; {min(counts)} it is on all. Fix: the same checkpoint_skip_layers and "
            "UNSLOTH_GC_KEEP_LAYERS for every rank.",
            file=sys.stderr,
            flush=True,
        )
