"""Refuses an import that came too early or too late, where the order changes the training.

Seen with Unsloth 2026.10.9, accelerate 1.15, transformers 5.17 and TRL 1.15:
- unsloth before the variables of `fsdp2_native`: on a CPU every rank loads and keeps the whole model;
- unsloth before the word that a run is on a CPU, on a machine with GPUs: it has chosen the GPU;
- unsloth before any other variable that a strategy sets for it: it goes without, which is told and not refused;
- an Accelerator (or PartialState) before the word that several processes are on a CPU: they form no group;
- an Accelerator under FSDP2 before unsloth: accelerate's policy stays as it is, which in bf16 sums gradients and rounds
  losses in 16 bits without a word, and in fp16 is refused by Unsloth;
- `from trl import SFTTrainer` before unsloth: the script holds TRL's class, and Unsloth has put another in its place.
The order of torch, transformers, peft and accelerate, as modules, changes nothing: Unsloth patches them in place.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Set
from typing import TYPE_CHECKING, Any

from ..errors import UnslothAccelError

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import Trainer


class ImportOrderError(UnslothAccelError):
    """Error of an import or an object that came too early to be set right."""

    on_every_rank = True


def check_import_order(set_now: Set[str]) -> None:
    """Raise `ImportOrderError` when one of the variables that were `set_now` has been read already, and the training
    would be another without it; rank 0 warns of the others."""
    unsloth = sys.modules.get("unsloth")
    native = sorted(name for name in set_now if name.startswith("UNSLOTH_FSDP2"))
    if unsloth is not None and native:
        raise ImportOrderError(
            f"unsloth was imported before unsloth_accel, without {native[0]}, which it reads when it is imported: the "
            "model would be loaded whole on every rank. Fix: `import unsloth_accel` before `import unsloth`."
        )
    if unsloth is not None and "UNSLOTH_FORCE_CPU" in set_now and getattr(unsloth, "DEVICE_TYPE", "cpu") != "cpu":
        raise ImportOrderError(
            f"unsloth was imported before unsloth_accel and has chosen {unsloth.DEVICE_TYPE}; this run is on a CPU. "
            "Fix: `import unsloth_accel` before `import unsloth`."
        )
    late = sorted(name for name in set_now if name.startswith("UNSLOTH_") and name != "UNSLOTH_FORCE_CPU")
    if unsloth is not None and late and os.environ.get("RANK", "0") == "0":
        print(
            f"unsloth_accel: warning: {', '.join(late)} can't be set any more: unsloth was imported before "
            "unsloth_accel and has read the environment. GRPO with sharded weights may wait for ever, other training "
            "goes on alike. Fix: `import unsloth_accel` before `import unsloth`.",
            file=sys.stderr,
            flush=True,
        )
    state: Any = sys.modules.get("accelerate.state")
    if state is None or "ACCELERATE_USE_CPU" not in set_now:
        return
    from ..capabilities.probe import available  # here, since importing this package costs next to nothing

    if available("an Accelerator without a group") and state.PartialState._shared_state.get("distributed_type") == "NO":
        raise ImportOrderError(
            "an Accelerator was built before unsloth_accel was imported, and its processes form no group: each would "
            "train alone. Fix: `import unsloth_accel` before anything builds an Accelerator or TrainingArguments."
        )


def check_accelerator(accelerator: Accelerator) -> None:
    """Raise `ImportOrderError` for an FSDP2 `accelerator` with mixed precision that was built before unsloth."""
    from ..capabilities.probe import available

    unsloth: Any = sys.modules.get("unsloth.models.fsdp2")
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if unsloth is None or getattr(plugin, "fsdp_version", 1) != 2 or not available("Unsloth's policy, seen"):
        return
    if getattr(plugin, "mixed_precision_policy", None) is not None and not hasattr(plugin, unsloth._POLICY_SEEN):
        raise ImportOrderError(
            "the Accelerator was built before unsloth was imported, so FSDP2 would sum gradients and round losses in "
            "16 bits. Fix: `import unsloth_accel` and `import unsloth` before the Accelerator is built."
        )


def check_trainer(trainer: Trainer) -> None:
    """Raise `ImportOrderError` for a trainer whose class was taken from TRL before Unsloth put its own in the place."""
    trl = sys.modules.get("trl")
    kinds = type(trainer).__mro__
    of_trl = [kind for kind in kinds if kind.__module__.split(".")[0] == "trl"]
    if "unsloth" not in sys.modules or not of_trl:
        return
    name = of_trl[0].__name__
    current = getattr(trl, name, None)
    if current is not None and current not in kinds:
        raise ImportOrderError(
            f"{name} was imported from trl before unsloth, so it is TRL's own, without what Unsloth changes in it. "
            f"Fix: `import unsloth` before `from trl import {name}`."
        )
