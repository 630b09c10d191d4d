from typing import Any

import pytest
from plans import CPU, gpus, make, planned

from unsloth_accel.errors import ConfigError


def test_full_precision_when_asked(description: dict[str, Any]) -> None:
    assert make(description, CPU, training={"bf16": False}).mixed_precision == "no"
    assert make(description, CPU, model={"dtype": "float32"}).mixed_precision == "no"
    assert make(description, gpus(1, (7, 5)), model={"dtype": "float32"}).mixed_precision == "no"
    # On a GPU Unsloth trains an adapter in mixed precision all the same, and the plan says what runs.
    made = make(description, gpus(1), training={"bf16": False})
    assert made.mixed_precision == "bf16"
    assert any("mixed precision on a GPU all the same" in reason for reason in made.reasons)


def test_precision_follows_the_models_dtype(description: dict[str, Any]) -> None:
    assert make(description, gpus(1), model={"dtype": "float16"}).mixed_precision == "fp16"
    assert make(description, gpus(1), model={"dtype": "bfloat16"}).mixed_precision == "bf16"
    for hardware, model, training, words in (
        (gpus(1), "float16", {"bf16": True}, "Unsloth refuses to train that in bf16"),
        (gpus(1), "bfloat16", {"fp16": True}, "Unsloth refuses to train that in fp16"),
        (gpus(1, (7, 5)), "bfloat16", {}, "has no bfloat16"),
        (gpus(1, (7, 5)), None, {"bf16": True}, "has no bfloat16"),
        (CPU, "float16", {}, "refuses fp16 there"),
    ):
        with pytest.raises(ConfigError, match=words):
            make(description, hardware, model={"dtype": model}, training=training)


def test_fp16_where_there_is_no_bf16() -> None:
    made = planned("2xT4", "unsloth/Qwen3-0.6B", 16)
    assert made.mixed_precision == "fp16"
    assert any("no bfloat16" in reason for reason in made.reasons)
