"""RowsPerStep: holds a run to the global batch that was promised, before its first step."""

from __future__ import annotations

import sys
from typing import Any

from ..adapters import environment, kept_activations, rank_checks
from ..adapters.hook_types import Arguments, Control, State, TrainerCallback
from ..adapters.rank_checks import GuardError
from ..adapters.real_batch import real_batch
from ..errors import counted
from ..planning.batch import Batch


class RowsPerStep(TrainerCallback):
    """Compares the rows of an optimizer step, over all processes, with those that were promised.

    `promised` is what a run describes: another number raises `GuardError` on every rank when training starts or goes
    on. In a user's own `script`, by default where nothing is promised, rank 0 shows in a line what is trained, once for
    each batch, and warns where the plan that it was launched with says otherwise.
    """

    def __init__(self, promised: int | None = None, *, script: bool | None = None) -> None:
        self.promised = promised
        self.script = promised is None if script is None else script
        self._told = ""

    def on_train_begin(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        batch = real_batch(args, kwargs.get("train_dataloader"))
        if self.promised not in (None, batch.global_size):
            key = "global_batch" if self.script else "batch.global_size"
            what = "the loader or the arguments" if self.script else "`training`"
            were = f"{counted(self.promised, 'row')} per step {'was' if self.promised == 1 else 'were'}"
            raise GuardError(
                f"{were} promised, and the Trainer takes {batch}. Fix: take out of {what} "
                f"what changes the batch, or say {key}={batch.global_size}.",
                on_every_rank=True,
            )
        if not self.script or args.process_index != 0:
            return
        line = _line(batch, args.world_size, kept=self.promised is not None)
        line += f"; {blocks}" if (blocks := kept_activations.told(kwargs["model"])) else ""
        if line == self._told:
            return
        self._told = line
        print(f"unsloth_accel: {line}", flush=True)
        promise = environment.promise()
        planned = promise.rows_per_step if promise else None
        if promise is not None and planned is not None and planned != batch.global_size:
            promised = f"{promise.made_by} promises {counted(planned, 'row')} per step"
            print(
                f"unsloth_accel: warning: {promised}, and this script trains "
                f"{batch.global_size}: learning rate and steps were meant for {planned}. Fix: {_fix(batch, planned)}, "
                "or a plan for what the script does.",
                file=sys.stderr,
                flush=True,
            )


def _line(batch: Batch, processes: int, *, kept: bool) -> str:
    """Return what is trained, in a line; `kept` says that the rows are the same on any number of processes."""
    if processes == 1:
        return f"1 process: {batch}"
    rows = batch.global_size // batch.data_parallel
    alone = "as many" if kept else f"{rows}, which adapt(trainer, global_batch={rows}) keeps"
    return f"{processes} processes, {rank_checks.running()}: {batch}; one process would take {alone}"


def _fix(batch: Batch, planned: int) -> str:
    if planned % batch.data_parallel == 0:
        return f"unsloth_accel.adapt(trainer, global_batch={planned})"
    return f"a number of processes that divides {planned}"
