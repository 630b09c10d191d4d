"""The names of other packages that this one relies on: one record each, with what is lost without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NEWER = "pip install -U unsloth unsloth_zoo; the newest that was tried here is 2026.10.9"


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A name to look for in an installed package."""

    what: str
    """In plain words; strategies name it so in `needs`."""
    package: str
    file: str
    """Inside the package."""
    name: str = ""
    """A word in that file; empty where the file itself is the sign."""
    cost: str
    """What its absence costs."""
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
    ),
    Probe(
        what="sharded loading",
        package="unsloth",
        file="models/fsdp2_load.py",
        cost="every GPU loads the whole model before it is sharded, so it must fit one GPU after all",
    ),
    Probe(
        what="kernels that know FSDP2",
        package="unsloth",
        file="models/fsdp2.py",
        cost="Unsloth's kernels read weights beside FSDP2's hooks and meet shards instead of weights",
    ),
    Probe(
        what="fused loss under FSDP2",
        package="unsloth_zoo",
        file="fused_losses/cross_entropy_loss.py",
        name="unsloth_fsdp_unshard",
        cost="the fused loss reads lm_head's shard instead of the gathered weight",
    ),
    Probe(
        what="4-bit weights under FSDP2",
        package="unsloth",
        file="models/fsdp2_qlora.py",
        cost="4-bit weights lose their quantization state when they are gathered",
        only="4bit",
    ),
    Probe(
        what="LoRA kernels declined under FSDP1",
        package="unsloth",
        file="models/llama.py",
        name="_decline_fused_lora_for_fsdp",
        cost="the fused LoRA kernels read FSDP1's flat shards and stop (unsloth#409)",
    ),
    Probe(
        what="CPU backend",
        package="unsloth",
        file="_cpu_init.py",
        cost="Unsloth stops at import on a machine without a GPU",
        only="cpu",
    ),
    Probe(
        what="triton",
        package="triton",
        file="__init__.py",
        cost="Unsloth's sharding imports triton, also on a CPU",
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
