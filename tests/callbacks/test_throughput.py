from __future__ import annotations

import pytest


@pytest.mark.parametrize("flat", [False, True])
def test_tokens_and_pairs_of_a_batch(flat: bool) -> None:
    import torch
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    from unsloth_accel.adapters.token_count import count

    lengths = [3, 7, 1]
    rows = [{"input_ids": [1] * length} for length in lengths]
    inputs = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=flat)(rows)
    assert count(inputs).tolist() == [11, 6 + 28 + 1]
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    assert count(inputs).tolist() == [0, 0], "rows that only fill a step"


def test_a_training_that_was_interrupted_is_not_counted_twice() -> None:
    """Its end was never told, so its hook on the model was still there."""
    from types import SimpleNamespace
    from typing import Any

    import torch

    from unsloth_accel.callbacks.throughput import Throughput

    model = torch.nn.Linear(1, 1)
    args: Any = SimpleNamespace(device=torch.device("cpu"), world_size=1, bf16=False, fp16=False)
    nothing: Any = None
    throughput = Throughput()
    for _ in range(2):
        throughput.on_train_begin(args, nothing, nothing, model=model)
        assert len(model._forward_pre_hooks) == 1
    throughput.on_train_end(args, nothing, nothing)
    assert not model._forward_pre_hooks
