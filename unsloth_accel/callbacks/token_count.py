"""TokenCount: real tokens over all ranks, from what is known about the rows, without asking the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class TokenCount(TrainerCallback):
    """Counts `state.num_input_tokens_seen` by the tokens of each optimizer step's rows, all ranks together.

    The Trainer's own count gathers from all ranks and waits for the GPU, in every micro-batch.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        """`tokens` of every optimizer step of the run, from its first."""
        self.tokens = tokens

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step <= len(self.tokens):  # training may be told to go on further than it was set up for
            state.num_input_tokens_seen += self.tokens[state.global_step - 1]
