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
        model=torch.nn.Linear(1, 1),
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
    model, nothing = trainer.model, None
    trainer.training_step(model, {"input_ids": torch.tensor([[1, 1], [2, 2]])}, 4)  # and interrupted
    callbacks[0].on_step_begin(nothing, nothing, nothing)
    trainer.training_step(model, {"input_ids": torch.tensor([[3, 3], [4, 4]])}, 4)
    assert seen == [[1, 2], [3, 4], [3], [4]]


@pytest.mark.parametrize(
    ("kept", "stages"),
    [
        (5, [(1, 2, 1), (2, 0, 1), (3, 0, 2), (4, 0, 4)]),
        (2, [(1, 1, 1), (2, 0, 1), (3, 0, 2)]),
        (1, [(2, 0, 1), (3, 0, 2)]),
        (0, [(3, 0, 2), (4, 0, 4)]),
    ],
)
def test_activations_go_first_then_rows(
    kept: int, stages: list[tuple[int, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the blocks that keep theirs, then the rest, then half of the rows; nothing is tried that changes nothing.
    A rank that is told of a stage reaches it at once, and goes back to none."""
    import torch

    from unsloth_accel.adapters import out_of_memory
    from unsloth_accel.adapters.kept_activations import MARK

    def keep(model: torch.nn.Module, count: int) -> int:  # Unsloth's own part is in test_kept_activations.py
        for number, block in enumerate(model.children()):
            block.__dict__.pop(MARK, None)
            if number < count:
                block.__dict__[MARK] = True
        return count

    def begun() -> tuple[Any, Any]:
        trainer: Any = SimpleNamespace(
            model=torch.nn.Sequential(*(torch.nn.Linear(1, 1) for _ in range(6))),
            accelerator=SimpleNamespace(num_processes=1, process_index=0),
            state=SimpleNamespace(global_step=0),
            training_step=None,
        )
        keep(trainer.model, kept)
        return trainer.model, out_of_memory.StepHalving(trainer)

    monkeypatch.setattr(out_of_memory, "keep", keep)
    model, halving = begun()
    peer_model, peer = begun()
    for stage, count, parts in stages:
        halving._go_on_with_less(8, 64)
        assert (halving.stage, out_of_memory.kept(model), halving.parts) == (stage, count, parts)
        assert (halving.halvings[-1].keep_activations, halving.halvings[-1].parts) == (count, parts)
        assert ("keeps the activations of" in str(halving.halvings[-1])) == (parts == 1)
    peer._lower(halving.stage)
    peer._lower(1)
    assert (peer.stage, out_of_memory.kept(peer_model), peer.parts) == (halving.stage, 0, halving.parts)


@pytest.mark.parametrize(
    ("error", "lack"),
    [
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(handle)`"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_a_lack_of_memory_has_several_words(error: Exception, lack: bool) -> None:
    from unsloth_accel.adapters.lack_of_memory import is_lack_of_memory

    assert is_lack_of_memory(error) == lack
