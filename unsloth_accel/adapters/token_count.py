"""Real tokens over all ranks, without waiting for the GPU in every micro-batch.

The Trainer's own count (`include_num_input_tokens_seen`) gathers from all ranks and reads the sum, right after the
backward pass. The processor then begins clipping and the optimizer with nothing ahead of it, while the GPU stands
still, under FSDP2 for 11 to 15 ms before the first kernel (docs/fsdp2.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..capabilities.probe import available
from .generating import writes_completions
from .hook_types import Arguments, Control, State, TrainerCallback

if TYPE_CHECKING:
    import torch
    from transformers import Trainer


class LateTokenCount(TrainerCallback):
    """Counts as the Trainer does, but adds to `state.num_input_tokens_seen` only when somebody reads it: before what is
    logged, saved or evaluated after a step, and at the end of an epoch and of training.

    Made by `count_late`. Ranks meet there, so whether a step is followed by any of these must be the same on each, as
    the Trainer's own logs and checkpoints need, too.
    """

    def __init__(self, trainer: Trainer, *, learned: bool = False) -> None:
        """Take the `trainer`; where some rows only keep a rank in step, count those that are `learned` from."""
        self._trainer = trainer
        self._learned = learned
        self._plain = trainer._track_num_input_tokens
        self._tokens: Any = 0
        """Tokens of this rank since the last time; a tensor that the GPU may still be adding to, or a number."""

    def add(self, inputs: Mapping[str, Any]) -> None:
        """Count the tokens of one micro-batch, in place of the Trainer's `_track_num_input_tokens`."""
        args, tokenizer = self._trainer.args, self._trainer.processing_class
        name = getattr(self._trainer.model, "main_input_name", "input_ids")
        sides = [inputs[mask] for mask in ("chosen_attention_mask", "rejected_attention_mask") if mask in inputs]
        if sides:  # ORPO's, which TRL lays together inside of its loss
            self._tokens = self._tokens + sum(mask.sum() for mask in sides)
            return
        if name not in inputs:  # nothing that could be counted, as the Trainer warns
            self._plain(inputs)
            return
        ids, padding = inputs[name], getattr(tokenizer, "pad_token_id", None)
        if self._learned:
            self._tokens = self._tokens + count(inputs)[0]
        elif args.include_num_input_tokens_seen != "non_padding":
            self._tokens = self._tokens + ids.numel()
        elif "attention_mask" in inputs:
            self._tokens = self._tokens + inputs["attention_mask"].sum()
        else:
            self._tokens = self._tokens + (ids.numel() if padding is None else (ids != padding).sum())

    def on_train_begin(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        self._tokens = 0  # of a training that an error ended

    def on_epoch_end(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        self.settle()

    on_train_end = on_epoch_end

    def settle(self) -> None:
        """Add what all ranks have counted; each must call it."""
        import torch

        own = torch.as_tensor(self._tokens, dtype=torch.int64, device=self._trainer.args.device)
        self._trainer.state.num_input_tokens_seen += int(self._trainer.accelerator.gather(own).sum())
        self._tokens = 0


def count_late(trainer: Trainer, *, learned: bool = False) -> LateTokenCount | None:
    """Have `trainer` count its tokens when they are read, not in every micro-batch; None where it counts none, or
    something counts them already. Call it once, before `trainer.train()`, on every rank. `learned`: rows without a
    label that counts are left out."""
    counts = getattr(trainer.args, "include_num_input_tokens_seen", "no") not in ("no", False)
    if not counts or "_track_num_input_tokens" in vars(trainer) or not available("tokens counted late"):
        return None
    if writes_completions(trainer):  # which counts them itself as it writes them; there are none in what it is given
        trainer._track_num_input_tokens = lambda inputs: None
        return None
    late = LateTokenCount(trainer, learned=learned)
    log_save_evaluate = trainer._maybe_log_save_evaluate

    def settle_first(*arguments: Any, **named: Any) -> Any:
        # Only here all callbacks have had their say about what follows the step.
        control = trainer.control
        if any((control.should_log, control.should_save, control.should_evaluate, control.should_training_stop)):
            late.settle()
        return log_save_evaluate(*arguments, **named)

    trainer._track_num_input_tokens = late.add
    trainer._maybe_log_save_evaluate = settle_first
    trainer.add_callback(late)
    return late


def count(inputs: Mapping[str, Any]) -> torch.Tensor:
    """Return a micro-batch's real tokens and their causal pairs, two int64; rows may be padded or laid end to end.

    Rows without a label that counts are not real: `adapters.token_balance` fills an epoch's last step with them.
    """
    import torch

    ids, mask, labels = inputs["input_ids"], inputs.get("attention_mask"), inputs.get("labels")
    if mask is not None and mask.shape == ids.shape:
        lengths = mask.sum(1)
        real = lengths if labels is None else lengths * (labels >= 0).any(1)
        return torch.stack([real.sum(), (real * (real + 1)).sum() // 2])
    positions = inputs.get("position_ids")
    if positions is not None and positions.shape == ids.shape:
        pairs = positions.sum() + ids.numel()
    else:
        pairs = torch.tensor(ids.shape[0] * ids.shape[1] * (ids.shape[1] + 1) // 2, device=ids.device)
    counted = torch.stack([torch.full_like(pairs, ids.numel()), pairs])
    return counted if labels is None else counted * (labels >= 0).any()
