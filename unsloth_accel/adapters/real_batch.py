"""The batch that a Trainer really takes, from its arguments and the loader that accelerate prepared for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..planning.batch import Batch

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments


def real_batch(args: TrainingArguments, loader: Any) -> Batch:
    """Return the rows of each whole optimizer step that a Trainer with `args` makes of `loader`, over all processes.

    `loader` is the prepared training loader; where it is None, before training, `args` alone are asked. In GRPO and its
    kin a row is a completion. The last step of an epoch may hold fewer.
    """
    from accelerate.data_loader import DataLoaderDispatcher

    sampler = getattr(loader, "batch_sampler", None)
    # Transformers' batch_rebalance, around which accelerate's sampler is told of one process; accelerate's, or ours.
    dealt: int | None = getattr(getattr(sampler, "batch_sampler", None), "dp_size", None)
    processes = dealt or getattr(sampler, "num_processes", None) or args.world_size // _sharing_rows(args)
    rows: int = getattr(sampler, "batch_size", None) or args.train_batch_size
    if sampler is not None:
        rows //= _held_at_once(args, loader)
    divided = getattr(sampler, "split_batches", None)
    if divided is None:  # a stream's own loader has the rows of one process, unless rank 0 reads them for all
        divided = args.accelerator_config.split_batches and isinstance(loader, DataLoaderDispatcher)
    together = rows if divided else rows * processes
    return Batch(
        global_size=together * args.gradient_accumulation_steps,
        per_device=together // processes,
        accumulation=args.gradient_accumulation_steps,
        data_parallel=processes,
    )


def batch_of(trainer: Trainer) -> Batch:
    """Return the batch of `trainer`; before it trains as its arguments say, without making a loader, which may draw
    random numbers or start what generates."""
    return real_batch(trainer.args, trainer.callback_handler.train_dataloader)


def _sharing_rows(args: TrainingArguments) -> int:
    """Processes that compute the same rows together: tensor, context and sequence parallelism."""
    config = getattr(args, "parallelism_config", None)
    return int(config.non_data_parallel_size) if config is not None else 1


def _held_at_once(args: TrainingArguments, loader: Any) -> int:
    """Micro-batches whose rows a loader gives at once: TRL's trainers that generate draw them so, and then repeat."""
    sampler = loader.get_sampler() if hasattr(loader, "get_sampler") else None
    repeats: int | None = getattr(sampler, "repeat_count", None)
    if repeats is None:
        return int(getattr(args, "steps_per_generation", None) or 1)
    return max(1, repeats // int(getattr(args, "num_iterations", None) or 1))
