"""The decoder blocks that keep their activations: how many a plan may choose among, and why."""

from __future__ import annotations

import os
from dataclasses import replace

from ..config.run_config import RunConfig
from ..errors import Problem, counted
from .options import Choice, Option
from .ways import Refused, Way

KEY = "model.keep_activations"
VARIABLE = "UNSLOTH_GC_KEEP_LAYERS"
"""Unsloth's own variable: a number, `max` or `auto` (unsloth/models/_utils.py: `_gc_keep_layers_env`)."""


def may_keep(run: RunConfig, blocks: int, count: int, *, on_cpu: bool, reasons: list[str]) -> tuple[int, int]:
    """Return the fewest and the most of the model's `blocks` that may keep their activations, in `count` processes.

    A variable that the user set wins over `run`, which adds to `reasons`. Raises `Refused` where `run` asks for more
    than there are.
    """
    asked = run.model.keep_activations
    if run.model.gradient_checkpointing == "false":
        if asked not in ("auto", "all"):
            why = "with model.gradient_checkpointing=false every block keeps its activations"
            reasons.append(f"{KEY}={asked} has no effect: {why}.")
        return 0, 0
    if (found := variable()) is not None:
        number = 0 if found == "auto" else blocks if found == "max" else min(int(found), blocks)
        reasons.append(f"{VARIABLE}={found}: {_told(found, blocks, count)}")
        return number, number
    if value := os.environ.get(VARIABLE):
        reasons.append(f"{VARIABLE}={value}: Unsloth takes it as not set; {KEY}={asked} decides.")
    if asked == "auto":
        return 0, 0 if on_cpu else blocks
    number = blocks if asked == "all" else int(asked)
    if number > blocks:
        problem = Problem(
            key=KEY, value=asked, consequence=f"the model has {counted(blocks, 'decoder block')}.", fix=""
        )
        raise Refused(problem, [[Way(changes={KEY: word})] for word in (blocks, "all", "auto")])
    return number, number


def planned_blocks(run: RunConfig, chosen: Option | None, count: int, reasons: list[str]) -> int | None:
    """Return the blocks that keep their activations; None where that is left to Unsloth.

    Nothing is `chosen` where the model's blocks are unknown. Raises `Refused` where `run` asks for all of these.
    """
    asked, found = run.model.keep_activations, variable()
    if run.model.gradient_checkpointing == "false" or (found == "auto" and count == 1):
        return None
    if chosen:
        return chosen.keep_activations
    if found is not None:
        return None  # Unsloth reads it
    if asked == "all":
        consequence = "how many decoder blocks the model has is unknown."
        raise Refused(Problem(key=KEY, value=asked, consequence=consequence, fix=""), [[Way(changes={KEY: "auto"})]])
    if asked == "auto":
        reasons.append("activations are kept in no block, as is Unsloth's default: the model's blocks are unknown.")
        return None
    return int(asked)


def variable() -> str | None:
    """Return what Unsloth reads of the variable; None where it heeds none."""
    value = os.environ.get(VARIABLE, "").strip().lower()
    if value in ("auto", "max"):
        return value
    try:
        number = int(value)
    except ValueError:
        return None
    return str(number) if number > 0 else None


def _told(found: str, blocks: int, count: int) -> str:
    if found != "auto":
        most = "" if found == "max" or int(found) <= blocks else f"; the model has {counted(blocks, 'block')}"
        return f"set in the environment, it comes before {KEY}{most}."
    if count == 1:
        return "Unsloth chooses after the first step how many blocks keep their activations; the plan counts none."
    return (
        f"Unsloth heeds it in one process only, so no block keeps its activations; unset it, and {KEY}=auto plans it."
    )


def why_kept(run: RunConfig, chosen: Option, choice: Choice) -> list[str]:
    """Return the reason for the number of blocks that keep their activations; where `run` gives it, a faster one."""
    fewest, most = choice.keep
    if fewest == most:
        faster = replace(choice, keep=(0, choice.work.spec.num_layers)).option(chosen.strategy)
        asked = run.model.keep_activations != "auto" and variable() is None and chosen.fits
        paces = f"{faster.pace:,.0f} tokens/s against {chosen.pace:,.0f}, estimated"
        return [f"{KEY}=auto would be faster: {paces}."] if asked and faster.pace > chosen.pace else []
    kept = f"activations are kept in {chosen.keep_activations} of {most} blocks"
    if chosen.keep_activations == 0:
        return [f"{kept}: memory has no room."]
    none = replace(choice, keep=(0, 0)).option(chosen.strategy)
    pace = f" ({chosen.pace:,.0f} tokens/s against {none.pace:,.0f} with none, estimated)" if none.pace else ""
    why = "none is computed twice" if chosen.keep_activations == most else "as many as memory has room for"
    return [f"{kept}: {why}{pace}."]
