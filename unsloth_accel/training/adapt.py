"""adapt: make a Trainer that the user built safe to run in several processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..adapters import environment, import_order
from ..adapters.block_trials import keep_trials_apart
from ..adapters.checkpointing import keep_checkpoints
from ..adapters.ddp import wrap_after_evaluation
from ..adapters.ddp_settings import choose_settings
from ..adapters.epoch_order import order_by_epoch
from ..adapters.fsdp2.generation import gather_in_generate
from ..adapters.generating import refuse_asynchronous
from ..adapters.gloo_timeout import heed_timeout
from ..adapters.held_out_loss import weigh_held_out
from ..adapters.hook_types import AnyTrainer
from ..adapters.kept_activations import keep_as_planned
from ..adapters.model_card import write_our_cards
from ..adapters.one_writer import let_one_write
from ..adapters.out_of_memory import ADVICE
from ..adapters.real_batch import keep_global_batch
from ..adapters.reference import settle_reference
from ..adapters.resuming import check_before_training
from ..adapters.saving import let_numbered_cpus_load
from ..adapters.token_count import count_late
from ..adapters.varlen_attention import attend_at_once
from ..artifacts.fused_experts import forget_old_names
from ..callbacks.every_gradient import EveryGradient
from ..callbacks.guard import Guard
from ..callbacks.order import figures_first
from ..callbacks.pulse import Pulse
from ..callbacks.rows_per_step import RowsPerStep
from ..callbacks.shards_again import ShardsAgain
from ..callbacks.step_agreement import stop_when_asked
from ..callbacks.watch_ranks import watch_script
from ..capabilities.probe import available
from ..registry import imported
from ..strategies import STRATEGIES
from .rehearsal import Rehearsal

if TYPE_CHECKING:
    from accelerate import Accelerator


def adapt(
    trainer: AnyTrainer, *, global_batch: int | None = None, hang_after: float | None = None, rehearse: bool = False
) -> AnyTrainer:
    """Make `trainer` safe to evaluate before it trains, to save and to resume, guard it, and return it; once is enough.

    Without it `trainer.evaluate()` before `trainer.train()` turns DDP off (`adapters.ddp`), DDP's settings don't fit
    the model (`adapters.ddp_settings`), FSDP2 saves less memory and time than it can (`adapters.fsdp2.shard`), its
    model can't generate (`adapters.fsdp2.generation`), rows that lie end to end are attended to one by one where torch
    is older than 2.12 (`adapters.varlen_attention`), the GPU waits for the processor where the Trainer counts tokens
    (`adapters.token_count`), held-out losses depend on the number of processes (`adapters.held_out_loss`), rows grouped
    by length come in an order of chance (`adapters.epoch_order`), a sharded run saves no adapter in its checkpoints
    (`adapters.checkpointing`), and what is saved has a form for a card, or a wrong one (`adapters.model_card`).
    An adapter of a mixture of experts is saved so that PEFT loads it (`artifacts.fused_experts`).
    A resumed DPO or KTO goes on with the copy of the adapter that is its reference (`adapters.reference`).
    As many decoder blocks keep their activations as were planned (`adapters.kept_activations`).
    A SIGTERM, or the end of the launcher, loses what was trained: with it all ranks save a checkpoint after the same
    step and end with the exit status that tells it (`callbacks.StepAgreement`).
    The guard stops the run, with the reason, when its world is not the one that was launched, its ranks are not
    synchronised (`unsloth_accel.callbacks.Guard`), or they were given different rows, arguments or models
    (`adapters.rank_agreement`).

    When training starts rank 0 shows processes, strategy and batch in a line, and after the first step of several that
    the ranks are in step. With `global_batch` each optimizer step takes so many rows, on any number of processes:
    micro-batches of as many as fit it, none larger than the arguments' per_device_train_batch_size.

    While it trains, a rank that hangs is named, and all end (`callbacks.watchdog`): `hang_after` is what a run.yaml has
    as `logging.hang_after`, 0 for not at all.

    With `rehearse` the longest step and the longest evaluation batch are computed once before the first step, and
    dropped, so that a lack of memory shows in the first minute (`training.rehearsal`).

    Raises `ImportOrderError` where unsloth was imported too late for it (`adapters.import_order`), and `ConfigError`
    where the processes can't divide `global_batch`, or for TRL's AsyncGRPOTrainer.
    """
    refuse_asynchronous(trainer)
    available("methods that take a step of ours")
    if environment.promise() is not None:  # in a single process Unsloth's own warning will do
        import_order.check_trainer(trainer)
        import_order.check_accelerator(trainer.accelerator)
    if not any(isinstance(callback, Guard) for callback in trainer.callback_handler.callbacks):
        if global_batch is not None:
            keep_global_batch(trainer, global_batch)
        wrap_after_evaluation(trainer.accelerator)
        choose_settings(trainer.accelerator, trainer.args)
        fit_to_strategy(trainer.accelerator)
        keep_as_planned(trainer.model)
        settle_reference(trainer, is_new=False)  # a script may have trained its adapter before
        let_numbered_cpus_load()
        heed_timeout(trainer.args)
        attend_at_once(trainer.accelerator.device)
        keep_trials_apart(trainer.model)
        forget_old_names(trainer.model)
        order_by_epoch(trainer)
        keep_checkpoints(trainer)
        let_one_write(trainer)
        check_before_training(trainer)
        count_late(trainer)
        weigh_held_out(trainer)
        write_our_cards(trainer)
        if getattr(trainer, "step_halving", None) is None:  # its averaging takes a missing gradient as zero
            trainer.add_callback(EveryGradient(trainer.accelerator))
        gather_in_generate(trainer.accelerator, trainer.model)
        trainer.add_callback(ShardsAgain())
        script = not any(isinstance(callback, RowsPerStep) for callback in trainer.callback_handler.callbacks)
        trainer.add_callback(Guard(aloud=script))
        ranks = trainer.args.world_size if environment.promise() is not None else 1
        heartbeat = watch_script(trainer.args.output_dir, trainer.args.process_index, ranks, hang_after)
        if heartbeat is not None:
            trainer.add_callback(Pulse(heartbeat))
        if script:
            trainer.add_callback(RowsPerStep(global_batch, script=True))
        stop_when_asked(trainer)
        if rehearse:
            limit = getattr(trainer.args, "max_length", None)
            rehearsal = Rehearsal(trainer, always=True, limit=limit, evaluates=True, advice=ADVICE)
            trainer.callback_handler.callbacks.insert(0, rehearsal)
    figures_first(trainer)
    return trainer


def fit_to_strategy(accelerator: Accelerator) -> None:
    """Let `accelerator` wrap a model as the strategy that it runs needs."""
    for strategy in STRATEGIES:
        if strategy.adapter:
            imported(strategy.adapter)(accelerator)
