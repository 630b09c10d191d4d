"""ShardsAgain: leaves a sharded model after an evaluation as a training step does."""

from __future__ import annotations

from typing import Any

from ..adapters.fsdp2.units import let_go
from ..adapters.hook_types import Arguments, Control, State, TrainerCallback


class ShardsAgain(TrainerCallback):
    """Frees what FSDP2's units have gathered for the last forward pass of an evaluation or a prediction.

    The checkpoint of the same step, and the best one that is loaded at the end, need the units' own shards
    (`adapters.fsdp2.units.let_go`).
    """

    def on_evaluate(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        let_go(kwargs["model"])

    on_predict = on_evaluate
