from typing import Any

import pytest

from unsloth_accel.config.read_run import from_dict
from unsloth_accel.training.memory_advice import advice


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, "distributed.strategy=fsdp2 (the GPUs divide the base model); or model.load_in_4bit=true; or model.max"),
        ({"training": {"per_device_train_batch_size": 8}}, "training.per_device_train_batch_size=4 (the global"),
        ({"model": {"keep_activations": 8}}, "model.keep_activations=0 (all blocks compute theirs again); or distrib"),
        ({"distributed": {"strategy": "fsdp2"}}, "model.load_in_4bit=true; or model.max_seq_length below 2048"),
    ],
)
def test_what_would_help(description: dict[str, Any], overrides: dict[str, Any], expected: str) -> None:
    model = description["model"] | overrides.get("model", {})
    run = from_dict({**description, "distributed": {"strategy": "ddp"}, **overrides, "model": model})
    assert advice(run).startswith(expected)
    assert not any(word in advice(run, batch=False) for word in ("per_device", "keep_activations"))


def test_nothing_is_advised_about_a_strategy_that_nobody_chose(description: dict[str, Any]) -> None:
    """As where a run.yaml that was never planned is trained by hand."""
    run = from_dict(description)
    assert run.strategy is None
    assert "distributed.strategy" not in advice(run)
