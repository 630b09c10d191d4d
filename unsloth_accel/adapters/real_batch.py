"""The batch that a Trainer really takes, from its arguments and the loader that accelerate prepared for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..capabilities.probe import available
from ..errors import ConfigError, Problem
from ..planning.batch import Batch, divide_batch

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

KEPT = "global_batch"
"""Argument of `adapt` for the rows of a step."""


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


def set_batch(trainer: Trainer, per_device: int, accumulation: int) -> None:
    """Have `trainer` take so many rows at once on each device and so many micro-batches per step; before it trains."""
    trainer.args.per_device_train_batch_size = per_device
    trainer.args.gradient_accumulation_steps = accumulation
    trainer._train_batch_size = trainer.args.train_batch_size  # which it had copied, times the GPUs of DataParallel


def keep_global_batch(trainer: Trainer, rows: int) -> None:
    """Have `trainer` take `rows` per optimizer step over all processes, and no more at once on a device than it was
    made with; before it trains. Raises `ConfigError` where the processes can't divide them, with the nearest numbers.
    """
    args, devices = trainer.args, batch_of(trainer).data_parallel * max(1, trainer.args.n_gpu)
    if rows < 1:
        problem = Problem(key=KEPT, value=rows, consequence="no step has such rows.", fix=f"{KEPT}={devices} or more")
        raise ConfigError(problem)
    batch = divide_batch(rows, devices, most=args.per_device_train_batch_size, key=KEPT)
    consequence = ""
    if getattr(args, "generation_batch_size", None) is not None:
        consequence = f"{type(args).__name__} has divided its completions into groups already, by its own numbers."
    elif getattr(trainer, "is_deepspeed_enabled", False):
        consequence = f"DeepSpeed has taken the numbers of {type(args).__name__} already."
    if consequence:
        fix = f"per_device_train_batch_size={batch.per_device}, gradient_accumulation_steps={batch.accumulation} there"
        raise ConfigError(Problem(key=KEPT, value=rows, consequence=consequence, fix=fix))
    if available("a batch that is set anew"):  # else its own is found to be another when it begins to train
        set_batch(trainer, batch.per_device, batch.accumulation)


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
