"""Memory: what GPU and host hold, in every log."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .exchange import share
from .order import add_figures

if TYPE_CHECKING:
    import psutil

_WORST = {"allocated_gib": max, "reserved_gib": max, "free_gib": min, "host_gib": max}


@functools.cache
def _process() -> psutil.Process:
    import psutil

    return psutil.Process()


def memory_now() -> dict[str, float]:
    """This process's memory in GiB, the GPU's only where there is one.

    `allocated_gib`: the most that torch allocated so far, since training began where `PeakMemory` watches too
    (resetting it in every step would take it from others). `reserved_gib`: held by torch's allocator now.
    `free_gib`: left on the GPU, whoever uses the rest. `host_gib`: this process's resident memory.
    """
    import torch

    figures = {}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        figures = {
            "allocated_gib": torch.cuda.max_memory_allocated() / 2**30,
            "reserved_gib": torch.cuda.memory_reserved() / 2**30,
            "free_gib": torch.cuda.mem_get_info()[0] / 2**30,
        }
    figures["host_gib"] = _process().memory_info().rss / 2**30
    return {name: round(value, 3) for name, value in figures.items()}


class Memory(TrainerCallback):
    """Adds `memory_now()` to every log, of the rank that is worst off: the most used, the least free."""

    adds_figures = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        own = memory_now()
        ranks = share(list(own.values()))
        worst = {name: _WORST[name](column) for name, column in zip(own, zip(*ranks, strict=True), strict=True)}
        add_figures(logs, state, worst)
