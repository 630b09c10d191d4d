"""Supervised fine-tuning of a run.yaml: the module that `unsloth-accel launch RUN.yaml` starts in every process.

accelerate launch --config_file RUN_DIR/accelerate.yaml -m unsloth_accel.training.sft RUN_DIR/run.yaml
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import unsloth_accel  # noqa: F401  (first: sets what must be set before unsloth is imported)

from ..adapters import environment
from ..artifacts.checkpoints import STATE, checkpoints
from ..artifacts.resume_facts import facts_of_run, made_with
from ..artifacts.run_directory import RunDirectory
from ..callbacks.phases import phase
from ..callbacks.rank_log import RankLog
from ..config.accelerate_config import AccelerateConfig
from ..config.promise import PLANNED
from ..config.run_config import PROJECTIONS, RunConfig, load
from ..errors import ConfigError, Problem, UnslothAccelError
from ..files import write_atomically
from ..launch.run_accelerate import report_error
from ..report.at_end import tell
from ..strategies import STRATEGIES

if TYPE_CHECKING:
    from trl import SFTTrainer


def main(run_yaml: str, *overrides: str) -> int:
    """Train what `run_yaml` describes in this process, one of those launched; returns the exit status."""
    environment.show_own_errors_plainly()
    run = load(run_yaml, overrides)
    # Under torchrun there is no accelerate config, whose comment carries them; without them it would be DDP.
    strategy, in_4bit = run.distributed.strategy, run.model.load_in_4bit
    os.environ |= AccelerateConfig(strategy=strategy, num_processes=2, load_in_4bit=in_4bit).environment
    try:
        train(run)
    except BaseException as caught:
        error = _plainly(caught, run)
        status = report_error(run.output_dir, environment.rank(), error)
        if not isinstance(error, UnslothAccelError | KeyboardInterrupt):
            traceback.print_exc()
        elif not _reported() and (environment.rank() == 0 or not getattr(error, "on_every_rank", False)):
            print(f"unsloth_accel: {error}", file=sys.stderr, flush=True)
        return status
    finally:
        if environment.rank() == 0 and not _reported():
            tell(run.output_dir)
    return 0


def _plainly(error: BaseException, run: RunConfig) -> BaseException:
    """`error`, or in its place what helps where memory is out."""
    from ..adapters.out_of_memory import OutOfMemory, is_lack_of_memory
    from .memory_advice import advice

    if isinstance(error, UnslothAccelError) or not is_lack_of_memory(error):
        return error
    return OutOfMemory(f"out of memory: {str(error).splitlines()[0]} Fix: {advice(run)}.")


def _reported() -> bool:
    """Whether `unsloth-accel launch RUN.yaml` started this process: it tells what failed and makes the run's report;
    nobody else does."""
    promised = environment.promise()
    return promised is not None and promised.made_by == PLANNED


def train(run: RunConfig) -> dict[str, Any]:
    """Load, train, evaluate and save; returns what results.json holds."""
    files = RunDirectory(run.output_dir)
    if environment.rank() != 0:
        _speak_into(files.rank_output(environment.rank()))
    newest = [str(path) for path in checkpoints(run.output_dir)[-1:]] if run.resume else []
    log = RankLog(files.logs, environment.rank(), resumed=bool(newest))
    try:
        return _train(run, newest, log)
    except BaseException as error:
        log.failed(_plainly(error, run))
        raise


def _train(run: RunConfig, newest: list[str], log: RankLog) -> dict[str, Any]:
    trainer = build_trainer(run, log)

    from ..adapters.saving import of_every_rank, save_run, versions
    from .evaluation import Held, evaluate

    results: dict[str, Any] = {}
    held = Held.of(run)
    if held and STRATEGIES[run.distributed.strategy].shards_weights:
        print(f"held-out rows before training are left out: {run.distributed.strategy} shards when it starts to train")
    elif held:
        with phase("evaluating", log, about="held-out rows, before training"):
            results["before"] = evaluate(held, trainer)
    done = _progress_of(newest[0]) if newest else {"global_step": 0, "num_input_tokens_seen": 0}
    for path in newest:
        print(f"going on from {path}", flush=True)
    started = time.perf_counter()
    with phase("training", log):
        outcome = trainer.train(resume_from_checkpoint=newest[0] if newest else None)
    results["training"] = {
        "strategy": run.distributed.strategy,
        "processes": trainer.accelerator.num_processes,
        "device": trainer.accelerator.device.type,
        "global_batch_size": run.batch.global_size,
        "seconds": round(time.perf_counter() - started, 1),
        "steps": trainer.state.global_step - done["global_step"],
        "loss": outcome.training_loss,
        "tokens": trainer.state.num_input_tokens_seen - done["num_input_tokens_seen"],
    }
    results["data"] = trainer.data_report
    results["versions"] = versions()
    memory = peak_memory_of(trainer)
    if memory:
        results["memory_gib"] = memory
    halved = of_every_rank(
        [asdict(one) for one in trainer.memory_care.halved] if hasattr(trainer, "memory_care") else []
    )
    if any(halved):
        results["out_of_memory"] = [one for rank in halved for one in rank]
    # Saved before it is examined: whatever goes wrong from here on, the training is not lost.
    with phase("saving", log):
        adapter = save_run(trainer, run)
    if held:
        with phase("evaluating", log, about="held-out rows, after training"):
            results["after"] = evaluate(held, trainer)
    if environment.rank() == 0:
        write_atomically(RunDirectory(run.output_dir).results, json.dumps(results, indent=2) + "\n")
        print(summary(run, results, adapter), flush=True)
    if trainer.accelerator.device.type == "cuda":
        # NCCL warns when a process leaves without this; gloo would hang (adapters.gloo_exit).
        trainer.accelerator.end_training()
    return results


def build_trainer(run: RunConfig, log: RankLog | None = None) -> SFTTrainer:
    """The model with its adapter, the data and TRL's SFTTrainer, guarded and with our callbacks, which tell `log`."""
    import unsloth  # isort: skip  (before transformers and trl, which it patches)
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    _quiet_progress_bars()
    from ..adapters.checkpointing import describe
    from ..adapters.ddp_settings import device_map, gradients_in_buckets
    from ..adapters.fsdp2.shard import sharded_loading
    from ..adapters.out_of_memory import MemoryCare, care_for_memory
    from ..adapters.rank_agreement import check_same
    from ..adapters.token_balance import Balance, balance_tokens
    from ..callbacks.memory_watch import MemoryWatch
    from ..callbacks.observe import observe
    from ..callbacks.peak_memory import PeakMemory
    from ..callbacks.progress import Progress
    from ..callbacks.step_log import StepLog
    from ..callbacks.verify_record import add_if_asked
    from ..data.pack import pack
    from ..data.prepare import SKIP, check_collator, prepare
    from ..data.prepare import tell as say
    from .adapt import adapt
    from .memory_advice import advice

    checkpointing = {"unsloth": "unsloth", "true": True, "false": False}[run.model.gradient_checkpointing]
    # Before the model: a refused field costs seconds, not the time of loading.
    fields = {
        "logging_steps": 1,
        "save_strategy": "no",
        # Real tokens over all ranks, for tokens per second (adapters.token_count).
        "include_num_input_tokens_seen": "non_padding",
        **run.sft_fields(),
        **SKIP,
        "output_dir": run.output_dir,
        "max_length": run.model.max_seq_length,
        "gradient_checkpointing": bool(checkpointing),
        "report_to": run.logging.report_to,
        "disable_tqdm": True,
    }
    if run.data.eval_path:
        fields.setdefault("per_device_eval_batch_size", 2 * fields["per_device_train_batch_size"])
    if run.distributed.device == "cpu":
        fields["use_cpu"] = True
    try:
        arguments = SFTConfig(**fields)  # forms the process group
    except (TypeError, ValueError) as error:
        fix = "correct the field of `training` that it names"
        raise ConfigError(Problem(key="training", consequence=f"SFTConfig refuses it: {error}", fix=fix)) from None
    check_same(facts_of_run(run))
    name = run.model.name
    # Absolute, so that the saved adapter finds its base model from any directory.
    name = str(Path(name).resolve()) if Path(name).is_dir() else name
    placed = device_map() if run.distributed.device != "cpu" else None
    with phase("loading", log, about=run.model.name), sharded_loading(run.model.load_in_4bit):
        model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
            model_name=name,
            max_seq_length=run.model.max_seq_length,
            dtype=_dtype(run.model.dtype),
            load_in_4bit=run.model.load_in_4bit,
            trust_remote_code=run.model.trust_remote_code,
            **({"device_map": placed} if placed else {}),
        )
    modules = run.lora.target_modules
    model = unsloth.FastLanguageModel.get_peft_model(
        model,
        r=run.lora.r,
        lora_alpha=run.lora.alpha,
        lora_dropout=run.lora.dropout,
        target_modules=PROJECTIONS if modules == "all-linear" else list(modules),
        use_rslora=run.lora.use_rslora,
        use_gradient_checkpointing=checkpointing,
        random_state=run.lora.random_state,
    )
    with phase("tokenising", log, about=run.data.path):
        rows = prepare(run, tokenizer)
        if environment.rank() == 0:
            say(rows.notes)
        trainer = SFTTrainer(
            model=model,
            processing_class=tokenizer,
            args=arguments,
            train_dataset=rows.train,
            eval_dataset=rows.held_out,
        )
        pack(trainer, run, rows)
        check_collator(trainer)
        trainer.data_report = rows.report
    if run.batch.balance == "tokens":
        done = balance_tokens(trainer, fields["per_device_train_batch_size"] * run.model.max_seq_length)
        said = str(done) if isinstance(done, Balance) else f"rows are shared out by number: {done}"
        print(said, flush=True)
        trainer.data_report["sharing out"] = said
    trainer.remove_callback(PrinterCallback)
    add_if_asked(trainer)
    log = log or RankLog(None, environment.rank())
    trainer.add_callback(MemoryWatch(advice=advice(run), log=log))
    if run.distributed.gradient_as_bucket_view:
        gradients_in_buckets(trainer.accelerator)
    care = care_for_memory(trainer, advice(run, batch=False)) if run.batch.on_out_of_memory == "halve" else None
    if isinstance(care, str):
        print(f"out of memory would end the run: {care}", flush=True)
    trainer.add_callback(PeakMemory())
    trainer.add_callback(StepLog(RunDirectory(run.output_dir).step_log))
    if run.logging.progress:
        trainer.add_callback(Progress())
    # Last: what stops a run has been written down by then.
    observe(
        trainer,
        log,
        care=care if isinstance(care, MemoryCare) else None,
        rank_sync_steps=run.logging.rank_sync_steps,
        stop_on_divergence=run.logging.stop_on_divergence,
        strategy=run.distributed.strategy,
    )
    describe(trainer, made_with(run))
    return adapt(trainer)


def peak_memory_of(trainer: SFTTrainer) -> dict[str, float]:
    """The figures of the trainer's `PeakMemory`; every rank must call it."""
    from ..callbacks.peak_memory import PeakMemory

    return next(c for c in trainer.callback_handler.callbacks if isinstance(c, PeakMemory)).figures()


def summary(run: RunConfig, results: dict[str, Any], adapter: Path) -> str:
    """What a run tells at its end: held-out figures and answers before and after, and where the adapter is."""
    lines = []
    before, after = results.get("before"), results.get("after")
    training = results["training"]
    speed = training["tokens"] / training["seconds"] if training["seconds"] else 0.0
    lines.append(f"trained {training['steps']} steps in {training['seconds']:.0f} s ({speed:,.0f} tokens/s)")
    answers = (after or {}).get("answers", [])
    earlier = before.get("answers", []) if before else [None] * len(answers)  # none where the strategy shards
    for old, new in zip(earlier, answers, strict=True):
        verdict = "(right)" if new["right"] else f"(expected {new['reference']})"
        lines += [
            "",
            f"question  {new['question']}",
            *([f"  before  {_one_line(old['answer'])}"] if old else []),
            f"  after   {_one_line(new['answer'])}  {verdict}",
        ]
    lines += [
        "",
        f"adapter   {adapter}",
        f'load it   FastLanguageModel.from_pretrained("{adapter}")',
    ]
    if before and after:
        if "loss" in before:
            lines.append(f"held-out loss      {before['loss']:.4f} before → {after['loss']:.4f} after")
        if "accuracy" in before:
            rows = after["rows"]
            figures = f"{before['accuracy']:.1%} before → {after['accuracy']:.1%} after"
            lines.append(f"held-out accuracy  {figures} (exact match, {rows} rows)")
    return "\n".join(lines)


def _progress_of(checkpoint: str) -> dict[str, int]:
    """Steps and tokens that a checkpoint's run had behind it."""
    state: dict[str, int] = json.loads(Path(checkpoint, STATE).read_text(encoding="utf-8"))
    return state


def _dtype(name: str | None) -> Any:
    import torch

    return getattr(torch, name) if name else None


def _one_line(text: str, limit: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _speak_into(path: Path) -> None:
    """Send what this process prints to a file: libraries greet on every rank, the console needs it once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout = path.open("w", encoding="utf-8", buffering=1)


def _quiet_progress_bars() -> None:
    """Bars of loading and tokenising: none where nobody watches, and none from ranks that do what rank 0 does."""
    import datasets
    import transformers

    if environment.rank() != 0 or not sys.stderr.isatty():
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
