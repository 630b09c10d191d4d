"""Modules that a run's adapter trains, as Unsloth takes them, and the number of their parameters."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

from ..config.lora_fields import WHOLE, experts_modules
from ..config.run_config import PROJECTIONS, RunConfig
from ..config.start_adapter import find_adapter
from ..errors import ConfigError, Problem, nearest, raise_errors
from ..methods import METHODS
from .added_tokens import added_tokens_problems
from .lora_size import whole_parameters
from .model_tensors import Tensor
from .spec import ModelSpec

MLP = ("gate_proj", "up_proj", "down_proj")
"""Targets for which Unsloth gives every expert of a mixture LoRA of rank r (unsloth/models/llama.py:
`get_moe_target_parameters`)."""


@dataclass(frozen=True, kw_only=True)
class Targets:
    modules: tuple[str, ...] | str
    """Target modules, with `all-linear` spelt out; the pattern of an adapter that has one."""
    parameters: int
    """Number of trained parameters, over all modules."""
    whole: tuple[str, ...] = ()
    """Modules among `modules` that are trained whole."""
    saved_twice: int = 0
    """Number of parameters that stand in the adapter's file twice: a head's that is the embedding's table."""


def targets(run: RunConfig, spec: ModelSpec, *, on_cpu: bool = False) -> Targets:
    """Return what `run` trains of the model `spec`.

    `all-linear` is every nn.Linear in the decoder blocks, and the experts of a mixture: for Llama-style models the
    seven projections. Raises `ConfigError` for names that match nothing, and where nothing is left to get LoRA.
    """
    lora, asked = run.lora, run.lora.target_modules
    raise_errors([*added_tokens_problems(run)])
    if isinstance(asked, str) and asked != "all-linear":
        return Targets(modules=asked, parameters=spec.lora_parameters(asked, lora.r, use_dora=lora.use_dora))
    names = _all_linear(spec) if asked == "all-linear" else [str(name) for name in asked]
    whole = tuple(name for name in WHOLE if name in names or name in lora.modules_to_save)
    if "lm_head" in whole and METHODS[run.method].has_score:
        consequence = (
            f"{run.method} has a score head, which is trained whole, in place of lm_head: it would train none."
        )
        raise ConfigError(
            Problem(key="lora.target_modules", value=asked, consequence=consequence, fix="leave lm_head out")
        )
    parameters = _named_parameters(run, spec)
    experts = _experts(spec, names) if parameters is None else []
    # Dense blocks and shared experts beside the fused ones get LoRA of the same names.
    fused = set(MLP) - (set() if spec.measured else _leaves(spec)) if spec.num_experts else set()
    adapted = [name for name in names if name not in whole and name not in fused]
    if not adapted and not experts and not parameters:
        consequence = "Unsloth trains these whole, so no module is left to get LoRA, and it stops after loading."
        if not whole:
            consequence = "means no layer of this model, nor its experts, that Unsloth gives LoRA."
        others = sorted(_leaves(spec) - {*MLP})
        fix = f"add a projection, such as {others[0]}" if others else "another model"
        raise ConfigError(Problem(key="lora.target_modules", value=asked, consequence=consequence, fix=fix))
    within = _layers(run, spec)
    parameters = parameters or experts
    if parameters:
        _check_fused(run, parameters, within)
    total = _factors([one for one in parameters if _is_within(one.name, within)], lora.r)
    if adapted:
        total += spec.lora_parameters(adapted, lora.r, use_dora=lora.use_dora, layers=within, modules_to_save=whole)
    elif whole:
        total += whole_parameters(spec, whole)
    twice = spec.vocab_size * spec.hidden_size if len(whole) > 1 and trains_one_table(run, spec, on_cpu) else 0
    total += _biases(run, spec, adapted, within) - twice
    # Without target_parameters PEFT would make LoRA of the experts out of their modules' names.
    chosen = [name for name in names if lora.target_parameters is None or name not in fused] or names
    return Targets(modules=tuple(chosen), parameters=total, whole=whole, saved_twice=twice)


def _experts(spec: ModelSpec, names: Collection[str]) -> list[Tensor]:
    """Return the tensors of experts for which Unsloth takes `names`: those that have names which it knows."""
    return [one for one in spec.fused_experts if experts_modules([one.name]) & {*names}]


def _check_fused(run: RunConfig, parameters: list[Tensor], within: Collection[int] | None) -> None:
    """Raise `ConfigError` for what PEFT can't do with LoRA on a parameter (peft/tuners/lora/layer.py: ParamWrapper)."""
    lora = run.lora
    cant: list[tuple[str, Any, bool, str]] = [
        ("use_dora", False, lora.use_dora, "PEFT has no DoRA"),
        ("dropout", 0, bool(lora.dropout), "PEFT has no dropout"),
        ("init_lora_weights", True, lora.init_lora_weights not in (True, False, "gaussian"), "PEFT has no such start"),
    ]
    for name, instead, asked, lacks in cant:
        if asked:
            consequence = f"{lacks} for experts that are fused into one parameter: every process fails."
            fix = f"lora.{name}={json.dumps(instead)}, or lora.target_parameters=[], which leaves the experts out"
            raise ConfigError(Problem(key=f"lora.{name}", value=getattr(lora, name), consequence=consequence, fix=fix))
    if not all(_is_within(one.name, within) for one in parameters):
        consequence = "PEFT puts LoRA on the experts of every block all the same."
        fix = "leave it out, or lora.target_parameters=[], which leaves the experts out, or names with their block"
        key = "lora.layers_to_transform"
        raise ConfigError(Problem(key=key, value=lora.layers_to_transform, consequence=consequence, fix=fix))


def trains_one_table(run: RunConfig, spec: ModelSpec, on_cpu: bool) -> bool:
    """Return whether `run` trains embedding and head of `spec`, which are tied, whole and as one table: on a GPU
    (unsloth/models/_utils.py: `_effective_weight_tying`), and not on a CPU, where Unsloth's loader ties none; those of
    an adapter as it was made."""
    if not spec.tie_word_embeddings:
        return False
    if adapter := find_adapter(run.model.name):
        return bool(adapter.config.get("ensure_weight_tying"))
    return not on_cpu and {*WHOLE} <= {*run.lora.modules_to_save, *run.lora.target_modules}


def _layers(run: RunConfig, spec: ModelSpec) -> list[int] | None:
    """Return the numbers of the blocks that get LoRA, None for all; raises `ConfigError` for one that isn't there."""
    layers: list[int] | None = run.lora.layers_to_transform
    if layers and max(layers) >= spec.num_layers:
        consequence = f"the model has {spec.num_layers} decoder blocks, from 0 to {spec.num_layers - 1}."
        fix = "numbers of blocks that are there"
        key = "lora.layers_to_transform"
        raise ConfigError(Problem(key=key, value=layers, consequence=consequence, fix=fix))
    pattern = run.lora.layers_pattern
    lists = {name for one in spec.tensors for name in _lists(one.name)} if pattern else set()
    if pattern and lists and pattern not in lists:
        consequence = "names no list of blocks: PEFT finds no module for LoRA, and every process fails."
        fix = nearest(pattern, lists)
        raise ConfigError(Problem(key="lora.layers_pattern", value=pattern, consequence=consequence, fix=fix))
    return layers


def _lists(name: str) -> list[str]:
    """Return the names of the lists that the tensor `name` is in: those before a number."""
    parts = name.split(".")
    return [one for one, other in pairwise(parts) if other.isdigit()]


def _is_within(name: str, layers: Collection[int] | None) -> bool:
    return layers is None or any(f".{number}." in name for number in layers)


def _named_parameters(run: RunConfig, spec: ModelSpec) -> list[Tensor] | None:
    """Return the tensors that lora.target_parameters names; None where it is left to Unsloth. Raises `ConfigError` for
    a name that is none's, which PEFT passes over as long as another is one's."""
    names: list[str] | None = run.lora.target_parameters
    if names is None:
        return None
    own = [one for one in spec.tensors if one.part != "tower"]
    found = {name: [one for one in own if f".{one.name}".endswith(f".{name}")] for name in names}
    for name, tensors in found.items():
        if not tensors:
            fix = nearest(name, {".".join(one.name.split(".")[-3:]) for one in spec.fused_experts})
            consequence = "names no weight of this model that reads text."
            raise ConfigError(Problem(key="lora.target_parameters", value=name, consequence=consequence, fix=fix))
        if len(tensors[0].shape) not in (2, 3):
            consequence = "names a weight that is no matrix, of which LoRA could be made: every process fails."
            fix = "leave it out"
            raise ConfigError(Problem(key="lora.target_parameters", value=name, consequence=consequence, fix=fix))
    named = [one for tensors in found.values() for one in tensors]
    modules = run.lora.target_modules
    aimed = _all_linear(spec) if modules == "all-linear" else modules if isinstance(modules, list) else []
    for one in named:
        module = one.name.removesuffix(".weight").rpartition(".")[2]
        if one.name.endswith(".weight") and module in aimed:
            consequence = f"names the weight of {module}, a target module already: every process fails."
            fix = f"leave it out, or take {module} from lora.target_modules"
            key = "lora.target_parameters"
            raise ConfigError(Problem(key=key, value=run.lora.target_parameters, consequence=consequence, fix=fix))
    return named


def _biases(run: RunConfig, spec: ModelSpec, adapted: list[str], layers: Collection[int] | None) -> int:
    """Return the number of biases that are trained."""
    if run.lora.bias == "none":
        return 0
    biases = [one for one in spec.tensors if one.name.endswith(".bias") and one.part != "tower"]
    if run.lora.bias == "lora_only":
        biases = [one for one in biases if one.name.split(".")[-2] in adapted and _is_within(one.name, layers)]
    return sum(one.numel for one in biases)


def _all_linear(spec: ModelSpec) -> list[str]:
    present = _leaves(spec)
    if spec.num_experts:
        present |= set(MLP)
    known = [name for name in PROJECTIONS if name in present]
    return [*known, *sorted(present - set(known))]


def _leaves(spec: ModelSpec) -> set[str]:
    """Return the ends of the names of linear layers, from the last part that is no number on: PEFT takes a mere `0` for
    every module of that name, decoder blocks too."""
    return {_end(weight.name) for weight in spec.linear_weights}


def _end(name: str) -> str:
    parts = name.split(".")
    first = max(index for index, part in enumerate(parts) if not part.isdigit())
    return ".".join(parts[first:])


def _factors(tensors: Iterable[Tensor], r: int) -> int:
    """Return the numbers in the two factors of each weight: r × (in + out), for every expert where they are fused."""
    return sum(r * prod(one.shape[:-2]) * sum(one.shape[-2:]) for one in tensors)
