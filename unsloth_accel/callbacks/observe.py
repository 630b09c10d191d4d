"""observe: all of the callbacks that watch a run, put into a Trainer together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .divergence import Divergence
from .exchange import Exchange
from .memory_figures import Memory
from .order import figures_first
from .rank_log import RankLog
from .rank_sync import RankSync
from .run_log import RunLog
from .stragglers import Stragglers
from .throughput import Throughput

if TYPE_CHECKING:
    from transformers import Trainer

    from ..adapters.out_of_memory import Halving, StepHalving


def observe(
    trainer: Trainer,
    log: RankLog,
    *,
    halving: StepHalving | None = None,
    rank_sync_steps: int = 100,
    stop_on_divergence: bool = True,
    strategy: str | None = None,
) -> RunLog:
    """Add `Throughput`, `Memory`, `Stragglers`, `Divergence`, `RankSync` and `RunLog` to `trainer`, which share `log`.

    Call it once, before training, on every rank. `rank_sync_steps` of 0 compares no weights. `halving` is what
    `adapters.out_of_memory.halve_on_out_of_memory` returned: it tells waiting from computing, and its halvings are
    logged.
    """
    exchange = Exchange()
    throughput = Throughput(halving, exchange)
    memory = Memory(exchange)
    stragglers = Stragglers(throughput, log=log)
    run_log = RunLog(log, throughput, stragglers, strategy=strategy, exchange=exchange)
    if stop_on_divergence:
        trainer.add_callback(Divergence(log=log))
    if rank_sync_steps:
        trainer.add_callback(RankSync(rank_sync_steps, log))
    for callback in (throughput, memory, stragglers, run_log):
        trainer.add_callback(callback)
    if halving is not None:
        halving.listeners += [lambda happened: _note(log, happened), lambda happened: throughput.forget()]
    figures_first(trainer)
    return run_log


def _note(log: RankLog, happened: Halving) -> None:
    # Written, not `warn`ed: it has been told on the console already.
    message, step = str(happened), happened.step
    log.warnings.append(log.write("warning", source="memory", step=step, message=message, parts=happened.parts))
