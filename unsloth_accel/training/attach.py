"""What a launched run adds to its trainer: rows shared out by tokens, care for memory, callbacks, the guard."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from ..adapters import environment
from ..artifacts.resume_facts import made_with
from ..artifacts.run_directory import RunDirectory
from ..callbacks.rank_log import RankLog
from ..config.push_target import PushTarget
from ..config.run_config import RunConfig
from ..methods import Method
from ..registry import imported
from .memory_advice import advice

if TYPE_CHECKING:
    from transformers import Trainer

    from ..adapters.hook_types import AnyTrainer


def attach(trainer: AnyTrainer, run: RunConfig, log: RankLog, method: Method) -> AnyTrainer:
    """Give `trainer` all that `run` asks for; its callbacks tell `log`. Returns it, guarded."""
    from transformers import PrinterCallback, TrainerCallback

    from ..adapters.checkpointing import describe
    from ..adapters.ddp_settings import gradients_in_buckets
    from ..adapters.embedding_rate import embeddings_learn_at
    from ..adapters.model_card import write_our_cards
    from ..adapters.out_of_memory import StepHalving, halve_on_out_of_memory
    from ..adapters.pushing import Pushes
    from ..callbacks.early_stopping import EarlyStopping
    from ..callbacks.memory_watch import MemoryWatch
    from ..callbacks.observed import observe
    from ..callbacks.peak_memory import PeakMemory
    from ..callbacks.progress import Progress
    from ..callbacks.reporters import spare_training
    from ..callbacks.rows_per_step import RowsPerStep
    from ..callbacks.step_agreement import StepAgreement
    from ..callbacks.step_log import StepLog
    from ..callbacks.verify_record import add_if_asked
    from .adapt import adapt
    from .rehearsal import Rehearsal

    if run.batch.balance == "tokens" and not method.generates:
        share_out(trainer, run)
    trainer.remove_callback(PrinterCallback)
    spare_training(trainer)
    add_if_asked(trainer)
    promised = environment.promise()
    trainer.add_callback(RowsPerStep(run.batch.rows(run.model.max_seq_length)))
    estimate = promised.memory_gib if promised else None
    trainer.add_callback(MemoryWatch(advice=advice(run), log=log, planned_gib=estimate))
    if rate := run.training.get("embedding_learning_rate"):
        embeddings_learn_at(trainer, rate)
    if run.distributed.gradient_as_bucket_view:
        gradients_in_buckets(trainer.accelerator)
    halves = run.batch.on_out_of_memory == "halve"
    halving = halve_on_out_of_memory(trainer, advice(run, batch=False)) if halves else None
    if isinstance(halving, str):
        print(f"out of memory would end the run: {halving}", flush=True)
    trainer.add_callback(StepLog(RunDirectory(run.output_dir).step_log))
    saves = bool(run.save_minutes) or run.training.get("save_strategy") not in ("no", False)
    trainer.add_callback(StepAgreement(run.save_minutes, saves=saves))
    for path in method.callbacks:
        trainer.add_callback(imported(path)())
    if method.watch:
        imported(method.watch)(trainer, run, log)
    if run.early_stopping:  # by figures that the watch may add
        trainer.add_callback(EarlyStopping(**run.early_stopping))
    if run.logging.progress:
        trainer.add_callback(Progress())
    # Last: what stops a run has been written down by then.
    observe(
        trainer,
        log,
        halving=halving if isinstance(halving, StepHalving) else None,
        rank_sync_steps=run.logging.rank_sync_steps,
        stop_on_divergence=run.logging.stop_on_divergence,
        strategy=run.distributed.strategy,
    )
    describe(trainer, made_with(run))
    write_our_cards(trainer, run)
    if target := PushTarget.of(run):
        trainer.add_callback(Pushes(target, partial(log.warn, "push")))
    adapt(trainer, hang_after=run.logging.hang_after)
    # First, so that no callback counts or times what is rehearsed.
    first: list[TrainerCallback] = [PeakMemory()]
    if run.batch.rehearse != "false":
        first.append(
            Rehearsal(
                trainer,
                always=run.batch.rehearse == "true",
                limit=run.model.max_seq_length,
                evaluates=run.evaluation.loss or trainer.args.eval_strategy != "no",
                advice=advice(run),
                planned_gib=estimate,
                log=log,
            )
        )
    trainer.callback_handler.callbacks[:0] = first
    return trainer


def share_out(trainer: Trainer, run: RunConfig) -> None:
    """Share each step's rows out by tokens, and say how, or why not."""
    from ..adapters.token_balance import Balance, balance_tokens

    done = balance_tokens(trainer, trainer.args.per_device_train_batch_size * run.model.max_seq_length)
    if isinstance(done, Balance) and not done.gains:
        return
    said = str(done) if isinstance(done, Balance) else f"rows are not shared out by tokens here: {done}"
    if isinstance(done, Balance) and os.environ.get("UNSLOTH_TOKEN_BALANCE", "0").lower() in ("1", "true", "yes", "on"):
        said += "; UNSLOTH_TOKEN_BALANCE is left out, batch.balance=rows would leave it to Unsloth"
    print(said, flush=True)
    trainer.data_report["sharing out"] = said
