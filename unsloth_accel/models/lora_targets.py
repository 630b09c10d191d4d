"""Modules that a run's adapter trains, as Unsloth takes them, and the number of their parameters."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.run_config import PROJECTIONS, RunConfig
from ..errors import ConfigError, Problem
from ..methods import METHODS
from .spec import ModelSpec

WHOLE = ("embed_tokens", "lm_head")
"""Modules that Unsloth trains whole where they are targets (unsloth/models/_utils.py:
`_redirect_embedding_targets`)."""
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


def targets(run: RunConfig, spec: ModelSpec) -> Targets:
    """Return what `run` trains of the model `spec`.

    `all-linear` is every nn.Linear in the decoder blocks, and the experts of a mixture: for Llama-style models the
    seven projections. Raises `ConfigError` for names that match nothing, and where nothing is left to get LoRA.
    """
    asked = run.lora.target_modules
    if isinstance(asked, str) and asked != "all-linear":
        return Targets(modules=asked, parameters=spec.lora_parameters(asked, run.lora.r))
    names = _all_linear(spec) if asked == "all-linear" else [str(name) for name in asked]
    whole = tuple(name for name in names if name in WHOLE)
    if "lm_head" in whole and METHODS[run.method].has_score:
        consequence = (
            f"{run.method} has a score head, which is trained whole, in place of lm_head: it would train none."
        )
        raise ConfigError(
            Problem(key="lora.target_modules", value=asked, consequence=consequence, fix="leave lm_head out")
        )
    experts = bool(spec.num_experts) and any(name in MLP for name in names)
    # Dense blocks and shared experts beside the fused ones get LoRA of the same names.
    fused = set(MLP) - (set() if spec.measured else _leaves(spec)) if experts else set()
    lora = [name for name in names if name not in whole and name not in fused]
    if not lora and not experts:
        consequence = "Unsloth trains these whole, so no module is left to get LoRA, and it stops after loading."
        fix = "add a projection, such as q_proj"
        raise ConfigError(Problem(key="lora.target_modules", value=asked, consequence=consequence, fix=fix))
    parameters = _expert_parameters(spec, run.lora.r) if experts else 0
    if lora:
        parameters += spec.lora_parameters(lora, run.lora.r, modules_to_save=whole)
    return Targets(modules=tuple(names), parameters=parameters, whole=whole)


def _all_linear(spec: ModelSpec) -> list[str]:
    present = _leaves(spec)
    if spec.num_experts:
        present |= set(MLP)
    known = [name for name in PROJECTIONS if name in present]
    return [*known, *sorted(present - set(known))]


def _leaves(spec: ModelSpec) -> set[str]:
    return {weight.name.rsplit(".", 1)[-1] for weight in spec.linear_weights}


def _expert_parameters(spec: ModelSpec, r: int) -> int:
    """Return the sum of r × (in + out) over every fused weight of every expert."""
    return sum(r * experts * (a + b) for experts, a, b in (tensor.shape for tensor in spec.fused_experts))
