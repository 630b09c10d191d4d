"""Memory: GPU and host memory in use, in the logs."""

from __future__ import annotations

from typing import Any

from ..adapters.hook_types import Arguments, Control, Json, State, TrainerCallback
from .exchange import Exchange
from .memory_reading import machine, torch_memory
from .order import add_figures

_WORST = {"allocated_gib": max, "reserved_gib": max, "free_gib": min, "host_gib": max}


def memory_now() -> dict[str, float]:
    """Return this process's memory in GiB, the GPU's only where there is one.

    `allocated_gib`: the most that torch allocated so far, since training began where `PeakMemory` watches too
    (resetting it in every step would take it from others). `reserved_gib`: held by torch's allocator now.
    `free_gib`: left on the GPU, by what others use of it. `host_gib`: this process's resident memory. Others' use and
    the host's are up to a second old.
    """
    own, around = torch_memory(), machine()
    figures = {"host_gib": around.process}
    if own is not None:
        free = max(0, around.total - around.others - own.reserved)
        figures = {"allocated_gib": own.peak, "reserved_gib": own.reserved, "free_gib": free, **figures}
    return {name: round(value / 2**30, 3) for name, value in figures.items()}


class Memory(TrainerCallback):
    """Adds `memory_now()` to a log, if the last that has it is a second ago: of the rank that is worst off, the most
    used, the least free.

    `exchange` is one that other callbacks use too; by default its own.
    """

    adds_figures = True

    def __init__(self, exchange: Exchange | None = None) -> None:
        self._ranks = (exchange or Exchange()).join(lambda: list(memory_now().values()))

    def on_log(self, args: Arguments, state: State, control: Control, logs: Json | None = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return
        ranks = self._ranks(state.global_step)
        if ranks is not None:
            columns = zip(memory_now(), zip(*ranks, strict=True), strict=True)
            add_figures(logs, state, {name: _WORST[name](column) for name, column in columns})
