"""Speed: an estimate of a step's time, to put strategies in order; a rough figure, not a promise.

Two constants of one GPU and two of sharding were fitted to the cells marked `calibration` in
benchmarks/results/memory-2xH200.json; docs/speed.md puts the order that follows beside the measured one.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..config.accelerate_config import Precision
from ..hardware.hardware import Hardware
from ..strategies import STRATEGIES
from .memory_estimate import Workload

PEAK_SHARE = 0.75
"""Share of the card's dense rate that the matmuls reach; fitted."""
BLOCK_PASSES = 107.0
"""Number of times that a block's activations (intermediate + hidden, two bytes each) cross the memory in one step with
checkpointing: norms, rotary, activation, casts, launches; fitted."""
LAYER_SECONDS = 0.0014
"""Seconds per decoder block and device batch to launch its kernels from Python; fitted (1.1 to 2.0 ms; small batches
wait for it longer)."""
LEAST_LAYER_SECONDS = 0.0055
"""Least seconds per decoder block and device batch: a small batch is as slow as Python launches its kernels; from the
0.5B cell with 16 × 512 tokens."""
LEAST_VARIOUS_SECONDS = 0.014
"""The same where rows of different lengths are laid end to end, so that every batch has another shape: 0.21 to 0.27 s
per step with 16 blocks (benchmarks/results: variable-2xH100.json, row-sharing-8-2xH200.json, ddp-2xH200-1.5B.json)."""
HIDDEN_SHARE = 0.8
"""Share of computing behind which fsdp2 can hide the bytes: copy engines fetch the next block meanwhile; assumed."""
DDP_SHARE = 0.015
"""Share of a step lost by two processes that wait for each other: 0.7823 s against 0.7753, 0.3111 against 0.3057."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Seconds of one optimizer step, and their parts."""

    compute: float
    communication: float
    """Seconds of communication not hidden behind computing."""
    tokens: int
    """Tokens per step, over all processes."""

    @property
    def step_seconds(self) -> float:
        return self.compute + self.communication

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.step_seconds


def flops(work: Workload) -> float:
    """Return the floating-point operations of one forward and backward of one device batch, LoRA's own left out.

    A matmul with a weight of n elements takes 2n per token. Frozen weights need no gradient, so a block takes it once
    forward, once backward (the gradient of its input), and once more to recompute it with checkpointing. The fused loss
    takes lm_head twice, in one go. Attention: 4 × heads × head_dim × length / 2 (causal) per token and pass, its
    backward 2.5 times that (FlashAttention-2, arXiv:2307.08691, section 4.1).
    """
    spec = work.spec
    checkpointed = work.checkpointing != "false"
    linear = spec.active_parameters - spec.embedding_parameters - spec.lm_head_parameters
    forward = (2 if checkpointed else 1) + work.reference_passes
    per_token = linear * 2 * (forward + 1) + spec.hidden_size * spec.vocab_size * (4 + 2 * work.reference_passes)
    attention = 2 * spec.num_heads * spec.head_dim * work.length * spec.num_layers
    return float(work.tokens * (per_token + attention * (forward + 2.5)))


def estimate_speed(
    work: Workload,
    strategy: str,
    num_processes: int,
    accumulation: int,
    hardware: Hardware,
    precision: Precision,
    *,
    various: bool = False,
) -> Speed | None:
    """Estimate a step of `accumulation` device batches; None for cards whose rates are unknown.

    With `various`, `work.length` is the mean of rows of different lengths.
    """
    device = min(hardware.devices, key=lambda d: d.fp16_tflops or 0.0, default=None)
    if device is None:
        return None
    rate = (device.bf16_tflops if precision == "bf16" else device.fp16_tflops) or 0.0
    if not rate or not device.bandwidth_gbs:
        return None
    spec = work.spec
    crossing = work.tokens * (work.intermediate + spec.hidden_size) * 2 * spec.num_layers * BLOCK_PASSES
    if work.checkpointing == "false":
        crossing *= 2 / 3
    launches = LAYER_SECONDS * spec.num_layers
    compute = flops(work) / (rate * 1e12 * PEAK_SHARE) + crossing / (device.bandwidth_gbs * 1e9) + launches
    compute = max(compute, (LEAST_VARIOUS_SECONDS if various else LEAST_LAYER_SECONDS) * spec.num_layers)
    record = STRATEGIES[strategy]
    compute *= record.compute_factor
    communication = 0.0
    if num_processes > 1:
        link = _link(hardware) * 1e9
        others = (num_processes - 1) / num_processes
        communication = compute * DDP_SHARE * accumulation
        # All-reduce of the adapter's gradients: twice around the ring.
        communication += 2 * others * 4 * work.lora_parameters / link
        if record.shards_weights:
            gathered = 2 * others * work.weight_bytes / link  # once forward, once backward
            if record.hides_gathering and hardware.link == "nvlink" and hardware.num_machines == 1:
                gathered = max(0.0, gathered - HIDDEN_SHARE * compute)
            communication += accumulation * (gathered + record.seconds_per_block * spec.num_layers)
    return Speed(
        compute=compute * accumulation,
        communication=communication,
        tokens=work.tokens * accumulation * record.data_parallel(num_processes),
    )


def _link(hardware: Hardware) -> float:
    """Return 10^9 bytes/s of the slowest edge of a ring over all GPUs: of two neighbours on different machines it is
    the network, which only that one edge per machine crosses."""
    inside = hardware.link_gbs or 16.0
    return inside if hardware.num_machines == 1 else min(inside, hardware.network_gbs or 12.5)
