"""Number of parameters that a LoRA adapter trains, as PEFT 0.21 counts on a transformers 5.17 model.

What PEFT does is mirrored where it surprises:
- `all-linear` is every nn.Linear but lm_head. Experts that are fused into three-dimensional parameters are none, so on
  gpt_oss only the attention is trained.
- Mixtral and Qwen3-MoE had linear experts before transformers 5. There PEFT turns the old names into LoRA on the fused
  parameters and the router (peft/utils/transformers_weight_conversion.py), for `all-linear` too: rank r for every
  expert, twice that for gate and up together, and no DoRA. A dense block among sparse ones keeps no LoRA on its MLP.
- `modules_to_save` matches the end of a module's name, so `norm` is every norm.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from ..errors import ConfigError, Problem, nearest, raise_errors

if TYPE_CHECKING:
    from .spec import ModelSpec

Shape = tuple[int, ...]
KEY = "lora.target_modules"
_DOWN, _GATE_UP = "down_proj", "gate_up_proj"
OLD_EXPERTS: dict[str, dict[str, str]] = {
    "mixtral": {"gate": "gate.weight", "w1": _GATE_UP, "w3": _GATE_UP, "w2": _DOWN},
    "qwen3_moe": {"gate": "gate.weight", "gate_proj": _GATE_UP, "up_proj": _GATE_UP, "down_proj": _DOWN},
}
"""The fused parameter that holds what a name was before transformers 5 (PEFT's _MOE_TARGET_MODULE_MAPPING)."""


@dataclass(frozen=True)
class _Targets:
    modules: frozenset[str]
    """Full names of the modules that get LoRA."""
    parameters: Mapping[str, int]
    """Full names of the fused parameters that get LoRA, and how many ranks r each."""


def lora_parameters(
    spec: ModelSpec,
    target_modules: str | Collection[str],
    r: int,
    *,
    use_dora: bool = False,
    modules_to_save: Collection[str] = (),
    layers: Collection[int] | None = None,
) -> int:
    """Trainable parameters of PEFT's `get_peft_model`: A (r × in) and B (out × r) for each target.

    `target_modules` is `all-linear`, a list of ends of module names, or a regular expression for whole names.
    `use_dora` adds out_features for each target; rsLoRA (`use_rslora`) only scales and adds nothing.
    `modules_to_save` adds a full copy of each module, of a tied lm_head too. `layers` is PEFT's
    layers_to_transform. What PEFT does with experts is described above.

    Raises `ConfigError` (lora.target_modules, lora.modules_to_save, lora.r, lora.use_dora) where a name matches
    nothing, which PEFT passes over in silence as long as another name matches, and where PEFT would refuse.
    """
    if isinstance(r, bool) or not isinstance(r, int) or r < 1:
        raise ConfigError(Problem(key="lora.r", value=r, consequence="must be at least 1.", fix="give 1 or more"))
    modules = _modules(spec)
    whole = _whole(modules, modules_to_save)
    targets = _targets(spec, modules, target_modules, layers)
    if use_dora and targets.parameters:
        consequence = "PEFT has no DoRA for experts that are fused into one parameter."
        fix = "lora.use_dora=false, or target only attention, such as [q_proj, k_proj, v_proj, o_proj]"
        raise ConfigError(Problem(key="lora.use_dora", value=True, consequence=consequence, fix=fix))
    kept = [name for name in targets.modules if not any(_covers(word, name) for word in modules_to_save)]
    if not kept and not targets.parameters:
        consequence = "names nothing to train: each module that it means is in lora.modules_to_save too."
        raise ConfigError(Problem(key=KEY, value=target_modules, consequence=consequence, fix="name other modules"))
    total = sum(_pair(modules[name]["weight"], r) for name in kept)
    if use_dora:
        # One magnitude for each output feature; an embedding's are the columns of its weight.
        total += sum(modules[name]["weight"][1 if name.endswith("embed_tokens") else 0] for name in kept)
    shapes = {tensor.name: tensor.shape for tensor in spec.tensors}
    total += sum(_pair(shapes[name], r * ranks) for name, ranks in targets.parameters.items())
    return total + whole


def whole_parameters(spec: ModelSpec, modules_to_save: Collection[str]) -> int:
    """Trainable parameters of PEFT's modules_to_save: a full copy of each, of a tied lm_head too. Raises `ConfigError`
    where a name matches nothing."""
    return _whole(_modules(spec), modules_to_save)


def _whole(modules: Mapping[str, Mapping[str, Shape]], words: Collection[str]) -> int:
    return sum(prod(shape) for name in _saved(modules, words) for shape in modules[name].values())


def _pair(shape: Shape, r: int) -> int:
    """Parameters of the two factors for a weight of (…experts, a, b), each expert with its own."""
    *experts, a, b = shape
    return r * prod(experts) * (a + b)


def _modules(spec: ModelSpec) -> dict[str, dict[str, Shape]]:
    """Every module that holds parameters, by its full name, with all its parameters by their name in it; none of a
    tower's, which Unsloth keeps out of the way of a list of names (unsloth/models/llama.py: `finetune_vision_layers`).
    """
    shapes = {tensor.name: tensor.shape for tensor in spec.tensors if tensor.part != "tower"}
    if spec.tie_word_embeddings:
        shapes["lm_head.weight"] = (spec.vocab_size, spec.hidden_size)
    modules: dict[str, dict[str, Shape]] = {}
    for name, shape in shapes.items():
        parts = name.split(".")
        for end in range(1, len(parts)):
            modules.setdefault(".".join(parts[:end]), {})[".".join(parts[end:])] = shape
    return modules


def _saved(modules: Mapping[str, object], words: Collection[str]) -> list[str]:
    """The modules that `modules_to_save` copies; one inside another is copied with it."""
    problems = []
    for word in words:
        if not any(name.endswith(word) for name in modules):
            fix = nearest(word, {name.rpartition(".")[2] for name in modules if not name[-1].isdigit()})
            consequence = "matches no module of this model."
            problems.append(Problem(key="lora.modules_to_save", value=word, consequence=consequence, fix=fix))
    raise_errors(problems)
    found = [name for name in modules if name.endswith(tuple(words))] if words else []
    return [name for name in found if not any(name.startswith(f"{outer}.") for outer in found)]


def _targets(
    spec: ModelSpec,
    modules: Mapping[str, Mapping[str, Shape]],
    given: str | Collection[str],
    layers: Collection[int] | None,
) -> _Targets:
    linear = {weight.name for weight in spec.linear_weights}
    old = OLD_EXPERTS.get(spec.model_type, {})
    if isinstance(given, str):
        if layers is not None:
            consequence = "PEFT takes layers only together with a list of names."
            raise ConfigError(Problem(key=KEY, value=given, consequence=consequence, fix="give a list of names"))
        if not old:
            found = linear if given.lower() == "all-linear" else _matching(given, modules)
            return _Targets(_supported(spec, given, found, linear), {})
        given = _leaves(spec, modules, given, linear, old)
    experts = {word for word in given if word.rpartition(".")[2] in old}
    parameters = _fused(spec, experts, old)
    problems = []
    found = set()
    # Of a family without a record here, what Unsloth's words don't reach is passed over, as Unsloth does.
    within = modules if spec.measured else linear | _outer(spec)
    for word in sorted(set(given) - experts):
        named = {name for name in within if name == word or (name.endswith(f".{word}") and _in_layers(name, layers))}
        if not named:
            problems.append(_unknown(spec, word, linear, layers))
        found |= named
    raise_errors(problems)
    if not found and not parameters:
        raise ConfigError(Problem(key=KEY, value=list(given), consequence="names nothing.", fix="all-linear"))
    return _Targets(_supported(spec, ", ".join(given), found, linear), parameters)


def _leaves(
    spec: ModelSpec, modules: Mapping[str, object], given: str, linear: Iterable[str], old: Mapping[str, str]
) -> set[str]:
    """The last parts of the names that a string means, with those that experts had before they were fused."""
    if given.lower() == "all-linear":
        return {name.rpartition(".")[2] for name in linear} | set(old)
    names = [*modules, *(tensor.name for tensor in spec.tensors)]
    # A fused `…experts.gate_up_proj` answers to `…experts.gate_proj`, as PEFT probes it.
    for tensor in spec.tensors:
        container, _, leaf = tensor.name.rpartition(".")
        names += [f"{container}.{name}" for name, new in old.items() if new == leaf]
    return {name.rpartition(".")[2] for name in _matching(given, names)}


def _fused(spec: ModelSpec, experts: set[str], old: Mapping[str, str]) -> dict[str, int]:
    """The fused parameters that the old names mean, each with the number of names fused into it."""
    words = {word.rpartition(".")[2] for word in experts}
    parameters: dict[str, int] = {}
    for new in {old[word] for word in words}:
        needed = {name for name, fused in old.items() if fused == new}
        if needed - words:
            parts, lacking = ", ".join(sorted(needed)), ", ".join(needed - words)
            consequence = f"{parts} are one parameter, and {lacking} is not named."
            fix = f"name {' and '.join(sorted(needed))} together, or none of them"
            raise ConfigError(Problem(key=KEY, value=", ".join(needed & words), consequence=consequence, fix=fix))
        parameters |= {tensor.name: len(needed) for tensor in spec.tensors if tensor.name.endswith(f".{new}")}
    return parameters


def _matching(pattern: str, names: Iterable[str]) -> set[str]:
    try:
        found = {name for name in names if re.fullmatch(pattern, name)}
    except re.error as error:
        consequence, fix = f"is not a regular expression: {error}.", "all-linear, or a list such as [q_proj, v_proj]"
        raise ConfigError(Problem(key=KEY, value=pattern, consequence=consequence, fix=fix)) from None
    if not found:
        consequence = "matches no module's whole name."
        fix = rf"all-linear, a list such as [q_proj, v_proj], or a pattern such as .*\.{re.escape(pattern)}"
        raise ConfigError(Problem(key=KEY, value=pattern, consequence=consequence, fix=fix))
    return found


def _outer(spec: ModelSpec) -> set[str]:
    """The modules of input embeddings and output head."""
    outer = {tensor.name for tensor in spec.tensors if tensor.part in ("embeddings", "head")}
    return {"lm_head", *(name.rpartition(".")[0] for name in outer)}


def _supported(spec: ModelSpec, given: str, found: set[str], linear: Collection[str]) -> frozenset[str]:
    """Return `found`; raise `ConfigError` if PEFT has no LoRA for one of them."""
    other = sorted(found.difference(linear) - _outer(spec))
    if other:
        consequence = f"means {other[0]}, which is not a linear layer, so PEFT refuses it."
        raise ConfigError(Problem(key=KEY, value=given, consequence=consequence, fix=_names(linear)))
    return frozenset(found)


def _unknown(spec: ModelSpec, word: str, linear: Iterable[str], layers: Collection[int] | None) -> Problem:
    names = {name.rpartition(".")[2] for name in linear}
    if word in names:
        consequence = f"is in none of the layers {sorted(layers or ())}."
        fix = f"layers from 0 to {spec.num_layers - 1}"
    elif any(tensor.name.endswith(f".{word}") for tensor in spec.tensors):
        consequence = "is a parameter of its own, not a linear layer; PEFT reaches it by target_parameters alone."
        fix = _names(linear)
    else:
        consequence = f"matches no module of a {spec.model_type} model, so nothing would be trained for it."
        fix = nearest(word, names | {"embed_tokens", "lm_head"})
    return Problem(key=KEY, value=word, consequence=consequence, fix=fix)


def _names(linear: Iterable[str]) -> str:
    return f"use some of: {', '.join(sorted({name.rpartition('.')[2] for name in linear}))}."


def _in_layers(name: str, layers: Collection[int] | None) -> bool:
    found = re.match(r".*?\.[^.]*\.(\d+)\.", name)
    return not layers or (found is not None and int(found[1]) in layers)


def _covers(word: str, name: str) -> bool:
    """Return whether PEFT keeps LoRA off `name` because `word` is in modules_to_save."""
    return re.match(rf"(^|.*\.){word}($|\..*)", name) is not None
