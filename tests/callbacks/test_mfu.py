from __future__ import annotations

import pytest


def test_flops_of_lora_by_hand() -> None:
    """SmolLM2-135M: 30 layers of 576 and 1536, 9 heads of 64, 3 of keys and values, 49152 words, a tied head."""
    from unsloth_accel.callbacks.mfu import full_flops, lora_flops
    from unsloth_accel.models.spec import ModelSpec

    spec = ModelSpec.load("HuggingFaceTB/SmolLM2-135M-Instruct")
    block = 576 * 576 * 2 + 576 * 192 * 2 + 3 * 576 * 1536 + 2 * 576
    weights = 30 * block + 576 + 576 * 49152
    flops = lora_flops(spec, 1_000_000)
    assert flops.per_token == 4 * weights + 6_000_000
    assert flops.per_pair == 12 * 30 * 9 * 64
    # A row of 1000 tokens: PaLM's 12 L H Q T per token, halved.
    assert flops.of(1000, 1000 * 1001 / 2) == pytest.approx(
        1000 * flops.per_token + 1000 * 12 * 30 * 9 * 64 * 1000 / 2, rel=1e-3
    )
    assert full_flops(spec).per_token == 6 * weights
