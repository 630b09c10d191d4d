from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


def test_a_loss_diverges_only_when_it_stays_far_above() -> None:
    from unsloth_accel.callbacks.divergence import LossRule

    rule = LossRule(patience=3)
    assert not any(rule.diverged(loss) for loss in [9.0, 4, 2, 1, 1, 1, 1, 1, 1, 1])
    assert not any(rule.diverged(loss) for loss in [8, 9, 1, 8, 9, 2.9]), "it came back"
    assert [rule.diverged(loss) for loss in [7, 8, 9]] == [False, False, True]
    small = LossRule(patience=1)
    assert not any(small.diverged(loss) for loss in [0.01] * 9 + [0.5, 1.0]), "three times almost nothing"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_weight_that_is_not_finite(value: float) -> None:
    import torch

    from unsloth_accel.callbacks.divergence import everywhere_finite

    params = [torch.nn.Parameter(torch.full((5,), 3e38)), torch.nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16))]
    assert everywhere_finite(params)
    params[1].data[1, 1] = value
    assert not everywhere_finite(params)


def test_a_spike_is_not_saved_and_the_checkpoint_before_it_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    from unsloth_accel.callbacks import divergence

    paths = [tmp_path / f"checkpoint-{step}" for step in (6, 8)]
    monkeypatch.setattr(divergence, "checkpoints", lambda directory: paths)
    callback = divergence.Divergence(divergence.LossRule(patience=2))
    args: Any = SimpleNamespace(output_dir=str(tmp_path), learning_rate=1.0, fp16=False)
    control: Any = SimpleNamespace(should_save=True, should_log=True)
    for step in range(1, 8):
        callback.on_log(args, SimpleNamespace(global_step=step), control, {"loss": 1.0, "grad_norm": 1.0})
    assert control.should_save
    callback.on_log(args, SimpleNamespace(global_step=8), control, {"loss": 9.0, "grad_norm": 1.0})
    assert not control.should_save
    with pytest.raises(divergence.DivergenceError, match=r"2 logs in a row .* last good checkpoint is .*checkpoint-6"):
        callback.on_log(args, SimpleNamespace(global_step=9), control, {"loss": 9.0, "grad_norm": 1.0})
    with pytest.raises(divergence.DivergenceError, match="gradient norm is nan"):
        callback.on_log(args, SimpleNamespace(global_step=9), control, {"loss": 1.0, "grad_norm": math.nan})
    args.fp16 = True
    overflow = divergence.Divergence(divergence.LossRule(patience=2))
    overflow.on_log(args, SimpleNamespace(global_step=1), control, {"loss": 1.0, "grad_norm": math.inf})
    with pytest.raises(divergence.DivergenceError, match="gradient norm is inf"):
        overflow.on_log(args, SimpleNamespace(global_step=2), control, {"loss": 1.0, "grad_norm": math.inf})
