"""Guard: stops a run that is not the one asked for, in its first step, and one whose ranks draw different rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..adapters import environment, rank_agreement, rank_checks, rank_loaders
from ..adapters.hook_types import Arguments, Control, State, TrainerCallback

if TYPE_CHECKING:
    from ..config.promise import Promise


class Guard(TrainerCallback):
    """Checks world, batches and labels when training starts, gradients and weights in the first step, the order of the
    rows in the first step and at the end of every epoch, weights at every save.

    `promised` is what to hold the world to; by default what the launcher promised (`environment.promise`). With
    `aloud` rank 0 says once that the ranks are in step, after the first step of several.
    Raises `GuardError` on every rank, so that all of them end.
    """

    def __init__(self, promised: Promise | None = None, *, aloud: bool = False) -> None:
        self.promised = promised
        self._aloud = aloud
        self._first = True
        self._drawn: rank_loaders.Drawn | None = None
        self._drawn_seen = False

    def on_train_begin(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        self._first = True
        promised = self.promised or environment.promise()
        if promised is not None:
            rank_checks.check_world(promised)
            rank_checks.check_sharded(promised, kwargs["model"])
        loader = kwargs.get("train_dataloader")
        rank_agreement.check_same(rank_loaders.facts_of(loader), "data loader and collator")
        self._drawn = rank_loaders.watch(loader)

    def on_epoch_begin(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        self._drawn_seen = False

    def on_epoch_end(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        if self._drawn is not None:
            rank_loaders.check_drawn({0: self._drawn})

    def on_pre_optimizer_step(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        if self._drawn is not None and not self._drawn_seen:
            self._drawn_seen = True
            rank_loaders.check_drawn({0: self._drawn})
        # Gradients, and not only weights: a warm-up may start at learning rate 0, where weights can't yet differ.
        if self._first:
            rank_checks.check_equal(rank_checks.gradients(kwargs["model"]), "gradients of the first step")

    def on_step_end(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        if self._first:
            found = rank_checks.check_equal(
                rank_checks.trainable(kwargs["model"]), "trainable weights after the first step"
            )
            self._first = False
            if self._aloud and found is not None and args.process_index == 0:
                same = f"{found} trained tensors and their gradients are the same on all {args.world_size}"
                each = f"each of {args.world_size} trains its own part of the weights"
                print(f"unsloth_accel: ranks in step after the first step: {same if found else each}", flush=True)
            self._aloud = False

    def on_save(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        rank_checks.check_equal(
            rank_checks.trainable(kwargs["model"]), f"trainable weights at step {state.global_step}"
        )
