"""Values of the `lora` section: what Unsloth and PEFT would refuse of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from ..errors import Problem, nearest
from .run_config import LoraConfig

WHOLE = ("embed_tokens", "lm_head")
"""Modules that Unsloth trains whole where they are targets (unsloth/models/_utils.py:
`_redirect_embedding_targets`), and the only ones in `modules_to_save`."""
FUSED = {
    "gate_up_proj": ("gate_proj", "up_proj"),
    **{name: (name,) for name in ("gate_proj", "up_proj", "down_proj")},
}
"""Parameters that hold a mixture's experts, and the modules for which Unsloth gives one of them LoRA
(unsloth/models/_utils.py: `get_moe_target_parameters`)."""
OWN_START = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of PEFT's init_lora_weights that leave the base as it is; the others (pissa, olora, …) change its weights."""
_STARTS = (True, False, "gaussian", "orthogonal", "pissa", "olora", "loftq")
_LOFTQ = {"loftq_bits": (4, 8), "loftq_iter": range(1, 1001)}
"""Fields of PEFT's LoftQConfig, and what they may be (peft/utils/loftq_utils.py: `loftq_init`)."""
_SETS = ("target_modules", "modules_to_save", "layers_to_transform", "target_parameters")
"""Lists that PEFT only looks up modules, blocks and weights in."""
_BIASES = ("none", "all", "lora_only")


def lora_problems(lora: LoraConfig) -> Iterator[Problem]:
    """Yield what is wrong with the section's own values, whatever the model."""

    def wrong(key: str, consequence: str, fix: str) -> Problem:
        return Problem(key=f"lora.{key}", value=getattr(lora, key), consequence=consequence, fix=fix, rule="run-value")

    start = lora.init_lora_weights
    if isinstance(start, str) and (start in ("eva", "corda", "lora_ga") or start.startswith("pissa_niter")):
        why = "is drawn anew each time" if start.startswith("pissa") else "is made of a batch of rows by a script"
        others = ", ".join(str(one).lower() for one in _STARTS)
        yield wrong("init_lora_weights", f"{why}, so no run begins with it.", f"one of: {others}")
    elif not any(start is one or (isinstance(one, str) and start == one) for one in _STARTS):
        fix = f"one of: {', '.join(str(one).lower() for one in _STARTS)}"
        yield wrong("init_lora_weights", "is no way to begin that Unsloth and PEFT know.", fix)
    if start == "orthogonal" and lora.r % 2:
        yield wrong("init_lora_weights", f"needs an even rank, and lora.r is {lora.r}.", f"lora.r={lora.r + 1}")
    if lora.bias not in _BIASES:
        yield wrong("bias", "unknown value.", f"one of: {', '.join(_BIASES)}")
    if lora.loftq_config and start != "loftq":
        yield wrong("loftq_config", "is for init_lora_weights=loftq alone, and would be ignored.", "remove it")
    for name, value in lora.loftq_config.items() if start == "loftq" else ():
        if name not in _LOFTQ:
            yield wrong("loftq_config", f"has no {name}: nothing would look at it.", nearest(str(name), _LOFTQ))
        elif type(value) is not int or value not in _LOFTQ[name]:
            fix = f"lora.loftq_config.{name}: {_LOFTQ[name][0]}"
            yield wrong("loftq_config", f"has {name}={value}, which PEFT doesn't take; every process fails.", fix)
    for key in ("modules_to_save", "target_parameters"):
        value = getattr(lora, key)
        if value is not None and not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
            yield wrong(key, "must be a list of names.", f"lora.{key}=[…]")
        elif key == "modules_to_save" and (other := [one for one in value or () if one not in WHOLE]):
            yield wrong(key, f"names {other[0]}; Unsloth trains no others whole.", f"some of: {', '.join(WHOLE)}")
    layers = lora.layers_to_transform
    if layers is not None and not (
        isinstance(layers, list) and layers and all(type(one) is int and one >= 0 for one in layers)
    ):
        yield wrong("layers_to_transform", "must be a list of blocks' numbers, from 0.", "such as [0, 1]")
    if lora.layers_pattern is not None and layers is None:
        yield wrong(
            "layers_pattern", "names the list that layers_to_transform counts in, which is not given.", "remove"
        )
    elif lora.layers_pattern is not None and not re.fullmatch(r"\w+", str(lora.layers_pattern)):
        yield wrong("layers_pattern", "must be the name of a list of blocks.", "layers")


def given_to_peft(lora: LoraConfig) -> dict[str, Any]:
    """Return the arguments of `get_peft_model` that are not as usual, beside rank, alpha, targets and scaling."""
    usual = LoraConfig()
    names = ("use_dora", "init_lora_weights", "loftq_config", "layers_to_transform", "layers_pattern", "bias")
    said = {name: getattr(lora, name) for name in (*names, "modules_to_save", "target_parameters")}
    if lora.init_lora_weights == "loftq":  # PEFT looks up both, and fills in neither (`LoraLayer.loftq_init`)
        said["loftq_config"] = {name: allowed[0] for name, allowed in _LOFTQ.items()} | lora.loftq_config
    return {name: value for name, value in said.items() if value != getattr(usual, name)}


def trained_whole(modules_to_save: Iterable[str] | None) -> list[str]:
    """Return those of PEFT's `modules_to_save` that are embeddings or head, as a run.yaml's may be; a score isn't."""
    return [name for name in modules_to_save or () if name in WHOLE]


def experts_modules(parameters: Iterable[str] | None) -> set[str]:
    """Return the modules for which Unsloth gives LoRA to `parameters`, those of PEFT's `target_parameters`."""
    return {name for one in parameters or () for name in FUSED.get(one.rpartition(".")[2], ())}


def as_meant(key: str, value: Any) -> Any:
    """Return a value of lora.`key` as it is to be compared with another: without order where that means nothing."""
    return {*map(repr, value)} if key.removeprefix("lora.") in _SETS and isinstance(value, list) else value


def reads_the_base(*, use_dora: bool, init_lora_weights: Any) -> bool:
    """Return whether first weights of an adapter made so are computed from the base's, which must be whole then."""
    return use_dora or init_lora_weights not in OWN_START
