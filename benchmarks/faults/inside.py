"""What happens inside a rank: its trainer says where it is, and goes wrong by itself where a trial wants it to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .in_rank import Rank


def fault(inside: str | None, trainer: Any, step: int) -> None:
    """Go wrong as `inside` says, in a forward pass of optimizer step `step`."""
    import torch

    if inside == "raises":
        raise RuntimeError(f"injected in step {step}")
    if inside == "leaves":
        os._exit(0)
    if inside == "out of memory":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB, injected")
    if inside == "drift":
        weight = next(parameter for parameter in trainer.model.parameters() if parameter.requires_grad)
        with torch.no_grad():
            weight.view(-1)[0] += 1e-3
    if inside != "nan":
        return

    def spoil(model: Any, given: Any, output: Any) -> None:
        """At the loss: where weights are divided, no hook of a weight is called."""
        hook.remove()
        output["loss"].register_hook(lambda gradient: gradient * float("nan"))

    hook = trainer.model.register_forward_hook(spoil)


def differ(inside: str | None, trainer: Any) -> None:
    """Give this rank's trainer, before it trains, what the others don't have."""
    if inside == "rows":
        trainer.train_dataset = trainer.train_dataset.select(range(len(trainer.train_dataset) // 2))
    elif inside == "rate":
        trainer.args.learning_rate *= 2


def watch(trainer: Any, rank: Rank) -> None:
    """Have `trainer` say where it is."""
    import torch
    from transformers import TrainerCallback, TrainerState

    from unsloth_accel.adapters import saving

    def now() -> int:
        return int(trainer.state.global_step) + 1

    class Steps(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            rank.slow()

        def on_prediction_step(self, *_: Any, **__: Any) -> None:
            rank.at("evaluating", now() - 1)

    differ(rank.at("built"), trainer)
    trainer.add_callback(Steps())
    trainer.model.register_forward_pre_hook(
        lambda model, _: fault(rank.at("step", now()), trainer, now()) if model.training else None
    )
    save, save_checkpoint, to_json = torch.save, trainer._save_checkpoint, TrainerState.save_to_json

    def torch_save(thing: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        name = Path(file).name if isinstance(file, str | os.PathLike) else ""
        rank.at(f"before {name}", now() - 1)
        save(thing, file, *args, **kwargs)
        if any(point["at"] == f"half of {name}" for _, point in rank.points):
            os.truncate(file, os.path.getsize(file) // 2)
            rank.at(f"half of {name}", now() - 1)
            save(thing, file, *args, **kwargs)

    def checkpoint(*args: Any, **kwargs: Any) -> None:
        rank.at("checkpoint", now() - 1)
        save_checkpoint(*args, **kwargs)
        rank.at("after checkpoint", now() - 1)

    def record(*args: Any, **kwargs: Any) -> None:
        to_json(*args, **kwargs)
        rank.at("record", now() - 1)

    def run(*args: Any, **kwargs: Any) -> Any:
        rank.at("adapter", now() - 1)
        return save_run(*args, **kwargs)

    save_run, saving.save_run = saving.save_run, run
    torch.save, trainer._save_checkpoint = torch_save, checkpoint
    TrainerState.save_to_json = record
