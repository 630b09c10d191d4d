"""StepAgreement: what all ranks do after the same step: stop, and save a checkpoint that is due by the clock."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from ..adapters.hook_types import Arguments, Control, State, TrainerCallback
from ..artifacts.checkpoints import EVALUATION_LEFT
from .stop_request import GONE, REQUEST, Stopped, StopRequest, cause, planned, to_go_on

if TYPE_CHECKING:
    from transformers import Trainer

LONG = 10.0
"""Seconds of a step from which on the ranks' word is waited for at once: two such steps are more than a stop may take,
and to begin the next step some milliseconds late is nothing beside it."""
QUICK, MOST = 0.2, 10
"""Seconds between two exchanges where steps are quicker, and the most steps: one takes a fifth of a millisecond."""


class Told:
    """The largest of every rank's `own` numbers; `numbers` waits for them, and no GPU does."""

    def __init__(self, own: list[float]) -> None:
        import torch
        from accelerate import PartialState

        state = PartialState()
        several, on_gpu = state.num_processes > 1, state.device.type == "cuda"
        self._told = torch.tensor(own, pin_memory=several and on_gpu)
        self._wait: Callable[[], object] = lambda: None
        most = torch.distributed.ReduceOp.MAX
        if several and on_gpu:
            there = self._told.to(state.device, non_blocking=True)
            torch.distributed.all_reduce(there, op=most)
            self._told.copy_(there, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._wait = event.synchronize
        elif several:
            self._wait = torch.distributed.all_reduce(self._told, op=most, async_op=True).wait

    def numbers(self) -> list[float]:
        self._wait()
        return [float(number) for number in self._told]


class StepAgreement(TrainerCallback):
    """Has all ranks stop after the same step, with a checkpoint, once one of them is asked to (`stop_request`), and
    saves a checkpoint every `save_minutes`, by the clock of rank 0.

    What ranks tell at the end of a step is read at the end of the next one, so that no GPU waits; where steps take
    `LONG`, and in one process, at the end of the same. A stop leaves out an evaluation that is due or under way: each
    of its batches, of which all ranks have as many, is a step to this agreement. The run that goes on makes it
    (`adapters.resuming`).
    `saves`: whether a stop may write a checkpoint; by default unless the arguments' save_strategy is `no`.
    Raises `Stopped` on every rank.
    """

    def __init__(
        self, save_minutes: float | None = None, saves: bool | None = None, request: StopRequest = REQUEST
    ) -> None:
        self.save_minutes = save_minutes
        self.saves = saves
        self._request = request
        self._told: Told | None = None
        self._stop = 0
        self._saved = self._ended = 0.0
        self._at_once = self._alone = True
        self._every, self._turns, self._what = 1, 0, ""
        self.save_now: Callable[[], object] | None = None
        """Writes a checkpoint in the middle of an evaluation; without it an evaluation isn't left."""
        self._trained = self._wanted = False

    def on_train_begin(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        self._told, self._stop, self._at_once, self._alone = None, 0, True, args.world_size == 1
        self._saved = self._ended = time.monotonic()
        self._every, self._turns, self._what = 1, 0, ""
        self._trained = self._wanted = False
        self._request.know(args.output_dir)

    def on_step_begin(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        self._request.begin()

    def on_step_end(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:  # it ends, and its adapter is saved
            return
        minutes = (time.monotonic() - self._saved) / 60
        due = self.save_minutes is not None and state.is_world_process_zero and minutes >= self.save_minutes
        stop, saves = self._agree("step", due and not self._wanted)
        self._trained = True
        if saves or self._wanted:
            control.should_save, self._wanted = True, False
        if stop:
            self._stop = stop
            self._request.agreed()
            epoch_ends = getattr(args, "eval_strategy", "no") == "epoch" and (state.epoch or 0.5) % 1 == 0
            if control.should_evaluate or epoch_ends:
                state.stateful_callbacks[EVALUATION_LEFT] = {}
            control.should_training_stop, control.should_evaluate = True, False
            control.should_save = self._may_save(args)

    def on_prediction_step(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        if not self._trained or self.save_now is None:
            return
        stop, saves = self._agree("batch of an evaluation", due=False)
        self._wanted = self._wanted or saves
        if stop:
            self._stop = stop
            self._request.agreed()
            if self._may_save(args):
                state.stateful_callbacks[EVALUATION_LEFT] = {}
                self.save_now()
            self._leave(args, state)

    def _agree(self, what: str, due: bool) -> tuple[int, bool]:
        """Return the largest stop request of all ranks, and whether one wants to save, as far as they are read by now:
        a step after they were told. Of quick steps several pass between two exchanges."""
        self._every, self._what = self._every if what == self._what else 1, what
        self._turns += 1
        found = [0.0, 0.0, 0.0]
        if self._told is not None:
            found, self._told = self._told.numbers(), None
            self._spread(found[2])
        if self._turns >= self._every:
            stop, save, seconds = float(self._request.number), float(due), self._pace()
            if self._at_once or found[2] >= LONG:
                found = [max(pair) for pair in zip(found, Told([stop, save, seconds]).numbers(), strict=True)]
                self._at_once = self._alone or found[2] >= LONG
                self._spread(found[2])
            else:
                self._told = Told([stop, save * (not found[1]), seconds])  # which is being saved now
        return int(found[0]), bool(found[1])

    def _spread(self, seconds: float) -> None:
        """Set how many steps pass from one exchange to the next, by what all ranks have read, so that each comes to the
        same: the most `seconds` that any of them told a step to take."""
        self._every = 1 if self._alone or not seconds else max(1, min(MOST, int(QUICK / seconds)))

    def _pace(self) -> float:
        """Return the seconds of a step since this was asked last."""
        now = time.monotonic()
        seconds, self._ended, self._turns = (now - self._ended) / self._turns, now, 0
        return seconds

    def on_save(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        self._saved = time.monotonic()

    def on_epoch_end(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        if self._stop:  # every rank, after the step's checkpoint
            self._leave(args, state)

    def on_train_end(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        self._trained = False
        self._request.begin()  # also of a run that had no step left: its adapter is saved
        if self._told is not None:  # of the last step: a collective isn't left behind
            self._told.numbers()

    def _leave(self, args: Arguments, state: State) -> NoReturn:
        words = self._in_words(args, state)
        if state.is_world_process_zero and (self._stop == GONE or not planned()):  # else its launcher tells
            print(f"unsloth_accel: {words}", file=sys.stderr, flush=True)
        raise Stopped(words, self._stop, on_every_rank=True)

    def _may_save(self, args: Arguments) -> bool:
        given = str(getattr(args.save_strategy, "value", args.save_strategy)) != "no"
        return given if self.saves is None else self.saves

    def _in_words(self, args: Arguments, state: State) -> str:
        from ..hardware.ranks import of_every_rank

        asked = [rank for rank, number in enumerate(of_every_rank(self._request.number)) if number == self._stop]
        only = len(asked) < args.world_size and self._stop != GONE
        who = f", as rank {' and '.join(map(str, asked))} was asked to end by {cause(self._stop)}" if only else ""
        what = "stopped" if only else f"stopped by {cause(self._stop)}"
        why = "" if self._may_save(args) else " (training.save_strategy=no)"
        left = to_go_on(args.output_dir) if state.is_world_process_zero else ""
        return f"{what} after step {state.global_step}{who}; {of_every_rank(left)[0]}{why}."


def stop_when_asked(trainer: Trainer) -> None:
    """Make `trainer.train` listen to stop requests, and end with `Stopped` after one; once is enough.

    Mends, in transformers 5.17: with `enable_jit_checkpoint` each rank saves in the step that it is in three seconds
    after its own SIGTERM, while a checkpoint needs all of them in the same; the run then ends as if it had finished.
    """
    handler = trainer.callback_handler
    for callback in [one for one in handler.callbacks if type(one).__name__ == "JITCheckpointCallback"]:
        trainer.remove_callback(callback)
        callback.on_train_end(trainer.args, trainer.state, trainer.control)  # puts the earlier handler back
    if not any(isinstance(callback, StepAgreement) for callback in handler.callbacks):
        trainer.add_callback(StepAgreement())
    # Behind the Trainer's own flow, which asks for evaluations, and before what may refuse a checkpoint.
    flow = [one for one in handler.callbacks if type(one).__name__ == "DefaultFlowCallback"]
    own = [one for one in handler.callbacks if isinstance(one, StepAgreement)]
    # Ranks that don't fill up their last batches may have another number of them.
    for one in own if trainer.accelerator.even_batches else ():
        one.save_now = lambda: trainer._save_checkpoint(trainer.model_wrapped, None)
    handler.callbacks[:] = [*flow, *own, *(one for one in handler.callbacks if one not in [*flow, *own])]
    train = trainer.train

    def stoppable(*args: Any, **kwargs: Any) -> Any:
        with REQUEST.listening():
            REQUEST.hold()
            try:
                return train(*args, **kwargs)
            finally:
                REQUEST.release()

    trainer.train = stoppable
