"""FSDP1: the adapter's names in a model whose modules are wrapped, which PEFT does not see through.

Mends, in PEFT 0.21 with accelerate 1.15 and torch's FullyShardedDataParallel:
- PEFT strips `_fsdp_wrapped_module.` from the front of a module's name only, and under a wrap policy it also stands in
  the middle: it finds no LoRA tensor and saves an empty adapter (peft/tuners/tuners_utils.py:
  `_get_tuner_state_dict_key_prefixes`), in checkpoints too.
- On resume it takes the wrapped names for a model without PEFT's prefix, strips the prefix from what it loads, and
  restores nothing, without a word (peft/utils/save_and_load.py: `requires_prefix`; load_state_dict is not strict).
Refuses:
- a fused optimizer where checkpoints are saved: its step counters lie on the GPUs, and putting the ranks' states
  together compares one GPU's with another's, which ends the run at its first checkpoint (torch 2.11,
  torch/distributed/fsdp/_optim_utils.py: `_convert_all_state_info`; seen on two H100).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from ..capabilities.probe import available
from ..errors import ConfigError, Problem, UnslothAccelError

if TYPE_CHECKING:
    import torch
    from transformers import Trainer

WRAPPED = "_fsdp_wrapped_module."


class RestoreError(UnslothAccelError):
    """A checkpoint's adapter could not be put back whole."""


def is_fsdp1(model: Any) -> bool:
    """Return whether torch's FullyShardedDataParallel wraps `model` or a part of it."""
    return bool(_units(model))


def gathered(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of every unit that trains, put together on the CPU of rank 0, by the names of the bare model.

    Every rank must call it; the others get none. One unit is gathered at a time.
    """
    import torch
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

    first = torch.distributed.get_rank() == 0
    found: dict[str, torch.Tensor] = {}
    units = _units(model)
    if units[0][1]._is_root is None:  # before its first forward; torch must meet the outermost unit first
        with FSDP.summon_full_params(units[0][1], recurse=False, writeback=False):
            pass
    with torch.no_grad():
        for prefix, unit in units:
            handle = unit._handle
            if handle is None or not handle.flat_param.requires_grad:
                continue
            with FSDP.summon_full_params(unit, recurse=False, writeback=False):
                inner = tuple(other for other, module in _units(unit) if module is not unit)
                own = [(name, value) for name, value in unit.named_parameters() if not name.startswith(inner)]
                found |= {bare(f"{prefix}{name}"): value.detach().cpu().clone() for name, value in own if first}
    return found


def bare(name: str) -> str:
    """Return `name` as it is in the model without wrappers."""
    return name.replace(WRAPPED, "")


def refuse_fused(trainer: Trainer) -> None:
    """Raise `ConfigError` for a fused optimizer whose state would have to be saved."""
    args = trainer.args
    optimizer = str(getattr(args.optim, "value", args.optim))
    fused = optimizer.endswith("_fused")
    if trainer.optimizer is not None:  # made by the script
        optimizer = type(trainer.optimizer).__name__
        fused = any(group.get("fused") for group in trainer.optimizer.param_groups)
    saves = str(getattr(args.save_strategy, "value", args.save_strategy)) != "no" and not args.save_only_model
    if saves and fused:
        what = "FSDP1 can't put the state of a fused optimizer together: the run would end at its first checkpoint."
        raise ConfigError(Problem(key="optim", value=optimizer, consequence=what, fix="optim='adamw_torch'"))


@functools.cache
def let_peft_see_through() -> None:
    """Make PEFT find, save and restore the adapter of an FSDP1 model; does nothing the second time."""
    available("the adapter under FSDP1")
    from accelerate.utils import fsdp_utils
    from peft.tuners import tuners_utils

    prefixes, restore = tuners_utils._get_tuner_state_dict_key_prefixes, fsdp_utils._set_model_state_dict

    def of_bare_names(*args: Any, **kwargs: Any) -> set[str]:
        return {bare(prefix) for prefix in prefixes(*args, **kwargs)}

    def restore_by_bare_names(
        model: Any, state_dict: dict[str, Any], adapter_only: bool = False, sd_options: Any = None
    ) -> Any:
        if adapter_only and is_fsdp1(model) and hasattr(model, "peft_config"):
            return _restored(model, state_dict)
        return restore(model, state_dict, adapter_only=adapter_only, sd_options=sd_options)

    tuners_utils._get_tuner_state_dict_key_prefixes = of_bare_names
    fsdp_utils._set_model_state_dict = restore_by_bare_names


def _restored(model: Any, saved: dict[str, Any]) -> Any:
    """Load `saved`, PEFT's names without the adapter's, into `model`; raises `RestoreError` where a tensor is lost."""
    adapter = model.active_adapter
    # As accelerate's FULL_STATE_DICT saves them, the names have the adapter's already.
    named = {
        key if f".{adapter}." in key else f".{adapter}.".join(key.rsplit(".", 1)): value for key, value in saved.items()
    }
    result = model.load_state_dict(named, strict=False)
    lost = [key for key in (*result.unexpected_keys, *result.missing_keys) if ".lora_" in key]
    if lost or not named:
        detail = f"{len(lost)} of its tensors fit no parameter, first {lost[0]}" if lost else "it holds none"
        raise RestoreError(f"the checkpoint's adapter was not restored: {detail}. Fix: start a new run.")
    return result


def _units(model: Any) -> list[tuple[str, Any]]:
    """The FSDP1 units of `model`, each with the prefix of its parameters' names."""
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

    return [(f"{name}." if name else "", module) for name, module in model.named_modules() if isinstance(module, FSDP)]
