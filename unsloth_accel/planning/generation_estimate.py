"""Memory and time of writing completions, by transformers' `generate` inside of the processes that train.

Sizes follow from the model's shapes. The seconds were fitted to `grpo-run-ddp` and `grpo-run-fsdp2` of
benchmarks/results/gpu-checks.json: one shape (1.5B), 32 completions of 128 tokens at once on each of two H200.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..hardware.device import Device
    from ..strategies import Strategy
    from .memory_estimate import Workload

CACHE_COPIES = 1.0
"""Copies of one layer's cache that are alive while it grows by a token: transformers' DynamicCache puts the old and
the new together (transformers/cache_utils.py: `torch.cat`). Assumed."""
LAYER_TOKEN_SECONDS, SHARDED_LAYER_TOKEN_SECONDS = 0.0006, 0.00185
"""Least seconds of a decoder block for one more token of all completions, as Python launches its kernels: where the
weights are whole, and where FSDP2 has divided them. Fitted; of fsdp2_native the second is assumed."""


def cache_bytes(work: Workload) -> float:
    """Return the bytes of keys and values of all completions that a process writes at once, at their full length."""
    spec, width = work.spec, 4 if work.dtype_bytes == 4 else 2
    layer = 2 * spec.num_kv_heads * spec.head_dim * work.length * work.generated_rows * width
    return layer * (spec.num_layers + CACHE_COPIES)


def generation_bytes(work: Workload, strategy: Strategy, shards: int) -> float:
    """Return the bytes beside weights, adapter and optimizer at the peak of writing completions: the cache, the logits
    of one token in the model's dtype and in float32, and what of divided weights is gathered."""
    if not work.generated_rows:
        return 0.0
    logits = work.generated_rows * work.logits_per_token * (work.dtype_bytes + 4.0)
    gathered = work.weight_bytes * (1 - 1 / shards) if strategy.shards_weights else 0.0
    return cache_bytes(work) + logits + gathered


def generation_seconds(work: Workload, device: Device, *, sharded: bool) -> float:
    """Return the seconds in which a process writes its completions once, all at their full length: each token reads the
    weights and half of the full cache, or waits for Python, longer where the weights are `sharded`."""
    if not work.generated_rows or not device.bandwidth_gbs:
        return 0.0
    read = (work.weight_bytes + cache_bytes(work) / 2) / (device.bandwidth_gbs * 1e9)
    least = SHARDED_LAYER_TOKEN_SECONDS if sharded else LAYER_TOKEN_SECONDS
    return work.generated_tokens * max(read, least * work.spec.num_layers)
