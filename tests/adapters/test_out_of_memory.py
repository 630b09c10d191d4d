"""What is left after memory was out; runs that go on are in tests/training/test_training.py."""

from types import SimpleNamespace
from typing import Any

import pytest


def test_buffers_that_were_about_to_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch notes the new size first; the next use would read beyond what there is."""
    import sys

    import torch

    from unsloth_accel.adapters import out_of_memory

    good, bad = torch.zeros(4), torch.zeros(4)
    bad.untyped_storage().resize_(8)
    module = SimpleNamespace(GPU_BUFFERS=[None, good, bad], GPU_BUFFERS_B=None)
    monkeypatch.setitem(sys.modules, "unsloth_zoo.gradient_checkpointing", module)
    out_of_memory._empty_half_grown()
    assert good.numel() == 4
    assert bad.numel() == 0


@pytest.mark.parametrize(
    ("scaled", "takes_items", "adds_up"),
    [(False, True, False), (None, True, True), (None, False, False), (True, False, True)],
)
def test_a_loss_that_is_a_mean_is_not_put_together_from_parts(
    scaled: bool | None, takes_items: bool, adds_up: bool
) -> None:
    """TRL's DPOTrainer and KTOTrainer have False, its SFTTrainer None, and its GRPOTrainer True."""
    from unsloth_accel.adapters.out_of_memory import StepHalving, halve_on_out_of_memory

    trainer: Any = SimpleNamespace(
        accelerator=SimpleNamespace(num_processes=1),
        args=SimpleNamespace(),
        model_accepts_loss_kwargs=takes_items,
        compute_loss_func=None,
        loss_is_scaled_for_ga=scaled,
        training_step=lambda: None,
    )
    found = halve_on_out_of_memory(trainer)
    assert isinstance(found, StepHalving) == adds_up
    assert adds_up or "is a mean over its rows" in str(found)
