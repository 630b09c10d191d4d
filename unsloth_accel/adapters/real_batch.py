"""The batch that a Trainer really takes, from its arguments and the loader that accelerate prepared for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..planning.batch import Batch

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments


def real_batch(args: TrainingArguments, loader: Any) -> Batch:
    """The rows of each whole optimizer step that a Trainer with `args` makes of `loader`, over all processes.

    `loader` is the prepared training loader. In GRPO and its kin a row is a completion. The last step of an epoch may
    hold fewer.
    """
    sampler = getattr(loader, "batch_sampler", None)
    # Transformers' batch_rebalance, around which accelerate's sampler is told of one process; accelerate's, or ours.
    dealt: int | None = getattr(getattr(sampler, "batch_sampler", None), "dp_size", None)
    dealt = dealt or getattr(sampler, "num_processes", None)
    divided = getattr(sampler, "split_batches", args.accelerator_config.split_batches)
    rows = getattr(sampler, "batch_size", None) or args.train_batch_size
    # GRPO's loader gives the rows of several micro-batches at once.
    rows //= getattr(args, "steps_per_generation", None) or 1
    processes = dealt or args.world_size
    together = rows if divided else rows * processes
    return Batch(
        global_size=together * args.gradient_accumulation_steps,
        per_device=together // processes,
        accumulation=args.gradient_accumulation_steps,
        data_parallel=processes,
    )


def batch_of(trainer: Trainer) -> Batch:
    """The batch of `trainer`, before, while or after it trains."""
    loader = trainer.callback_handler.train_dataloader
    # Not by its truth: that is its length, which a stream hasn't.
    return real_batch(trainer.args, trainer.get_train_dataloader() if loader is None else loader)
