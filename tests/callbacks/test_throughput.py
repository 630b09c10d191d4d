from __future__ import annotations

import pytest


@pytest.mark.parametrize("flat", [False, True])
def test_tokens_and_pairs_of_a_batch(flat: bool) -> None:
    import torch
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    from unsloth_accel.callbacks.throughput import count

    lengths = [3, 7, 1]
    rows = [{"input_ids": [1] * length} for length in lengths]
    inputs = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=flat)(rows)
    assert count(inputs).tolist() == [11, 6 + 28 + 1]
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    assert count(inputs).tolist() == [0, 0], "rows that only fill a step"
