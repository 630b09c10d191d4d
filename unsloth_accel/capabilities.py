"""Capabilities: what the installed Unsloth and its neighbours can do, and what is lost without it.

Names are looked for in the installed files, not version numbers: Unsloth's releases of one month differ in what they
shard. Nothing is imported, so a look costs some 20 ms and no torch.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Literal

from .config.accelerate_config import STRATEGIES, Strategy
from .errors import Problem

NEWER = "pip install -U unsloth unsloth_zoo; the newest that was tried here is 2026.10.9"
SHARDED: tuple[Strategy, ...] = ("fsdp2", "fsdp2_native")
ON_A_CPU: tuple[Strategy, ...] = ("single", "ddp", "fsdp2_native")
"""Accelerate has no FSDP on a CPU."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A name to look for in an installed package."""

    what: str
    """In plain words."""
    package: str
    file: str
    """Inside the package."""
    name: str = ""
    """A word in that file; empty where the file itself is the sign."""
    cost: str
    """What its absence costs."""
    strategies: tuple[Strategy, ...] = ()
    """Those that can't run without it."""
    only: Literal["", "cpu", "4bit"] = ""
    """Where it is needed only on a CPU, or for a 4-bit model."""
    mended: bool = False
    """Where this package's adapters do it themselves, and nothing is lost."""
    fix: str = NEWER
    instead: tuple[str, ...] = ()
    """Packages with which it isn't needed."""

    @property
    def place(self) -> str:
        return f"{self.package}/{self.file}{f': {self.name}' if self.name else ''}"


PROBES = (
    Probe(
        what="native FSDP2",
        package="unsloth",
        file="models/fsdp2_native.py",
        cost="the GPUs can't divide the weights, so a model that doesn't fit one GPU can't be trained",
        strategies=("fsdp2_native",),
    ),
    Probe(
        what="sharded loading",
        package="unsloth",
        file="models/fsdp2_load.py",
        cost="every GPU loads the whole model before it is sharded, so it must fit one GPU after all",
        strategies=("fsdp2_native",),
    ),
    Probe(
        what="kernels that know FSDP2",
        package="unsloth",
        file="models/fsdp2.py",
        cost="Unsloth's kernels read weights beside FSDP2's hooks and meet shards instead of weights",
        strategies=("fsdp2",),
    ),
    Probe(
        what="fused loss under FSDP2",
        package="unsloth_zoo",
        file="fused_losses/cross_entropy_loss.py",
        name="unsloth_fsdp_unshard",
        cost="the fused loss reads lm_head's shard instead of the gathered weight",
        strategies=SHARDED,
    ),
    Probe(
        what="4-bit weights under FSDP2",
        package="unsloth",
        file="models/fsdp2_qlora.py",
        cost="4-bit weights lose their quantization state when they are gathered",
        strategies=SHARDED,
        only="4bit",
    ),
    Probe(
        what="LoRA kernels declined under FSDP1",
        package="unsloth",
        file="models/llama.py",
        name="_decline_fused_lora_for_fsdp",
        cost="the fused LoRA kernels read FSDP1's flat shards and stop (unsloth#409)",
        strategies=("fsdp1",),
    ),
    Probe(
        what="CPU backend",
        package="unsloth",
        file="_cpu_init.py",
        cost="Unsloth stops at import on a machine without a GPU",
        strategies=STRATEGIES,
        only="cpu",
    ),
    Probe(
        what="triton",
        package="triton",
        file="__init__.py",
        cost="Unsloth's sharding imports triton, also on a CPU",
        strategies=("fsdp2_native",),
        only="cpu",
        fix="pip install triton",
    ),
    Probe(
        what="placement by LOCAL_RANK",
        package="unsloth",
        file="models/loader_utils.py",
        name="_infer_local_rank",
        cost="4-bit models load onto GPU 0 on every rank, or on a second machine onto a GPU that isn't there; "
        "`launch RUN.yaml` places them, your own script must pass device_map={'': LOCAL_RANK}",
        mended=True,
    ),
    Probe(
        what="DDP's unused parameters",
        package="unsloth",
        file="models/_ddp_defaults.py",
        name="unsloth_default_ddp_find_unused_parameters",
        cost="DDP marks LoRA weights ready twice under Unsloth's checkpointing and stops; `adapt` decides instead",
        mended=True,
    ),
    Probe(
        what="rotary buffers kept out of DDP",
        package="unsloth",
        file="models/loader_utils.py",
        name="_exclude_rope_inv_freq_from_ddp",
        cost="DDP sends constant buffers in every forward, and NCCL stops at one on the CPU; `adapt` sends none",
        mended=True,
    ),
    Probe(
        what="GRPO under DDP",
        package="unsloth",
        file="models/rl.py",
        name="_wrap_grpo_ddp_gradient_sync",
        cost="GRPO's gradients are never averaged: every rank trains alone, and the guard stops it in its first step",
    ),
    Probe(
        what="loss that DDP may scale",
        package="unsloth_zoo",
        file="fused_losses/cross_entropy_loss.py",
        name="grad_scale_val",
        # Measured on two H100 with 2025.12.10: benchmarks/results/gpu-checks-2xH100.json, older-2025.12.10.
        cost="under DDP every gradient comes out divided by the number of GPUs: AdamW makes nearly the same steps, but "
        "clipping acts that many times later, the gradient norm is shown too small, and SGD would be that much slower",
    ),
    Probe(
        what="tiled MLP under DDP",
        package="unsloth",
        file="models/_tiled_mlp_ddp.py",
        cost="DDP fails with unsloth_tiled_mlp=True; leave it off",
    ),
    Probe(
        what="LoRA on a mixture's experts",
        package="peft",
        file="tuners/lora/config.py",
        name="target_parameters",
        cost="the experts of a mixture get no LoRA, only its attention does",
        fix='pip install -U "peft>=0.18"',
    ),
    Probe(
        what="fully_shard",
        package="torch",
        file="distributed/fsdp/__init__.py",
        name="fully_shard",
        cost="there is no FSDP2",
        strategies=SHARDED,
        fix='pip install "torch>=2.8"',
    ),
    Probe(
        what="attention of many rows in one call",
        package="torch",
        file="nn/attention/varlen.py",
        name="enable_gqa",
        instead=("flash_attn", "xformers"),
        # unsloth/utils/attention_dispatch.py: _load_torch_varlen_attn, _sdpa_packed_segments.
        cost="on GPUs, where rows are laid end to end (packed or without padding), Unsloth starts every layer's "
        "attention once for each row, so that a step's time goes by its rows more than by its tokens; `adapt` has it "
        "done in one call where torch's kernel passes a trial on the GPU",
        fix='pip install -U "torch>=2.12", or flash-attn, or xformers',
    ),
    Probe(
        what="FSDP2's plugin",
        package="accelerate",
        file="utils/fsdp_utils.py",
        name="fsdp2_prepare_model",
        cost="accelerate wraps with FSDP1 only",
        strategies=("fsdp2",),
        fix='pip install "accelerate>=1.15"',
    ),
    Probe(
        what="loss over all ranks' tokens",
        package="transformers",
        file="training_args.py",
        name="average_tokens_across_devices",
        cost="where ranks hold different numbers of tokens, the mean loss of several GPUs isn't that of one",
        fix='pip install "transformers>=4.51.3"',
    ),
    Probe(
        what="rows cut by SFTConfig.max_length",
        package="trl",
        file="trainer/sft_config.py",
        name="max_length",
        cost="model.max_seq_length has no field to go to, so `launch RUN.yaml` stops before training",
        fix='pip install "trl>=0.18.2"',
    ),
    Probe(
        what="4-bit weights",
        package="bitsandbytes",
        file="nn/modules.py",
        name="Linear4bit",
        cost="model.load_in_4bit and 8-bit optimizers can't run",
        fix="pip install bitsandbytes",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What was found; `missing` is empty where Unsloth isn't installed, since then nothing can be said."""

    versions: dict[str, str]
    """Of the packages that were looked into, those installed."""
    missing: tuple[Probe, ...] = ()

    def unavailable(self, device: str, *, load_in_4bit: bool = False) -> dict[Strategy, str]:
        """The strategies that can't run on `device` (`cuda` or `cpu`), each with the reason as a sentence."""
        reasons: dict[Strategy, str] = {}
        for probe in self.missing:
            if probe.only and probe.only not in (device, "4bit" if load_in_4bit else ""):
                continue
            for strategy in probe.strategies:
                reasons.setdefault(strategy, f"{self.sentence(probe)}.")
        return reasons

    def strategies(self, device: str) -> list[Strategy]:
        """Those that can run on `device`."""
        lost = self.unavailable(device)
        return [name for name in (ON_A_CPU if device == "cpu" else STRATEGIES) if name not in lost]

    def sentence(self, probe: Probe) -> str:
        """What `probe` didn't find, and what that costs."""
        version = self.versions.get(probe.package)
        lacks = f"{probe.package} {version} has no {probe.place}" if version else f"{probe.package} is not installed"
        return f"{lacks}: {probe.cost}"

    def problem(self, strategy: Strategy, device: str, *, load_in_4bit: bool = False) -> Problem | None:
        """Why `strategy` can't be had when it is asked for; None where it can."""
        lost = self.unavailable(device, load_in_4bit=load_in_4bit)
        if strategy not in lost:
            return None
        fix = next(one.fix for one in self.missing if lost[strategy] == f"{self.sentence(one)}.")
        fix += "" if "ddp" in lost else ", or distributed.strategy=ddp"
        return Problem(key="distributed.strategy", value=strategy, consequence=lost[strategy], fix=fix)


def probe(path: Sequence[str] | None = None, probes: Iterable[Probe] = PROBES) -> Capabilities:
    """Look into the packages of this process, or of the directories in `path`; reads files and imports nothing."""
    probes = tuple(probes)
    roots = {name: _root(name, path) for name in dict.fromkeys(one.package for one in probes)}
    instead = {name for one in probes for name in one.instead if _root(name, path)}
    versions = {name: _version(name, path) for name, root in roots.items() if root}
    if roots.get("unsloth") is None:
        return Capabilities(versions=versions)
    needed = (one for one in probes if not instead.intersection(one.instead))
    return Capabilities(versions=versions, missing=tuple(one for one in needed if not _found(one, roots[one.package])))


@functools.cache
def here() -> Capabilities:
    """Of this process's packages; looked for once."""
    return probe()


def _found(one: Probe, root: Path | None) -> bool:
    file = root / one.file if root else None
    if file is None or not file.is_file():
        return False
    if not one.name:
        return True
    return re.search(rf"\b{re.escape(one.name)}\b", file.read_text(encoding="utf-8", errors="replace")) is not None


def _root(name: str, path: Sequence[str] | None) -> Path | None:
    """The directory of package `name`; None where it is not installed."""
    try:
        spec: ModuleSpec | None = (
            importlib.util.find_spec(name) if path is None else PathFinder.find_spec(name, list(path))
        )
    except ValueError:  # a module that stands in for the package
        return None
    if spec is None or not spec.origin:  # a bare directory of that name is no package
        return None
    return Path(spec.origin).parent


def _version(name: str, path: Sequence[str] | None) -> str:
    found = metadata.distributions(name=name) if path is None else metadata.distributions(name=name, path=list(path))
    return next((one.version for one in found), "of an unknown version")
