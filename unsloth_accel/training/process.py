"""One of the processes that `unsloth-accel launch RUN.yaml` starts: load, train, evaluate, save, whatever the method.

accelerate launch --config_file RUN_DIR/accelerate.yaml -m MODULE RUN_DIR/run.planned.yaml

MODULE is the method's (`Method.module`), which prepares its rows and makes its trainer.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import unsloth_accel  # noqa: F401  (first: sets what must be set before unsloth is imported)

from ..adapters import environment
from ..artifacts import resume_if_any
from ..artifacts.checkpoints import STATE, checkpoints
from ..artifacts.log_file import LogFile, keep_printing, write_or_tell
from ..artifacts.own_files import clear_run, is_of_a_run, remove_filled, taken
from ..artifacts.resume_facts import facts_of_run
from ..artifacts.run_directory import RunDirectory
from ..artifacts.unsafe_files import as_unsafe, weights_only
from ..callbacks import heartbeat
from ..callbacks.hang_verdict import named
from ..callbacks.phases import phase
from ..callbacks.rank_log import RankLog
from ..callbacks.stop_request import REQUEST, Stopped
from ..callbacks.watch_ranks import watch_run, who_left
from ..config.read_run import load
from ..config.run_config import RunConfig
from ..config.written import as_yaml, described
from ..errors import ConfigError, UnslothAccelError, first_line, raise_errors
from ..files import write_atomically
from ..launch.rank_errors import is_told, report_error
from ..launch.run_lock import MARK, Lock, check_description, locked, unwritable
from ..methods import METHODS
from ..planning.batch import keep_rows
from ..planning.plan import HEADER
from ..report.at_end import tell
from ..rewards.functions import reward_faults

if TYPE_CHECKING:
    from transformers import Trainer


def main(run_yaml: str, *overrides: str) -> int:
    """Train what `run_yaml` describes in this process, one of those launched; returns the exit status."""
    with ExitStack() as held:
        return _main(run_yaml, overrides, held)


def _main(run_yaml: str, overrides: tuple[str, ...], held: ExitStack) -> int:
    environment.show_own_errors_plainly()
    keep_printing()
    try:
        run = resume_if_any.decided(load(run_yaml, overrides))
        check_description(run_yaml)
        run, told = keep_rows(run, environment.world_size())
        _claim(run, held)
    except ConfigError as refused:
        if environment.rank() == 0:
            print(f"unsloth_accel: {refused}", file=sys.stderr, flush=True)
        else:  # the first rank to leave has the others ended, and rank 0 is the one that tells
            time.sleep(2)
        return refused.exit_status
    promised = environment.promise()
    if run.strategy is None and promised is not None and promised.strategy:
        run = replace(run, distributed=replace(run.distributed, strategy=promised.strategy))
    if told and environment.rank() == 0:
        print(f"unsloth_accel: {told}", flush=True)
    weights_only()
    # Under torchrun there is no accelerate config, whose comment carries them; without them it would be DDP.
    if run.strategy:
        os.environ |= run.strategy.variables(in_4bit=run.model.load_in_4bit)
    output = RunDirectory(run.output_dir).rank_output(environment.rank())
    REQUEST.know(run.output_dir, output, partial(report_error, run.output_dir, environment.rank()))
    with REQUEST.listening():
        return _train_and_tell(run)


def _train_and_tell(run: RunConfig) -> int:
    try:
        train(run)
    except BaseException as caught:
        error = _plainly(caught, run)
        status = report_error(run.output_dir, environment.rank(), error, caught)
        if is_told():
            return status
        if not isinstance(error, UnslothAccelError | KeyboardInterrupt):
            traceback.print_exc()
        elif (
            not isinstance(error, Stopped)  # which tells itself
            and (environment.rank() == 0 or not getattr(error, "on_every_rank", False))
        ):
            print(f"unsloth_accel: {error}", file=sys.stderr, flush=True)
        return status
    finally:
        if environment.rank() == 0 and not is_told():
            tell(run.output_dir)
    return 0


def _claim(run: RunConfig, held: ExitStack) -> None:
    """Hold output_dir's lock as one of our launch's ranks, or, where none of ours launched them, take it until `held`
    ends and make the directory a run's: raises `ConfigError` where another launch or a user's own is there."""
    rank = environment.rank()
    if mark := os.environ.get(MARK):
        Lock(run.output_dir, mark).join()
        return
    launch = f"of process {os.getppid()}, port {os.environ.get('MASTER_PORT')}"  # the same for all of one machine
    if rank != 0:
        if rank < environment.local_world_size():
            Lock(run.output_dir, launch).join(patience=60)
        return
    held.enter_context(locked(run.output_dir, launch))
    clear_run(run.output_dir)
    raise_errors(taken(run.output_dir, checkpoints=not run.resume, per_rank=False))
    if is_of_a_run(run.output_dir):
        return
    try:
        write_atomically(RunDirectory(run.output_dir).planned_yaml, HEADER + as_yaml(described(run), run))
    except OSError as error:
        raise unwritable(run.output_dir, error) from None


def _plainly(error: BaseException, run: RunConfig) -> BaseException:
    """`error`, or in its place what helps where memory is out, or a file holds code."""
    from ..adapters.lack_of_memory import is_lack_of_memory
    from ..adapters.out_of_memory import OutOfMemory
    from .memory_advice import advice

    if isinstance(error, UnslothAccelError):
        return error
    if not is_lack_of_memory(error):
        return as_unsafe(error) or _of_who_left(error, run) or error
    return OutOfMemory(f"out of memory: {first_line(error)}. Fix: {advice(run)}.")


def _of_who_left(error: BaseException, run: RunConfig) -> PeerError | None:
    """Return what tells `error` where a rank that left in the middle is its cause; None elsewhere."""
    if not isinstance(error, Exception):
        return None
    files = RunDirectory(run.output_dir)
    left = who_left(files, environment.rank(), environment.world_size())
    if not left:
        return None
    told = f"left in the middle, without an error; rank {environment.rank()} then failed: {first_line(error)}"
    return PeerError(f"{named(left)} {told}. Fix: see what it printed last: {files.rank_output(left[0])}")


class PeerError(UnslothAccelError):
    """Another rank left."""

    on_every_rank = True


def train(run: RunConfig) -> dict[str, Any]:
    """Load, train, evaluate and save; returns what results.json holds."""
    files = RunDirectory(run.output_dir)
    if environment.rank() != 0:
        # Libraries greet on every rank, the console needs it once.
        sys.stdout = LogFile(files.rank_output(environment.rank()), anew=True).as_text()
    newest = [str(path) for path in checkpoints(run.output_dir)[-1:]] if run.resume else []
    log = RankLog(files.logs, environment.rank(), resumed=bool(newest))
    REQUEST.know(run.output_dir, tell=log.failed)
    watch_run(files, log, environment.world_size(), run.logging.hang_after, aloud=not is_told())
    try:
        return _train(run, newest, log)
    except BaseException as error:
        log.failed(_plainly(error, run))
        raise


def _train(run: RunConfig, newest: list[str], log: RankLog) -> dict[str, Any]:
    trainer = build_trainer(run, log)

    from ..adapters.checkpointing import weights_kept
    from ..adapters.pushing import pushes_of
    from ..adapters.real_batch import batch_of
    from ..adapters.saving import SaveError, save_run, versions
    from ..callbacks.divergence import DivergenceError
    from ..callbacks.early_stopping import EarlyStopping
    from ..callbacks.peak_memory import PeakMemory
    from ..hardware.ranks import of_every_rank
    from .evaluation import AsTrainingBegins, HeldOut, evaluate
    from .rehearsal import Rehearsal
    from .save_first import SaveFirst
    from .summary import summary

    results: dict[str, Any] = {}
    held = HeldOut.of(run)

    def examine_before() -> None:
        with phase("evaluating", log, about="held-out rows, before training"):
            results["before"] = evaluate(held, trainer, METHODS[run.method]) if held else {}

    begins = AsTrainingBegins(examine_before)
    shards = bool(run.strategy and run.strategy.shards_weights)
    callbacks = trainer.callback_handler.callbacks
    if held and shards and newest:
        why = f"{run.distributed.strategy} shards when it starts to train, and the checkpoint is loaded by then"
        print(f"held-out rows before training are left out: {why}")
    elif held and not newest and (shards or any(isinstance(one, Rehearsal) for one in callbacks)):
        # After the rehearsal, which finds out how many held-out rows fit at once.
        first = [index for index, one in enumerate(callbacks) if isinstance(one, PeakMemory | Rehearsal)]
        callbacks.insert(first[-1] + 1, begins)
    elif held:
        examine_before()
    done: dict[str, int] = {"global_step": 0, "num_input_tokens_seen": 0}  # before this run
    for path in newest:
        print(f"going on from {path}", flush=True)
        done = json.loads(Path(path, STATE).read_text(encoding="utf-8"))
    stopping = [one for one in trainer.callback_handler.callbacks if isinstance(one, EarlyStopping)]
    kept = SaveFirst(
        lambda elsewhere: save_run(trainer, run, elsewhere),
        lambda state: state.global_step >= state.max_steps or any(one.stopped for one in stopping),
    )
    trainer.callback_handler.callbacks.insert(0, kept)
    started = time.perf_counter()
    REQUEST.hold()
    try:
        with phase("training", log):
            outcome = trainer.train(resume_from_checkpoint=newest[0] if newest else None)
    except Exception as error:
        if kept.saved and isinstance(error, DivergenceError) and environment.rank() == 0:
            _take_back(kept.saved)
        elif kept.saved and environment.rank() == 0:
            what = "the stop" if isinstance(error, Stopped) else "what failed"
            print(f"unsloth_accel: {what} came after the last step; the adapter is in {kept.saved}", flush=True)
        raise
    rehearsals = [one for one in trainer.callback_handler.callbacks if isinstance(one, Rehearsal) and one.figures]
    seconds = time.perf_counter() - started - begins.seconds - sum(one.seconds for one in rehearsals)
    # Saved before it is examined: whatever goes wrong from here on, the training is not lost.
    unsaved: SaveError | None = None
    adapter: Path | None
    with phase("saving", log):
        try:
            adapter = kept.finish()
        except SaveError as error:  # raised at the end: the rest is of use all the same
            unsaved, adapter = error, error.elsewhere
            step = trainer.state.global_step
            log.warnings.append(log.write("error", source="adapter", step=step, message=str(error)))
    REQUEST.release("after its adapter was saved")
    steps = trainer.state.global_step - done["global_step"]
    results["training"] = {
        "strategy": run.distributed.strategy,
        "processes": trainer.accelerator.num_processes,
        "device": trainer.accelerator.device.type,
        "global_batch_size": batch_of(trainer).global_size,
        **_activations(run, trainer),
        "seconds": round(seconds, 1),
        "resumed_at": done["global_step"],
        "steps": steps,
        # The Trainer divides what this process lost by the steps of the whole run.
        "loss": outcome.training_loss * trainer.state.global_step / steps if steps else None,
        "tokens": trainer.state.num_input_tokens_seen - done["num_input_tokens_seen"],
    }
    if any(one.stopped for one in stopping):
        results["training"]["stopped_early"] = stopping[0].stopped
    score = METHODS[run.method].score
    evaluations = [
        {"step": line["step"], "loss": line["eval_loss"]} | ({score: line.get(f"eval_{score}")} if score else {})
        for line in trainer.state.log_history
        if "eval_loss" in line and (line["step"] or "before" not in results)
    ]
    if evaluations:
        results["evaluations"] = evaluations
    best = weights_kept(trainer)
    if best is not None:
        results["adapter"] = {"step": best.step, "message": best.message}
        if best.message:  # written, not `warn`ed: it has been told on the console
            log.warnings.append(log.write("warning", source="checkpoint", step=best.step, message=best.message))
    if unsaved is not None:
        results["adapter"] = results.get("adapter", {}) | {"elsewhere": adapter and str(adapter)}
    results["data"] = trainer.data_report
    results["versions"] = versions()
    memory = next(one for one in trainer.callback_handler.callbacks if isinstance(one, PeakMemory)).figures()
    if memory:
        results["memory_gib"] = memory
    if rehearsals:
        results["rehearsal"] = rehearsals[0].figures
    halving = getattr(trainer, "step_halving", None)
    halved = of_every_rank([asdict(one) for one in halving.halvings] if halving else [])
    if any(halved):
        results["out_of_memory"] = [one for rank in halved for one in rank]
    if held:
        with phase("evaluating", log, about="held-out rows, after training"):
            results["after"] = evaluate(held, trainer, METHODS[run.method])
    if scored := reward_faults(getattr(trainer, "reward_funcs", ())):
        results["rewards"] = scored
    if environment.rank() == 0:
        _write_results(run, results)
        print(summary(results, adapter), flush=True)
    if trainer.accelerator.device.type == "cuda":
        # NCCL warns when a process leaves without this; gloo would hang (adapters.gloo_exit).
        trainer.accelerator.end_training()
    # Last, since it may take minutes, and no rank has to wait for it.
    if adapter and (pushes := pushes_of(trainer)):
        if (beats := heartbeat.own()) is not None:  # a push has a limit of its own
            beats.stop()
        with phase("pushing", log, about=f"the adapter to {pushes.target.repository}"):
            results["hub"] = pushes.finish(adapter, trainer.state.global_step)
        log.tell_own()
        if "error" not in results["hub"]:
            print(f"pushed    {pushes.url}", flush=True)
        _write_results(run, results)
    if unsaved is not None:
        raise unsaved
    return results


def _take_back(adapter: Path) -> None:
    """Remove an adapter that was saved as its training diverged, but for a user's own files: the run isn't finished."""
    try:
        remove_filled(adapter.resolve())
        print(f"unsloth_accel: {adapter} isn't kept: in the last step the training diverged", flush=True)
    except OSError as error:
        print(f"unsloth_accel: {adapter} is of no use, and stays: {first_line(error)}", flush=True)


def _activations(run: RunConfig, trainer: Trainer) -> dict[str, int]:
    """Return how many decoder blocks kept their activations, at last, and how many there are."""
    from ..adapters.kept_activations import blocks, kept

    count = len(blocks(trainer.model))
    recomputes = run.model.gradient_checkpointing != "false"
    return {"keep_activations": kept(trainer.model) if recomputes else count, "blocks": count} if count else {}


def _write_results(run: RunConfig, results: dict[str, Any]) -> None:
    write_or_tell(RunDirectory(run.output_dir).results, json.dumps(results, indent=2) + "\n")


def build_trainer(run: RunConfig, log: RankLog | None = None) -> Trainer:
    """The trainer of a run's method around its model and rows, guarded and with our callbacks, which tell `log`."""
    import unsloth  # noqa: F401  (before transformers and trl, which it patches)

    from ..adapters.rank_agreement import check_same
    from ..data.answer_end import unending_answers
    from .attach import attach
    from .load_model import add_adapter, load_model
    from .trainer_config import trainer_config

    _quiet_progress_bars()
    method = METHODS[run.method]
    steps = importlib.import_module(method.module)
    log = log or RankLog(None, environment.rank())
    # Before the model: a refused field costs seconds, not the time of loading.
    config = trainer_config(run, method, steps.config_fields(run))
    check_same(facts_of_run(run))
    with phase("loading", log, about=run.model.name):
        model, tokenizer = load_model(run)
    model = add_adapter(model, run)
    with phase("tokenising", log, about=run.data.names):
        rows = steps.prepare_data(run, tokenizer)
        if environment.rank() == 0 and (unending := unending_answers(run, tokenizer)):
            log.warn("data", str(unending).removeprefix("warning: "), 0)
            log.tell_own()
        trainer: Trainer = steps.make_trainer(run, model, tokenizer, config, rows)
    return attach(trainer, run, log, method)


def _quiet_progress_bars() -> None:
    """Bars of loading and tokenising: none where nobody watches, and none from ranks that do what rank 0 does."""
    import datasets
    import transformers

    if environment.rank() != 0 or not sys.stderr.isatty():
        os.environ["TQDM_DISABLE"] = "1"  # TRL's own, of a reference computed beforehand
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()
