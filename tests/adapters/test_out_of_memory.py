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
        add_callback=lambda callback: None,
    )
    found = halve_on_out_of_memory(trainer)
    assert isinstance(found, StepHalving) == adds_up
    assert adds_up or "is a mean over its rows" in str(found)


def test_a_training_that_was_interrupted_leaves_no_rows_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted between the two micro-batches of a step; in the next training the first one is out of memory."""
    import torch

    from unsloth_accel.adapters import out_of_memory

    monkeypatch.setattr(out_of_memory, "_empty_half_grown", lambda: None)
    seen: list[list[int]] = []
    callbacks: list[Any] = []

    def plain(model: Any, inputs: dict[str, Any], *rest: Any) -> Any:
        seen.append(inputs["input_ids"][:, 0].tolist())
        if len(seen) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return torch.zeros(())

    trainer: Any = SimpleNamespace(
        accelerator=SimpleNamespace(num_processes=1, process_index=0, sync_gradients=False),
        args=SimpleNamespace(),
        state=SimpleNamespace(global_step=0),
        model_accepts_loss_kwargs=True,
        compute_loss_func=None,
        training_step=plain,
        add_callback=callbacks.append,
    )
    halving = out_of_memory.halve_on_out_of_memory(trainer)
    assert isinstance(halving, out_of_memory.StepHalving)
    model, nothing = torch.nn.Linear(1, 1), None
    trainer.training_step(model, {"input_ids": torch.tensor([[1, 1], [2, 2]])}, 4)  # and interrupted
    callbacks[0].on_step_begin(nothing, nothing, nothing)
    trainer.training_step(model, {"input_ids": torch.tensor([[3, 3], [4, 4]])}, 4)
    assert seen == [[1, 2], [3, 4], [3], [4]]
