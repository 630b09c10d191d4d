"""Adapters on experts that are fused into one parameter, taken and saved as they were trained.

Unsloth gives such experts LoRA of rank r by `target_parameters`, and leaves the names of the modules that they were
before transformers 5 (gate_proj, up_proj, down_proj) among `target_modules`. By those PEFT 0.21 takes the adapter for
one of transformers 4, and gives gate_proj and up_proj, one parameter now, twice the rank
(peft/utils/transformers_weight_conversion.py: `_convert_peft_config_moe`). What was trained on a GPU can't be loaded
then: its weights have another size. Unsloth mends that in its own process on a GPU; here it is mended in any process of
ours, and what a run saves no longer has the names.
"""

from __future__ import annotations

import functools
from typing import Any

from ..capabilities.probe import available
from ..config.lora_fields import FUSED, experts_modules


def take_as_given() -> None:
    """Have PEFT take a config that names parameters as it is, in this process; once is enough."""
    if not available("LoRA of mixtures before transformers 5"):
        return
    from peft.utils import transformers_weight_conversion as conversion

    convert = conversion.convert_peft_config_for_transformers
    if hasattr(convert, "_unsloth_accel"):
        return

    @functools.wraps(convert)
    def unless_given(peft_config: Any, *rest: Any, **more: Any) -> None:
        if not getattr(peft_config, "target_parameters", None):
            convert(peft_config, *rest, **more)

    unless_given._unsloth_accel = True  # type: ignore[attr-defined]
    conversion.convert_peft_config_for_transformers = unless_given


def fused_experts(model: Any, modules: list[str]) -> list[str]:
    """Return the ends of names, with their block left out, of the parameters that hold experts of `model` for which
    Unsloth on a GPU takes `modules` (unsloth/models/_utils.py: `get_moe_target_parameters`)."""
    named = [name.split(".") for name, parameter in model.named_parameters() if parameter.dim() == 3]
    wanted = [fused for fused, names in FUSED.items() if {*names} & {*modules}]
    # In Unsloth's order: PEFT puts one around the other, by which their weights have their names.
    return [*dict.fromkeys(".".join(one[-3:]) for fused in wanted for one in named if one[-2:] == ["experts", fused])]


def forget_old_names(model: Any) -> None:
    """Have what is saved of `model` leave out the names by which its adapter trains parameters, and no module.

    They stay while it trains: Unsloth compares by them what its get_peft_model is asked for once more. `model` is a
    PEFT model, or another, which stays as it is. Once is enough.
    """
    config: Any = (getattr(model, "peft_config", None) or {}).get("default")
    parameters, modules = (getattr(config, f"target_{kind}", None) for kind in ("parameters", "modules"))
    if not parameters or not modules or isinstance(modules, str):
        return
    present = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    old = experts_modules(parameters) - present
    if not old & {*modules} or getattr(model.save_pretrained, "_unsloth_accel_names", False):
        return
    save = model.save_pretrained

    @functools.wraps(save)
    def without(*arguments: Any, **more: Any) -> Any:
        kept = config.target_modules
        config.target_modules = {name for name in kept if name not in old}
        try:
            return save(*arguments, **more)
        finally:
            config.target_modules = kept

    without._unsloth_accel_names = True  # type: ignore[attr-defined]
    model.save_pretrained = without
