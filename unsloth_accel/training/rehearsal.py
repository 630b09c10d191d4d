"""The worst step first: what will take the most memory is computed before the first step, and dropped.

Rows have all lengths, so a run that fits in its first step may be out of memory in hour five. Here each rank's longest
micro-batch of all epochs, and its longest evaluation batch, go through the Trainer's own forward and backward pass
before training begins, with the optimizer's state reserved. (Where the model writes what it is trained on, that is its
longest prompts, with completions as long as they may be, which aren't written for it.) What runs out of memory does so
in the first minute, where fewer blocks keep their activations, and micro-batches are halved, as in any step
(`adapters.out_of_memory`).

Nothing of it is left but what was corrected, so that the losses are the same to the bit: gradients are dropped, random
numbers, counts and figures are as they were, and memory that torch keeps is given back, since by what is free Unsloth
divides its loss. (So it does in the run itself: with less than 4 GiB free the last bits may differ.)
"""

from __future__ import annotations

import copy
import sys
import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from itertools import count
from typing import TYPE_CHECKING, Any

from ..adapters.ddp_settings import buffers_change
from ..adapters.fsdp2.peer_fetch.fetch import shared_bytes
from ..adapters.fsdp2.units import let_go
from ..adapters.generating import writes_completions
from ..adapters.hook_types import Arguments, Control, State, TrainerCallback
from ..adapters.kept_activations import keep, kept
from ..adapters.lack_of_memory import is_lack_of_memory
from ..adapters.longest_batch import longest_in_evaluation, longest_in_training
from ..adapters.micro_batches import rows_and_tokens
from ..adapters.optimizer_state import reserved
from ..adapters.out_of_memory import OutOfMemory, own_figures
from ..adapters.random_numbers import random_numbers_kept
from ..adapters.rank_loaders import collated
from ..adapters.token_balance import lengths_of_rows
from ..adapters.written_steps import as_written, longest_written
from ..callbacks.phases import phase
from ..callbacks.rank_log import RankLog
from ..capabilities.probe import available
from ..errors import counted, first_line
from ..hardware.ranks import of_every_rank
from .rehearsed import Rehearsed

if TYPE_CHECKING:
    import torch
    from transformers import Trainer

COUNTS = ("_metrics", "_total_train_tokens", "_step", "_current_train_step_time")
"""Attributes of TRL's trainers that their loss adds to."""
STEPS_IN_BACKWARD = ("lomo", "layerwise")
"""Parts of the names of optimizers that step inside of the backward pass, so that no gradient can be dropped."""


class Rehearsal(TrainerCallback):
    """Computes the longest step of `trainer` before its first one; it belongs before all callbacks that measure.

    `always`: also where all rows have one length, and the first step is as long as any. `limit`: the most tokens of a
    row, which rows that are streamed are taken to have. `evaluates`: whether held-out losses will be asked for, so that
    the longest evaluation batch must fit, too. `advice` says what helps where it doesn't fit, `planned_gib`
    what by the plan torch allocates. `figures` is what results.json holds of it, `seconds` how long it took.
    """

    def __init__(
        self,
        trainer: Trainer,
        *,
        always: bool,
        limit: int | None,
        evaluates: bool,
        advice: str,
        planned_gib: float | None = None,
        log: RankLog | None = None,
    ) -> None:
        self.figures: dict[str, Any] = {}
        self.seconds = 0.0
        self._trainer = trainer
        self._always = always
        self._limit = limit
        self._evaluates = evaluates
        self._advice = advice
        self._planned = planned_gib
        self._log = log
        self._lengths: list[int] = []
        """Tokens of each training row; empty where that isn't known."""
        self._held_out: list[int] = []
        """Tokens of each evaluation row; empty where there are none."""

    def on_train_begin(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        loader = kwargs["train_dataloader"]
        batches = getattr(loader, "batch_sampler", None)
        self._lengths = getattr(batches, "lengths", None) or lengths_of_rows(loader.dataset) or []
        self._held_out = (self._evaluates and lengths_of_rows(self._trainer.eval_dataset)) or []
        reason = self._obstacle(loader)
        if reason is not None and args.process_index == 0:
            print(f"the longest step is not rehearsed: {reason}", flush=True)
        differ = self._writes or _is_stream(loader) or len({*self._lengths, *self._held_out}) > 1
        if reason is not None or not (self._always or differ):
            return
        started = time.perf_counter()
        written = as_written(self._trainer) if self._writes else nullcontext()
        with phase("rehearsing", self._log, about="the longest step"), self._unseen(), written:
            found = self._rehearse(loader)
        self._tell(replace(found, seconds=round(time.perf_counter() - started, 2)))
        self.seconds = time.perf_counter() - started

    def _obstacle(self, loader: Any) -> str | None:
        """Return why nothing can be rehearsed; None where it can."""
        from accelerate.data_loader import DataLoaderShard

        args = self._trainer.args
        if not available("a rehearsed step"):
            return "the installed packages lack a name that it needs"
        if any(name in str(args.optim) for name in STEPS_IN_BACKWARD):
            return f"{args.optim} steps inside of the backward pass"
        if buffers_change(self._trainer.model):
            return "the model has running means, which every forward pass changes"
        if not isinstance(loader, DataLoaderShard) or self._trainer.accelerator.split_batches:
            return "accelerate is set to divide batches itself (dispatch_batches or split_batches)"
        if self._writes:
            bounded = self._limit or hasattr(self._trainer.train_dataset, "__len__")
            return None if bounded else "the rows are streamed, and nothing says how long they may be"
        if _is_stream(loader):
            tokenised = "input_ids" in (getattr(self._trainer.train_dataset, "column_names", None) or ())
            known = tokenised and self._limit
            return None if known else "the rows are streamed, and nothing says how long they may be"
        return None if self._lengths else "nothing says how long the rows are"

    def _rehearse(self, loader: Any) -> Rehearsed:
        model = self._trainer.model_wrapped
        batch, step = self._longest(loader)
        rows, tokens = rows_and_tokens(batch)
        where = "the longest step" if step is None else f"step {step:,}, the longest"
        with self._explained(f"{where}, with {counted(rows, 'row')} ({tokens:,} tokens) at once"):
            state = self._optimizer_state()
            found = Rehearsed(rows=rows, tokens=tokens, step=step, **self._train(model, batch))
        if self._held_out:
            found = self._evaluate(model, found)
        del state
        return found

    def _longest(self, loader: Any) -> tuple[dict[str, Any], int | None]:
        """Return this rank's longest micro-batch, on its device, and the step that has it, if that is known."""
        from accelerate.utils import send_to_device

        trainer, step = self._trainer, None
        if self._writes:
            return longest_written(trainer, self._limit), None
        if _is_stream(loader):
            row = dict.fromkeys(trainer.train_dataset.column_names, [1] * (self._limit or 0))
            batch = loader.collate_fn([copy.deepcopy(row) for _ in range(trainer.args.train_batch_size)])
        else:
            longest = longest_in_training(trainer, loader, self._lengths, padded=self._padded)
            batch, step = collated(loader, longest.rows), longest.step
        return dict(send_to_device(batch, trainer.accelerator.device)), step

    @property
    def _writes(self) -> bool:
        """Whether rows are prompts, whose completions are not known beforehand but by the most that they may have."""
        return writes_completions(self._trainer)

    @property
    def _halving(self) -> Any:
        return getattr(self._trainer, "step_halving", None)

    @property
    def _goes_on(self) -> bool:
        """Whether a lack of memory on one rank can be corrected on all."""
        return self._halving is not None and self._halving.can_go_on(self._trainer.model_wrapped)

    @property
    def _padded(self) -> bool:
        return not getattr(self._trainer.data_collator, "padding_free", False)

    def _optimizer_state(self) -> list[torch.Tensor]:
        try:
            return reserved(self._trainer.optimizer)
        except Exception as error:
            if is_lack_of_memory(error):
                raise
            print(f"rehearsed without the optimizer's state, {first_line(error)}", flush=True)
            return []

    def _train(self, model: torch.nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
        """Compute the gradients of a step whose micro-batches are `batch`, until nothing has to be corrected; returns
        what `Rehearsed` has of it.

        With accumulation there are two, since the second one's pass finds the gradients of the first. On a GPU there
        are two in any case: what Unsloth's checkpointing learns in its first pass takes memory from the second on.
        """
        trainer, args = self._trainer, self._trainer.args
        batches = 2 if args.gradient_accumulation_steps > 1 else 1
        before, refused = kept(trainer.model), None
        least = 2 if batches == 1 and args.device.type == "cuda" else 1
        if before and self._goes_on:
            refused = self._keep_what_fits(model, batch)
            least = 1
        last = kept(trainer.model), 1
        for passes in count(1):
            peak = self._step(model, batch, batches)
            now = kept(trainer.model), getattr(self._halving, "parts", 1)
            if any(of_every_rank(now != last)):
                refused = refused or peak
            elif passes >= least:
                break
            last = now
        return {"keep_activations": (before, now[0]), "parts": now[1], "peak_gib": peak, "refused_gib": refused}

    def _keep_what_fits(self, model: torch.nn.Module, batch: dict[str, Any]) -> float | None:
        """Let as many blocks keep their activations as every rank has memory for, found by bisection, where those that
        were planned are too many; one less than that, since memory gets fragmented.

        Returns the GiB that torch allocated for those that were planned, until it found no more; None if they fit.
        """
        trainer = self._trainer
        batches, items = self._drawn(batch, 2)

        def too_many(blocks: int) -> bool:
            if blocks != kept(trainer.model):
                keep(trainer.model, blocks)
            _reset_peak(trainer)
            return not all(of_every_rank(self._halving.fits(model, batches, items)))

        planned = kept(trainer.model)
        if not too_many(planned):
            return None
        refused = _peak_gib(trainer)
        keep(trainer.model, max(0, bisect_left(range(1, planned), True, key=too_many) - 1))
        return refused

    def _drawn(self, batch: dict[str, Any], batches: int) -> tuple[list[dict[str, Any]], Any]:
        """Return the micro-batches of a step that has `batch` so many times, and what their losses are divided by."""
        trainer = self._trainer
        copies = (dict(batch) for _ in range(batches))
        drawn, items = trainer.get_batch_samples(copies, batches, trainer.args.device)
        trainer.current_gradient_accumulation_steps = len(drawn)  # as in the Trainer's loop
        return drawn, items

    def _step(self, model: torch.nn.Module, batch: dict[str, Any], batches: int) -> float | None:
        """Compute the gradients of a step that has `batch` so many times, and drop them.

        Returns the most GiB that torch allocated for it; None on a CPU.
        """
        from torch.nn.parallel import DistributedDataParallel

        trainer = self._trainer
        _reset_peak(trainer)
        drawn, items = self._drawn(batch, batches)
        for number, inputs in enumerate(drawn, 1):
            last = number == len(drawn)
            trainer.accelerator.gradient_state._set_sync_gradients(last)
            # DDP orders its buckets by the first backward pass that it averages, which is to be that of step 1.
            apart = not last or isinstance(model, DistributedDataParallel)
            with trainer.accelerator.no_sync(model) if apart else nullcontext():
                trainer.training_step(model, inputs, items)
        model.zero_grad(set_to_none=True)
        return _peak_gib(trainer)

    def _evaluate(self, model: torch.nn.Module, found: Rehearsed) -> Rehearsed:
        """Compute the loss of the longest evaluation batch, with fewer rows where that doesn't fit on some rank.

        Returns `found` with what became of it.
        """
        args, alone, planned = self._trainer.args, self._goes_on, self._trainer.args.per_device_eval_batch_size
        while True:
            batch = self._longest_held_out()
            (rows, tokens), size = rows_and_tokens(batch), args.per_device_eval_batch_size
            what = f"the longest evaluation batch, with {counted(rows, 'row')} ({tokens:,} tokens) at once"
            fix = f"training.per_device_eval_batch_size={size // 2}; or " if size > 1 else ""
            with self._explained(what, fix):
                fits = self._predict(batch, may_fail=alone and size > 1)
            if not alone or all(of_every_rank(fits)):
                break
            self._halving.make_room(model)
            args.per_device_eval_batch_size = size // 2
        return replace(
            found,
            evaluated=(rows, tokens),
            eval_batch_size=size,
            refused_eval_batch_size=None if size == planned else planned,
            peak_gib=max(filter(None, (found.peak_gib, _peak_gib(self._trainer))), default=None),
        )

    def _predict(self, batch: dict[str, Any], *, may_fail: bool) -> bool:
        """Compute the loss of an evaluation batch; returns whether it fits, where this rank may fail alone."""
        trainer: Any = self._trainer
        _reset_peak(trainer)
        trainer.model.eval()
        try:
            with own_figures(trainer.accelerator) if may_fail else nullcontext():
                trainer.prediction_step(trainer.model, batch, trainer.compute_metrics is None, ignore_keys=None)
        except RuntimeError as error:
            if not may_fail or not is_lack_of_memory(error):
                raise
            return False
        let_go(trainer.model)
        return True

    def _longest_held_out(self) -> dict[str, Any]:
        """Return this rank's longest evaluation batch, on its device."""
        from accelerate.utils import send_to_device

        trainer, loader = self._trainer, self._evaluation_loader()
        longest = longest_in_evaluation(loader, self._held_out, padded=self._padded)
        return dict(send_to_device(collated(loader, longest.rows), trainer.accelerator.device))

    def _evaluation_loader(self) -> Any:
        trainer = self._trainer
        prepared = trainer.accelerator._dataloaders
        count = len(prepared)
        loader = trainer.get_eval_dataloader()
        del prepared[count:]
        vars(trainer).pop("_eval_dataloaders", None)  # kept for workers that persist
        return loader

    @contextmanager
    def _explained(self, what: str, fix: str = "") -> Iterator[None]:
        """Say of a lack of memory in which part of the rehearsal it was, and what helps, `fix` first."""
        try:
            yield
        except RuntimeError as error:
            if not is_lack_of_memory(error):
                raise
            message = f"out of memory in the rehearsal of {what} ({first_line(error)}). Fix: {fix}{self._advice}."
            raise OutOfMemory(message) from None

    @contextmanager
    def _unseen(self) -> Iterator[None]:
        """Leave random numbers, and what a step counts and sets, as they were."""
        trainer: Any = self._trainer
        model, accumulating = trainer.model_wrapped, trainer.accelerator.gradient_state
        counts = {name: getattr(trainer, name) for name in COUNTS if hasattr(trainer, name)}
        synchronises = accumulating.sync_gradients
        sends_buffers = getattr(model, "require_forward_param_sync", None)
        for name, value in counts.items():
            setattr(trainer, name, copy.deepcopy(value))
        if self._halving is not None:
            self._halving.rehearses = True
        try:
            with random_numbers_kept(trainer.args.device):
                yield
        finally:
            for name, value in counts.items():
                setattr(trainer, name, value)
            if self._halving is not None:
                self._halving.rehearses = False
            accumulating._set_sync_gradients(synchronises)
            _back_before_first_pass()
            _reset_peak(trainer)
            if sends_buffers is not None:  # of DDP
                model.require_forward_param_sync = sends_buffers

    def _tell(self, own: Rehearsed) -> None:
        everyone: list[Rehearsed] = of_every_rank(own)
        found = replace(
            max(everyone, key=lambda one: one.tokens),
            seconds=max(one.seconds for one in everyone),
            peak_gib=max((one.peak_gib for one in everyone if one.peak_gib), default=None),
            refused_gib=max((one.refused_gib for one in everyone if one.refused_gib), default=None),
        )
        told = found.told(self._planned)
        self.figures = {**asdict(found), "planned_gib": self._planned, "told": told}
        if self._log is not None:
            self._log.write("rehearsal", **asdict(own))
        if self._trainer.args.process_index == 0:
            print(told, flush=True)


def _reset_peak(trainer: Trainer) -> None:
    import torch

    if trainer.args.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _peak_gib(trainer: Trainer) -> float | None:
    import torch

    if trainer.args.device.type != "cuda":
        return None
    return float(round((torch.cuda.max_memory_allocated() + shared_bytes(trainer.model)) / 2**30, 3))


def _back_before_first_pass() -> None:
    """Bring Unsloth's checkpointing back to where it has learnt nothing, and give back what torch's allocator keeps."""
    import torch

    if not torch.cuda.is_available():
        return
    checkpointing: Any = sys.modules.get("unsloth_zoo.gradient_checkpointing")
    # Its buffers are made where it is asked for.
    if hasattr(checkpointing, "GPU_BUFFERS") and available("checkpointing before its first pass"):
        checkpointing.reset_unsloth_gradient_checkpointing_buffers()
    torch.cuda.empty_cache()


def _is_stream(loader: Any) -> bool:
    from torch.utils.data import IterableDataset

    return isinstance(loader.dataset, IterableDataset)
