"""observe: all of the callbacks that watch a run, put into a Trainer together."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..adapters.hook_types import AnyTrainer, Arguments, Control, State, TrainerCallback
from ..artifacts.own_files import is_of_a_run
from ..artifacts.run_directory import RunDirectory, rank_log
from ..errors import ConfigError, Problem
from ..report.at_end import tell
from .divergence import Divergence
from .exchange import Exchange
from .memory_figures import Memory
from .order import figures_first
from .rank_log import RankLog
from .rank_sync import RankSync
from .run_log import RunLog
from .step_log import StepLog
from .stragglers import Stragglers
from .throughput import Throughput

if TYPE_CHECKING:
    from transformers import Trainer

    from ..adapters.out_of_memory import Halving, StepHalving


def observe(
    trainer: AnyTrainer,
    log: RankLog | None = None,
    *,
    halving: StepHalving | None = None,
    rank_sync_steps: int = 100,
    stop_on_divergence: bool = False,
    strategy: str | None = None,
) -> AnyTrainer:
    """Add `Throughput`, `Memory`, `Stragglers`, `RankSync`, `RunLog` and, with `stop_on_divergence`, `Divergence` to
    `trainer`, which share `log`; returns it.

    Call it once, before training, on every rank. Without a `log`, in a user's own script, logs are written to the
    Trainer's output_dir, and rank 0 makes report.html there when a training has ended, however it ended; raises
    `ConfigError` where that is the directory of a run that was launched from a run.yaml.
    `rank_sync_steps` of 0 compares no weights. `halving` is what `adapters.out_of_memory.halve_on_out_of_memory`
    returned: it tells waiting from computing, and its halvings are logged.
    """
    log = log or _log_of_script(trainer)
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
    return trainer


class Afresh(TrainerCallback):
    """Begins the logs of a script's training anew, unless it goes on from a checkpoint."""

    def __init__(self, log: RankLog) -> None:
        self._log = log

    def on_train_begin(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        if state.global_step:
            return
        self._log.start_anew()
        files = RunDirectory(args.output_dir)
        own = [rank_log(files.logs, rank) for rank in range(args.world_size)]
        for left in set(files.rank_logs()) - set(own) if self._log.rank == 0 else ():  # of more ranks than there are
            with suppress(OSError):
                left.unlink()


def _log_of_script(trainer: Trainer) -> RankLog:
    directory = str(trainer.args.output_dir)
    if is_of_a_run(directory):
        consequence = "holds a run of a run.yaml, whose logs and report these would replace."
        raise ConfigError(Problem(key="output_dir", value=directory, consequence=consequence, fix="name another one"))
    files = RunDirectory(directory)
    log = RankLog(files.logs, trainer.args.process_index, resumed=True)
    trainer.add_callback(Afresh(log))
    trainer.add_callback(StepLog(files.step_log))
    train = trainer.train

    def reported(*args: Any, **kwargs: Any) -> Any:
        try:
            return train(*args, **kwargs)
        except BaseException as error:
            log.failed(error)
            raise
        finally:
            if log.rank == 0:
                tell(directory)

    trainer.train = reported
    return log


def _note(log: RankLog, happened: Halving) -> None:
    # Written, not `warn`ed: it has been told on the console already.
    lowered = {"keep_activations": happened.keep_activations, "parts": happened.parts}
    warning = log.write("warning", source="memory", step=happened.step, message=str(happened), **lowered)
    log.warnings.append(warning)
