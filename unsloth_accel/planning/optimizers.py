"""Optimizers, as far as a plan must know them: the bytes of their states, and which runs where."""

from __future__ import annotations

from ..strategies import STRATEGIES

OPTIMIZER_BYTES: dict[str, float] = {
    "adamw_torch": 8,
    "adamw_torch_fused": 8,
    "adamw_hf": 8,
    "adamw_apex_fused": 8,
    "adamw_bnb_8bit": 2,
    "adamw_8bit": 2,
    "paged_adamw_8bit": 2,
    "paged_adamw_32bit": 8,
    "paged_adamw": 8,
    "lion_32bit": 4,
    "paged_lion_32bit": 4,
    "lion_8bit": 1,
    "paged_lion_8bit": 1,
    "adafactor": 4,
    "sgd": 0,
    "adagrad": 4,
    "rmsprop": 4,
}
"""Bytes of state per trained parameter: two float32 for AdamW, two bytes for the 8-bit kinds (bitsandbytes 0.50,
optim/optimizer.py; their block scales add 3 % and tensors below 4096 elements stay at 32 bit, which LoRA's are not).
Paged ones count in full: pages move to the host only under pressure. An unknown optimizer counts as AdamW."""

OPTIMIZER, ON_THE_HOST = "adamw_torch_fused", "adamw_torch"
"""Torch's AdamW; the second keeps its step counter on the host."""
BITSANDBYTES_ADAMW = ("adamw_8bit", "adamw_bnb_8bit", "paged_adamw", "paged_adamw_32bit", "paged_adamw_8bit")
_GPU_ONLY = ("8bit", "paged", "bnb", "npu", "xla", "apex")


def needs_gpu(optimizer: str) -> bool:
    """Return whether `optimizer` has no kernels for a CPU: there Unsloth takes torch's AdamW in its place, whatever it
    is (unsloth_zoo/cpu/trainer.py: normalize_cpu_training_arguments)."""
    return any(part in optimizer for part in _GPU_ONLY)


def optimizer_for(strategy: str, asked: str | None) -> str:
    """Return the optimizer for `strategy`: `asked` or its substitute, by default fused AdamW. Unsloth's own default,
    adamw_8bit, would be another optimizer on one GPU than under fsdp2.

    bitsandbytes can't step the shards of accelerate's FSDP2 (unsloth/models/rl.py: "Switching optim"); FSDP1 can't put
    together the state of a fused optimizer (`adapters.fsdp1`).
    """
    record = STRATEGIES[strategy]
    if asked is None:
        return OPTIMIZER if record.saves_fused else ON_THE_HOST
    if not record.steps_bitsandbytes and asked in BITSANDBYTES_ADAMW:
        return OPTIMIZER
    return ON_THE_HOST if not record.saves_fused and asked.endswith("_fused") else asked
