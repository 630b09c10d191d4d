"""A Trainer's checkpoints: complete under every strategy, recorded, and no reason to lose a training.

Mends, in transformers 5.17 with accelerate 1.15:
- Under FSDP with SHARDED_STATE_DICT `Trainer.save_model` writes nothing, silently, and checkpoints hold no adapter;
  with FULL_STATE_DICT it gathers the whole model on rank 0 to write the adapter alone. Here the adapter is gathered and
  written, whichever type is set.
- A checkpoint that can't be written (a full disk) ends the training. Here the run goes on without that checkpoint and
  says so: the adapter in memory is worth more. Where only a rank's random state can't be written, the checkpoint stays:
  its adapter is whole, and its record says that no run can go on from it.
- A push that fails ends the training, and a checkpoint is pushed before all ranks have written it. Here it comes after.
- With `load_best_model_at_end` ranks meet at a barrier within a checkpoint: one that could not write the adapter never
  gets there, and the others wait for it. Here what one can't write is told to all before it.
- `load_best_model_at_end` keeps the last weights, as if they were the best, where the best checkpoint couldn't be
  written or is gone, and ends in an error where it is cut short. Here the best of those that were written is loaded,
  unless the last weights are better, which have no checkpoint; where there is none the last weights stay. Which they
  are is said, and told to who asks (`weights_kept`).
- An evaluation whose `metric_for_best_model` is None, as TRL's reward is where no completion had one, ends the training
  in a TypeError. Here it isn't the best one.
- `save_total_limit` deletes every directory whose name begins with `checkpoint-`, a user's copy and notes too; it
  deletes the older checkpoint before every rank has written the newer one, and ends the run in an error where the best
  one is gone.
- Nothing tells a whole checkpoint from one cut short, nor what it was made with. Here each gets a record, written last.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifacts.checkpoints import (
    NUM_PROCESSES,
    RECORD,
    STATE,
    STATE_OF_OURS,
    Checkpoint,
    files_of,
    is_random_state,
    newest,
)
from ..artifacts.own_files import made_in, remove_filled, write_record
from ..artifacts.resume_facts import lora_facts
from ..artifacts.run_directory import RunDirectory, step_of
from ..capabilities.probe import available
from ..config.start_adapter import ADAPTER_WEIGHTS
from ..errors import first_line
from ..files import why_unwritten
from ..hardware.ranks import of_every_rank
from . import environment, fsdp1, rank_agreement, rank_checks
from .fsdp2.units import let_go
from .hook_types import Arguments, Control, State, TrainerCallback
from .real_batch import batch_of
from .saving import SaveError, check_whole, gathered, raise_on_every_rank, unwrapped, versions

if TYPE_CHECKING:
    from transformers import Trainer


_DEALING = ("split_batches", "dispatch_batches", "even_batches", "use_seedable_sampler")
"""Fields of accelerator_config that decide which process sees which row."""


def keep_checkpoints(trainer: Trainer) -> None:
    """Make `trainer` write whole, recorded checkpoints; once is enough."""
    plugin = rank_checks.distributed_type() == "FSDP"
    if plugin and not trainer.accelerator.is_fsdp2:
        fsdp1.let_peft_see_through()
        fsdp1.refuse_fused(trainer)
    sharded = plugin or os.environ.get("UNSLOTH_FSDP2") == "1"
    if available("the adapter in a sharded run's checkpoints", needed=sharded):
        _save_model_gathered(trainer)
    if available("checkpoints that can't be written"):
        if not trainer.is_fsdp_enabled:  # where all that is saved is gathered, and its faults are shared already
            _share_faults(trainer)
        _survive_and_record(trainer)


class BestCheckpoint(TrainerCallback):
    """Keeps `state`'s best checkpoint one that was written, and says at the end whose weights the model has."""

    def __init__(self, trainer: Trainer) -> None:
        self.step: int | None = None
        """Step whose weights the model has after training with load_best_model_at_end; None where it isn't set."""
        self.message = ""
        """What a reader must know where they aren't those of the best evaluation; else empty."""
        self._trainer = trainer
        self._load = trainer._load_best_model
        self._written: tuple[Any, Any, Any] = (None, None, None)
        self._lost: tuple[Any, Any] | None = None
        """Step and value of the best evaluation whose checkpoint was given up."""
        self._last_lost: tuple[Any, Any] | None = None
        self._loaded: int | None = None
        self._determine = trainer._determine_best_metric
        trainer._load_best_model, trainer._determine_best_metric = self._load_if_there, self._is_best

    def on_train_begin(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        self._lost, self._last_lost, self._loaded = None, None, None
        self.step, self.message = None, ""
        self.saved(state)

    def saved(self, state: State) -> None:
        """Take a checkpoint as written."""
        self._written = (state.best_metric, state.best_global_step, state.best_model_checkpoint)

    def failed(self, state: State) -> None:
        """Take the checkpoint of this step as given up: what was the best before it is so again."""
        if state.best_global_step == state.global_step:
            self._last_lost = (state.global_step, state.best_metric)
            if self._lost is None or self._better(state.best_metric, self._lost[1]):
                self._lost = self._last_lost
            state.best_metric, state.best_global_step, state.best_model_checkpoint = self._written

    def _is_best(self, metrics: Mapping[str, Any], trial: Any) -> bool:
        name = f"eval_{str(self._trainer.args.metric_for_best_model).removeprefix('eval_')}"
        return metrics.get(name, 0) is not None and bool(self._determine(metrics, trial))

    def _load_if_there(self) -> None:
        state = self._trainer.state
        # Better than what was written, and in memory alone.
        if self._last_lost and self._last_lost[0] == state.global_step:
            return
        path = Path(str(state.best_model_checkpoint))
        there = path.is_dir() if self._trainer.is_fsdp_enabled else _has_weights(path)
        if all(of_every_rank(there)):
            self._load()
            self._loaded = step_of(path)

    def on_train_end(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        if not args.load_best_model_at_end or (state.best_global_step is None and self._lost is None):
            return
        self.step = state.global_step if self._loaded is None else self._loaded
        step, value = state.best_global_step, state.best_metric
        if self._lost is not None and (value is None or self._better(self._lost[1], value)):
            step, value = self._lost
        if step == self.step:
            return
        kept = "the last one's" if self._loaded is None else "the best of those that have one"
        self.message = (
            f"the best evaluation, {args.metric_for_best_model} {value:.4f} after step {step}, has no checkpoint that "
            f"can be loaded: the weights are those of step {self.step}, {kept}. Fix: see that "
            "checkpoints can be written, and save as often as it is evaluated."
        )
        if state.is_world_process_zero:
            _warn(self.message)

    def _better(self, one: float, other: float) -> bool:
        return one > other if self._trainer.args.greater_is_better else one < other


def weights_kept(trainer: Trainer) -> BestCheckpoint | None:
    """What says whose weights `trainer`'s model has after a training with load_best_model_at_end; None without it."""
    found = (one for one in trainer.callback_handler.callbacks if isinstance(one, BestCheckpoint))
    best = next(found, None)
    return None if best is None or best.step is None else best


def _has_weights(path: Path) -> bool:
    others = ("model*.safetensors", "pytorch_model*.bin", "adapter_model.bin")
    return Checkpoint(path).has_adapter or any(any(path.glob(name)) for name in others)


def describe(trainer: Trainer, facts: Mapping[str, Any]) -> None:
    """Add `facts` (by run.yaml's keys) to what each checkpoint of `trainer` says that it was made with."""
    trainer._unsloth_accel_made_with = dict(facts)


def made_with(trainer: Trainer) -> dict[str, Any]:
    """The facts on which going on from a checkpoint of `trainer` depends, by run.yaml's keys where they have one."""
    args = trainer.args
    rows = rank_agreement.rows_of(trainer.train_dataset)
    promised = environment.promise()
    config = getattr(args, "accelerator_config", None)
    known: dict[str, Any] = {
        "distributed.strategy": promised.strategy if promised else None,
        "distributed.num_processes": args.world_size,
        "train_dataset": rows,
        "rows": len(trainer.train_dataset) if rows else None,
        # A stream's rows can't be looked at; what makes their tokens can.
        "tokenizer": None if rows else tokenizer_of(trainer),
        "steps_per_epoch": steps_per_epoch(trainer),
        "training.dataloader_drop_last": getattr(args, "dataloader_drop_last", None),
        "training.train_sampling_strategy": _sampling(args),
        "accelerator_config": {name: getattr(config, name) for name in _DEALING if hasattr(config, name)},
        "training.seed": args.seed,
        "training.data_seed": args.data_seed,
        "training.optim": str(getattr(args.optim, "value", args.optim)),
        "training.learning_rate": args.learning_rate,
        "training.weight_decay": args.weight_decay,
        **{f"training.adam_{name}": getattr(args, f"adam_{name}", None) for name in ("beta1", "beta2", "epsilon")},
        "training.optim_args": getattr(args, "optim_args", None),
    }
    known = {key: value for key, value in known.items() if value is not None or key == "training.data_seed"}
    known |= lora_facts(trainer.model) | getattr(trainer, "_unsloth_accel_made_with", {})
    return known | {"batch.global_size": batch_of(trainer).global_size}


def steps_per_epoch(trainer: Trainer) -> int | None:
    """Optimizer steps of an epoch, by which the Trainer finds its place in one; None before it trains, and for streams.

    Source: transformers 5.17, `Trainer.set_initial_training_values`.
    """
    loader, accumulation = trainer.callback_handler.train_dataloader, int(trainer.args.gradient_accumulation_steps)
    try:
        return max(1, ceil(len(loader) / accumulation))
    except TypeError:
        return None


def tokenizer_of(trainer: Trainer) -> str | None:
    """Return a digest of what makes text into tokens, as far as no use of a tokenizer changes it: its vocabulary, chat
    template and end of text."""
    tokenizer = getattr(trainer, "processing_class", None)
    if tokenizer is None:
        return None
    found: str | None = getattr(trainer, "_unsloth_accel_tokenizer", None)
    if found is None:
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # a processor's own
        said = json.dumps([sorted(tokenizer.get_vocab().items()), tokenizer.chat_template, tokenizer.eos_token])
        found = hashlib.sha256(said.encode()).hexdigest()[:16]
        trainer._unsloth_accel_tokenizer = found
    return found


def _sampling(args: Any) -> str:
    """Return the name of the sampler's strategy, which older versions have as a switch."""
    usual = "group_by_length" if getattr(args, "group_by_length", False) else "random"
    return str(getattr(args, "train_sampling_strategy", None) or usual)


def _save_model_gathered(trainer: Trainer) -> None:
    from accelerate.utils import is_compiled_module

    save_model = trainer.save_model

    def save(output_dir: str | None = None, _internal_call: bool = False) -> None:
        bare = unwrapped(trainer.model)
        sharded = fsdp1.is_fsdp1(trainer.model) or any(map(rank_checks.is_sharded, bare.parameters()))
        if not sharded or not hasattr(bare, "peft_config") or is_compiled_module(bare):
            save_model(output_dir, _internal_call=_internal_call)
            return
        directory = Path(output_dir or trainer.args.output_dir)
        tensors = gathered(trainer.model)
        fault = None
        if trainer.args.should_save:
            try:
                trainer._save(str(directory), state_dict=tensors)
                check_whole(directory, bare, tensors)
            except Exception as error:
                _, fix = why_unwritten(error, directory)
                fault = f"the adapter was not saved to {directory}: {first_line(error)}. Fix: {fix}."
        raise_on_every_rank(fault)
        if trainer.args.push_to_hub and not _internal_call:
            trainer.push_to_hub(commit_message="Model save", revision=trainer.args.hub_revision)

    trainer.save_model = save


def _share_faults(trainer: Trainer) -> None:
    """Raise what keeps a rank from writing a checkpoint's adapter on every rank: none waits for it at a barrier."""
    save_model = trainer.save_model

    def save(output_dir: str | None = None, _internal_call: bool = False) -> None:
        if not _internal_call:  # a user's script may have one rank call it
            save_model(output_dir)
            return
        fault = None
        try:
            save_model(output_dir, _internal_call=True)
        except SaveError:
            raise
        except Exception as error:
            fault = f"{type(error).__name__}: {first_line(error)}"
        raise_on_every_rank(fault)

    trainer.save_model = save


def _survive_and_record(trainer: Trainer) -> None:
    save_checkpoint, best = trainer._save_checkpoint, BestCheckpoint(trainer)
    trainer.add_callback(best)
    limits = available("checkpoints deleted once all is written", needed=bool(trainer.args.save_total_limit))
    if limits:
        _delete_at_the_end(trainer)

    def save(model: Any, trial: Any) -> None:
        directory = RunDirectory(trainer._get_output_dir(trial=trial)).checkpoint(trainer.state.global_step)
        let_go(trainer.model)
        if trainer.args.should_save:  # of a course that was left: its record would name what is half written
            remove_filled(directory)
        theirs = {*files_of(directory)}
        # Tells how many random states it must have, where it gets no record.
        trainer.state.stateful_callbacks[STATE_OF_OURS] = {NUM_PROCESSES: trainer.args.world_size}
        with _unwritten(trainer, directory) as mine, _deleting_nothing() if limits else nullcontext():
            save_checkpoint(model, trial)
        everyone = enumerate(of_every_rank(mine))
        faults = [(rank, name, *told) for rank, own in everyone for name, told in own.items()]
        lost = next((fault for fault in faults if not is_random_state(fault[1])), None)
        (best.failed if lost else best.saved)(trainer.state)
        if not trainer.args.should_save:
            return
        if lost:
            remove_filled(directory)  # half of one is of no use, and takes room
            _tell_lost(directory, *lost)
            return
        _record_or_tell(directory, made_with(trainer), [name for _, name, *_ in faults], theirs)
        if faults:
            _tell_lacking(directory, *faults[0])
        _push_or_tell(trainer, directory)
        if limits:
            whole, _ = newest(directory.parent)
            kept = {Path(trainer.state.best_model_checkpoint or directory), whole.path if whole else directory}
            _delete_older(directory, trainer.args.save_total_limit, kept)

    trainer._save_checkpoint = save


@contextmanager
def _deleting_nothing() -> Iterator[None]:
    """Keep every Trainer from deleting checkpoints in this block."""
    import transformers.trainer as module

    rotate, ordered = module.rotate_checkpoints, module.sort_checkpoints
    module.rotate_checkpoints, module.sort_checkpoints = (lambda *_, **__: None), (lambda *_, **__: [])
    try:
        yield
    finally:
        module.rotate_checkpoints, module.sort_checkpoints = rotate, ordered


@contextmanager
def _unwritten(trainer: Trainer, directory: Path) -> Iterator[dict[str, tuple[str, str]]]:
    """Collect, in this block, what of a checkpoint this rank can't write: the reason and the fix by file.

    What torch.save can't write doesn't leave the block at once: accelerate's FSDP gathers again after a write, and the
    other ranks would wait for one that left. Nothing is pushed in this block.
    """
    import torch
    from torch.distributed.checkpoint import CheckpointException

    found: dict[str, tuple[str, str]] = {}

    def tell(name: str, error: BaseException) -> None:
        reason, fix = why_unwritten(error, directory)
        said = str(error).partition(" Fix: ")[0].split("\n")[0].rstrip(".")
        said = said if isinstance(error, SaveError) else f"{type(error).__name__}: {said}"
        found.setdefault(name, (said if reason in said else f"{said} ({reason})", fix))

    def write(value: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        try:
            torch_save(value, file, *args, **kwargs)
        except Exception as error:
            tell(Path(str(file)).name, error)
            with suppress(OSError):  # a part of it would pass for the whole until it is looked into
                Path(str(file)).unlink()

    torch_save, push = torch.save, trainer._push_from_checkpoint
    torch.save, trainer._push_from_checkpoint = write, lambda *_: None
    try:
        yield found
    except (Exception, CheckpointException) as error:
        # Ranks that left at different places can't agree any more; these two errors have been raised by all.
        if trainer.is_fsdp_enabled and not isinstance(error, SaveError | CheckpointException):
            raise
        tell(STATE if _has_weights(directory) else ADAPTER_WEIGHTS, error)
    finally:
        torch.save, trainer._push_from_checkpoint = torch_save, push


def _tell_lost(directory: Path, rank: int, name: str, reason: str, fix: str) -> None:
    _warn(
        f"{directory.name} was not saved: {reason}, {name} of rank {rank}. Training goes on; the next checkpoint, or "
        f"the end, saves again. Fix: {fix} ({directory.parent})."
    )


def _tell_lacking(directory: Path, rank: int, name: str, reason: str, fix: str) -> None:
    _warn(
        f"{directory.name} lacks {name}, the random state of rank {rank}: {reason}. Its adapter is whole, and no run "
        f"goes on from it; training goes on. Fix: {fix} ({directory.parent})."
    )


def _push_or_tell(trainer: Trainer, directory: Path) -> None:
    """Push a checkpoint where that is asked for; a push that fails leaves what is on disk alone."""
    if not trainer.args.push_to_hub:
        return
    try:
        trainer._push_from_checkpoint(str(directory))
    except Exception as error:
        told = f"{type(error).__name__}: {first_line(error)}"
        _warn(
            f"{directory.name} was not pushed to the Hub: {told}. It is whole on disk, and training goes on. Fix: a "
            "hub_token that may write there, and a network that reaches the Hub; the next push has all of it."
        )


def _warn(said: str) -> None:
    print(f"unsloth_accel: warning: {said}", file=sys.stderr, flush=True)


def _delete_older(newest: Path, limit: int | None, others: Iterable[Path]) -> None:
    """Delete the oldest checkpoints beside `newest` and `others`, so that `limit` are left, as the Trainer does."""
    if not limit or limit < 0:
        return
    now = step_of(newest) or 0
    kept = {path.resolve() for path in (newest, *others)}
    found = [path for path in RunDirectory(newest.parent).checkpoints() if made_in(path)]
    # A later step's is of a course that was left: this run went on from before it.
    old = sorted((path for path in found if path.resolve() not in kept), key=lambda path: (step_of(path) or 0) < now)
    for path in old[: max(0, len(found) - max(limit, len(kept)))]:
        remove_filled(path)


def _delete_at_the_end(trainer: Trainer) -> None:
    """With save_total_limit=1 leave the best checkpoint alone when training has ended, as the Trainer does."""
    finalize = trainer._finalize_training

    def ended(*args: Any, **kwargs: Any) -> Any:
        with _deleting_nothing():
            outcome = finalize(*args, **kwargs)
        best = trainer.state.best_model_checkpoint
        if trainer.args.should_save and trainer.args.save_total_limit == 1 and best and _has_weights(Path(best)):
            _delete_older(Path(best), 1, [Path(best)])
        return outcome

    trainer._finalize_training = ended


def _record_or_tell(directory: Path, facts: Mapping[str, Any], lacking: Sequence[str], theirs: set[str]) -> None:
    """Write a checkpoint's record; without room for it the checkpoint is judged by its files, and the run goes on."""
    try:
        record(directory, facts, lacking, theirs)
    except OSError as error:
        with suppress(OSError):
            (directory / RECORD).unlink()  # of what was there before
        reason, fix = why_unwritten(error, directory)
        _warn(f"{directory.name} has no record of what it was made with: {reason}. Fix: {fix}.")


def record(directory: Path, facts: Mapping[str, Any], lacking: Sequence[str] = (), theirs: Iterable[str] = ()) -> None:
    """Write a checkpoint's record: what it was made with, and its files with their sizes in bytes, `lacking` too, but
    for a user's (`theirs`)."""
    write_record(directory, lacking, theirs, made_with=dict(facts), versions=versions())
