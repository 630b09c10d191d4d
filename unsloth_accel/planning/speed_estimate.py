"""Speed: an estimate of a step's time, to put strategies in order; a rough figure, not a promise.

The constants of one GPU were fitted to the calibration cells of memory-2xH200.json and kept-1xH200.json in
benchmarks/results, those of sharding to strategies-2xH200.json and regret-2xH200.json; docs/speed.md puts prediction
and measurement side by side, also for cells that were held out.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..config.accelerate_config import Precision
from ..hardware.hardware import Hardware
from ..models.spec import ModelSpec
from ..strategies import STRATEGIES
from .generation_estimate import generation_seconds
from .memory_estimate import Workload

PEAK_SHARE, ATTENTION_SHARE = 0.84, 0.56
"""Shares of the card's dense rate that matmuls with weights reach, and those of attention; fitted."""
INTERMEDIATE_PASSES, HIDDEN_PASSES = 99.0, 256.0
"""Number of times that a block's activations (two bytes each) cross the memory in one step in which it is computed
twice: those as wide as the MLP, and those as wide as the residual (norms, rotary, casts, LoRA); fitted."""
LAYER_SECONDS = 0.0008
"""Seconds per decoder block and device batch that don't depend on its tokens; fitted."""
LEAST_LAYER_SECONDS, IN_4BIT = 0.0105, 1.15
"""Least seconds per decoder block and device batch, with forward, recomputation and backward: a small batch is as slow
as Python launches its kernels, and 4 bit has more of them. Fitted; hosts of the same kind differ by a quarter."""
TOGETHER = 1.25
"""How many times as long that is in one of several processes, which all wait for the slowest of them. Fitted to the
cells of regret-2xH200.json; on three hosts of the same kind it was 1.0 to 1.4."""
BLEND = 11
"""Exponent by which the times of computing and of launching become one: now the GPU waits for Python, now Python for
the GPU, and neither is the same all the time. Fitted."""
LEAST_VARIOUS_SECONDS = 0.014
"""The same where rows of different lengths are laid end to end, so that every batch has another shape: 0.21 to 0.27 s
per step with 16 blocks (benchmarks/results: variable-2xH100.json, row-sharing-8-2xH200.json, ddp-2xH200-1.5B.json)."""
PADDED_SECONDS, NO_GRADIENT_SECONDS = 0.016, 0.002
"""The same where rows are padded: of the trained pass with recomputation, and of each pass without gradients beside it.
Unsloth compiles such a block as one region, for any length (unsloth/models/_block_compile.py), so that Python launches
as much in 4 bit as in 16; what the loss itself waits for is in it. Fitted to preferences-2xH200.json, not profiled:
with 16 blocks DPO takes 0.28 s per device batch with one such pass, KTO 0.345 with three."""
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
    generating: float = 0.0
    """Seconds of writing completions."""

    @property
    def step_seconds(self) -> float:
        return self.compute + self.communication + self.generating

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.step_seconds


def linear_parameters(spec: ModelSpec) -> int:
    """Return the parameters of the blocks that one token passes."""
    return spec.active_parameters - spec.embedding_parameters - spec.lm_head_parameters


def flops(work: Workload) -> tuple[float, float]:
    """Return the floating-point operations of one forward and backward of one device batch, LoRA's own left out: in
    matmuls with weights, and in attention.

    A matmul with a weight of n elements takes 2n per token. Frozen weights need no gradient, so a block takes it once
    forward, once backward (the gradient of its input), and once more where it is recomputed. The fused loss
    takes lm_head twice, in one go. Attention: 4 × heads × head_dim × length / 2 (causal) per token and pass, its
    backward 2.5 times that (FlashAttention-2, arXiv:2307.08691, section 4.1).
    """
    spec = work.spec
    linear = linear_parameters(spec)
    forward = 1 + work.recomputed + work.reference_passes
    per_token = linear * 2 * (forward + 1) + spec.hidden_size * work.logits_per_token * (4 + 2 * work.reference_passes)
    attention = 2 * spec.num_heads * spec.head_dim * work.length * spec.num_layers
    return float(work.tokens * per_token), float(work.tokens * attention * (forward + 2.5))


def launch_seconds(work: Workload, *, various: bool = False, several: bool = False) -> float:
    """Return the seconds that one device batch takes at least, however few its tokens: as Python launches its kernels.

    With `various`, every batch has another shape; where rows are padded that makes no difference. `several`: in one of
    several processes; the constants of rows that are padded or of various shapes were fitted to such.
    """
    if work.pads:
        trained = PADDED_SECONDS * (2 + work.recomputed) / 3
        return (trained + NO_GRADIENT_SECONDS * work.reference_passes) * work.spec.num_layers
    alike = LEAST_LAYER_SECONDS * (TOGETHER if several else 1.0)
    least = (LEAST_VARIOUS_SECONDS if various else alike) * (IN_4BIT if work.in_4bit else 1.0)
    return least * work.spec.num_layers * (2 + work.recomputed + work.reference_passes) / 3


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
    linear, attention = flops(work)
    width = INTERMEDIATE_PASSES * work.intermediate + HIDDEN_PASSES * spec.hidden_size
    crossing = work.tokens * width * 2 * spec.num_layers
    passes = 2 + work.recomputed + work.reference_passes
    crossing *= passes / 3
    if work.in_4bit:
        # Each pass reads the weights in 4 bit and writes them in 16.
        crossing += 2.5 * linear_parameters(spec) * passes
    launches = LAYER_SECONDS * spec.num_layers
    computing = (linear / PEAK_SHARE + attention / ATTENTION_SHARE) / (rate * 1e12)
    compute = computing + crossing / (device.bandwidth_gbs * 1e9) + launches
    record = STRATEGIES[strategy]
    gatherings = 2 + work.reference_passes  # forward, backward, and for each other pass
    launching = launch_seconds(work, various=various)
    if num_processes > 1:
        hooks = record.launch_per_block * spec.num_layers * gatherings / 2  # fitted to two
        # Whoever waits for the slowest process launches its own hooks meanwhile.
        launching = max(launching + hooks, launch_seconds(work, various=various, several=True))
    compute = (compute**BLEND + launching**BLEND) ** (1 / BLEND) * record.compute_factor
    communication = 0.0
    if num_processes > 1:
        link = _link(hardware) * 1e9
        others = (num_processes - 1) / num_processes
        communication = compute * DDP_SHARE * accumulation
        # All-reduce of the adapter's gradients: twice around the ring.
        communication += 2 * others * 4 * work.lora_parameters / link
        if record.shards_weights:
            gathered = gatherings * others * work.weight_bytes / link
            if record.hides_gathering and hardware.link == "nvlink" and hardware.num_machines == 1:
                gathered = max(0.0, gathered - HIDDEN_SHARE * compute)
            waits = record.seconds_per_block * gatherings / 2  # fitted to two
            communication += accumulation * (gathered + waits * spec.num_layers)
    # Of what is written at once a step may take a part, or several may be needed.
    share = work.per_device * accumulation / work.generated_rows if work.generated_rows else 0.0
    return Speed(
        compute=compute * accumulation,
        communication=communication,
        generating=generation_seconds(work, device, sharded=record.shards_weights and num_processes > 1) * share,
        tokens=work.tokens * accumulation * record.data_parallel(num_processes),
    )


def _link(hardware: Hardware) -> float:
    """Return 10^9 bytes/s of the slowest edge of a ring over all GPUs: of two neighbours on different machines it is
    the network, which only that one edge per machine crosses."""
    inside = hardware.link_gbs or 16.0
    return inside if hardware.num_machines == 1 else min(inside, hardware.network_gbs or 12.5)
