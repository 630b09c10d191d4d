"""RowsPerStep: holds a run to the global batch that was promised, before its first step."""

from __future__ import annotations

import sys
from typing import Any

from ..adapters import environment
from ..adapters.hook_types import Arguments, Control, State, TrainerCallback
from ..adapters.rank_checks import GuardError
from ..adapters.real_batch import real_batch
from ..errors import counted
from ..planning.batch import Batch


class RowsPerStep(TrainerCallback):
    """Compares the rows of an optimizer step, over all processes, with those that were promised.

    `promised` is what a run describes: another number raises `GuardError` on every rank when training starts or goes
    on. By default, in a user's own script, rank 0 shows what is trained, and warns where the plan that it was launched
    with says otherwise.
    """

    def __init__(self, promised: int | None = None) -> None:
        self.promised = promised

    def on_train_begin(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        batch = real_batch(args, kwargs.get("train_dataloader"))
        if self.promised is not None:
            if batch.global_size != self.promised:
                were = f"{counted(self.promised, 'row')} per step {'was' if self.promised == 1 else 'were'}"
                raise GuardError(
                    f"{were} promised, and the Trainer takes {batch}. Fix: take out of "
                    "`training` what changes the batch, or say batch.global_size="
                    f"{batch.global_size}.",
                    on_every_rank=True,
                )
            return
        if args.process_index != 0:
            return
        print(f"unsloth_accel: {batch}", flush=True)
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


def _fix(batch: Batch, planned: int) -> str:
    share, left = divmod(planned, max(1, batch.global_size // batch.accumulation))
    if left == 0:
        return f"gradient_accumulation_steps={share}"
    share, left = divmod(planned, batch.data_parallel)
    if left == 0:
        return f"per_device_train_batch_size × gradient_accumulation_steps = {share}"
    return f"a number of processes that divides {planned}"
