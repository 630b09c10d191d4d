"""Rules about run.yaml: what its reader refuses, and what TRL, transformers and Unsloth refuse later."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ...config.rewards_config import name_files_beside
from ...config.run_config import RunConfig
from ...errors import ConfigError, Problem, Severity
from ...strategies import STRATEGIES, Strategy, usual
from .document import Document, Finding, Repair, is_slip, is_whole
from .rule_registry import add_rule, rule
from .run_settings import alone, given


def _refused_by_the_reader(id: str, happens: str, reference: str) -> None:
    """Register a rule that tells what `read_run` says under its id."""
    add_rule(id, lambda config: _refused(config, id), happens, reference, "error", ("run",))


def _refused(config: Document, rule_id: str) -> Iterator[Finding]:
    """Yield what `read_run` says under this rule, with the line."""
    if config.found or not config.text:
        return  # the reader's word comes first; what has no text has been read
    for problem in _read(config.text, config.file)[1]:
        if problem.rule == rule_id:
            section = problem.key.rpartition(".")[0]
            meant = re.match(r"did you mean ([\w.]+)\?", problem.fix) if rule_id == "run-unknown-key" else None
            near = meant[1] if meant and meant[1].rpartition(".")[0] == section else None
            taken = near is None or near in config.places or not is_slip(problem.key, near)
            repair = Repair(kind="rename", key=problem.key, value=None if taken else str(near).split(".")[-1])
            yield _found(config, problem, repair)


def _found(config: Document, problem: Problem, *repairs: Repair) -> Finding:
    """Return the finding that `problem` of the run is in its file, with the value that it has where the file gives
    none: a default, or the path that a source of data.mix is written as."""
    finding = config.problem(problem.key, problem.consequence, problem.fix, *repairs)
    return finding if finding.value is not None else replace(finding, value=problem.value)


@functools.lru_cache(maxsize=8)
def _read(text: str, file: str) -> tuple[RunConfig | None, tuple[Problem, ...]]:
    """Return the run that the text of `file` describes, or what `read_run` says against it."""
    import yaml
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from ...config.read_run import from_dict

    try:
        values = OmegaConf.create(text)
        if not isinstance(values, DictConfig):
            return None, ()
        name_files_beside(values, Path(file).parent)
        return from_dict(values), ()
    except ConfigError as error:
        return None, error.problems
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        fix = "correct it, or quote values with ${…}"
        consequence = f"can't be read: {str(error).splitlines()[0][:200]}."
        return None, (Problem(key="(file)", consequence=consequence, fix=fix, rule="run-reference"),)


def _inputs(config: Document, severity: Severity) -> Iterator[Finding]:
    """Yield what is wrong with the model and the rows that a run names, where it is to be launched here. A fix that is
    tried changes no text, and so nothing of that."""
    for problem in () if config.context.trying else _input_problems(config):
        if problem.severity == severity:
            yield _found(config, problem)


@functools.lru_cache(maxsize=1)
def _input_problems(config: Document) -> list[Problem]:
    """Read rows, and ask servers, once for both rules that tell of them; a file that is read again is another
    document."""
    from ..inputs import input_problems

    readable = config.context.here and config.text and "yaml-value" not in config.found
    run = _read(config.text, config.file)[0] if readable else None
    return input_problems(run) if run else []


add_rule(
    "run-input",
    lambda config: _inputs(config, "error"),
    "A model or rows that are not there or can't be read, a module or a token that the model hasn't: `launch` refuses "
    "it. Left out where the file is checked for other hardware (--hardware).",
    "unsloth_accel/validation/inputs.py: input_problems.",
    "error",
    ("run",),
)
add_rule(
    "run-input-warning",
    lambda config: _inputs(config, "warning"),
    "What a launch warns of about its model and rows: an epoch that ends with a small step, turns without an answer.",
    "unsloth_accel/validation/inputs.py: input_problems.",
    "warning",
    ("run",),
)


_refused_by_the_reader(
    "run-unknown-key",
    "A key that no run has: it would change nothing, so `launch` refuses it.",
    "unsloth_accel/config/read_run.py: _fill and _check_training; TRL's SFTConfig.",
)
_refused_by_the_reader(
    "run-wrong-type",
    "A value of another type than the field's; `launch` refuses it, where SFTConfig would fail in every process.",
    "unsloth_accel/config/read_run.py: _fill; unsloth_accel/config/trainer_fields.py: accepts.",
)
_refused_by_the_reader(
    "run-missing-key",
    "model.name, data.path and output_dir are needed before anything can be planned.",
    "unsloth_accel/config/read_run.py: _missing.",
)
_refused_by_the_reader(
    "run-value",
    "A value of the right type that means nothing: an unknown word, a batch of 0.",
    "unsloth_accel/config/read_run.py: _check_values.",
)
_refused_by_the_reader(
    "run-elsewhere",
    "A field of SFTConfig that is set elsewhere in run.yaml: set twice, the two could disagree.",
    "unsloth_accel/config/read_run.py: _ELSEWHERE.",
)
_refused_by_the_reader(
    "run-refused",
    "auto_find_batch_size changes the batch inside the run, so that batch.global_size would not hold; "
    "model_init_kwargs has no effect, since the trainer is given a model that is loaded.",
    "unsloth_accel/config/read_run.py: _REFUSED; transformers/trainer.py: find_executable_batch_size; "
    "trl/trainer/sft_trainer.py: SFTTrainer.__init__, `args.model_init_kwargs`.",
)
_refused_by_the_reader(
    "run-needs-eval-rows",
    'An evaluation without held-out rows: the Trainer raises "you didn\'t pass an `eval_dataset`".',
    "transformers/trainer.py: Trainer.__init__, `args.eval_strategy`.",
)
_refused_by_the_reader(
    "run-resume-and-overwrite",
    "resume goes on from the earlier run and overwrite deletes it.",
    "unsloth_accel/launch/launcher.py: made_room.",
)
_refused_by_the_reader(
    "run-reference",
    "`${…}` refers to another key or to the environment; one that leads nowhere stops the run.",
    "omegaconf's interpolation; unsloth_accel/config/read_run.py: _fill.",
)


def _asked(config: Document) -> Strategy | None:
    """Return the strategy that the run names; None for `auto`, and for a word that names none."""
    return STRATEGIES.get(config.get("distributed.strategy"))


@rule("run-two-precisions", on=("run",))
def run_two_precisions(config: Document) -> Iterator[Finding]:
    """TrainingArguments refuse it in every process: "At most one of fp16 and bf16 can be True", also for evaluations.

    Reference: transformers/training_args.py: TrainingArguments._validate_args.
    """
    for suffix in ("", "_full_eval"):
        if config.get(f"training.bf16{suffix}") is True and config.get(f"training.fp16{suffix}") is True:
            key = f"training.fp16{suffix}"
            yield config.problem(key, f"bf16{suffix} and fp16{suffix} are both on; every process fails.", "remove it")


@rule("run-data-loader", on=("run",))
def run_data_loader(config: Document) -> Iterator[Finding]:
    """What is for the data loader's own processes needs some: torch and transformers refuse it without.

    Reference: transformers/training_args.py: "--dataloader_prefetch_factor can only be set when data is loaded in a
    different process"; torch/utils/data/dataloader.py: "persistent_workers option needs num_workers > 0".
    """
    values = given(config)
    if values.get("dataloader_num_workers", 0) > 0:
        return
    for name in ("prefetch_factor", "persistent_workers", "multiprocessing_context"):
        if values.get(f"dataloader_{name}") not in (None, False):
            consequence = "is for loader processes, and dataloader_num_workers is 0; every process fails."
            yield config.problem(f"training.dataloader_{name}", consequence, "training.dataloader_num_workers: 2")


@rule("run-ddp-backend", on=("run",))
def run_ddp_backend(config: Document) -> Iterator[Finding]:
    """ddp_backend is for several processes: one alone has no process group, and transformers fails in asking for it.
    nccl needs GPUs.

    Reference: torch/distributed/distributed_c10d.py: "Default process group has not been initialized" (measured);
    transformers/training_args.py: `self.ddp_backend`.
    """
    key = "training.ddp_backend"
    backend = config.get(key)
    if backend is not None and alone(config):
        consequence = "is for several processes, and there is one, which fails."
    elif backend == "nccl" and config.get("distributed.device") == "cpu":
        consequence = "needs GPUs; every process fails."
    else:
        return
    yield config.problem(key, consequence, "remove it", Repair(kind="remove", key=key))


@rule("run-tf32", on=("run",))
def run_tf32(config: Document) -> Iterator[Finding]:
    """TF32 is for NVIDIA GPUs from Ampere on; elsewhere TrainingArguments fail in every process.

    Reference: transformers/training_args.py: "--tf32 requires Ampere or a newer GPU arch".
    """
    hardware = config.context.hardware
    cards = hardware.devices if hardware else ()
    old = bool(hardware) and not all(card.compute_capability >= (8, 0) for card in cards if card.compute_capability)
    on_cpu = config.get("distributed.device") == "cpu" or (bool(hardware) and not cards)
    if config.get("training.tf32") is True and (on_cpu or old):
        consequence = "needs an NVIDIA GPU from Ampere on; every process fails."
        yield config.problem("training.tf32", consequence, "remove it", Repair(kind="remove", key="training.tf32"))


@rule("run-fp16-on-cpu", on=("run",))
def run_fp16_on_cpu(config: Document) -> Iterator[Finding]:
    """A CPU trains in bf16 or fp32: accelerate does nothing for fp16 there, and `launch` refuses it.

    Reference: accelerate/accelerator.py: Accelerator.__init__; unsloth_accel/planning/precision.py: choose_precision.
    """
    if config.get("training.fp16") is True and config.get("distributed.device") == "cpu":
        yield config.problem("training.fp16", "a CPU trains in bf16 or fp32.", "remove it")


@rule("run-float32-base", "warning", on=("run",))
def run_float32_base(config: Document) -> Iterator[Finding]:
    """Unsloth's fused LoRA kernels need 16-bit base weights: over float32 it falls back to PEFT's forward, and the
    weights take twice the memory.

    Reference: unsloth/models/llama.py: FastLlamaModel.patch_peft_model, `float32_base`.
    """
    if config.get("model.dtype") == "float32" and config.get("distributed.device") != "cpu":
        consequence = "Unsloth's fused LoRA kernels need 16-bit weights: it falls back to PEFT's forward."
        yield config.problem("model.dtype", consequence, "remove it, or bfloat16")


@rule("run-find-unused-parameters", on=("run",))
def run_find_unused_parameters(config: Document) -> Iterator[Finding]:
    """DDP marks LoRA weights as unused in the checkpointed forward and again in its recomputation: the first backward
    fails with "marked as ready twice".

    Reference: measured; unsloth/models/_ddp_defaults.py.
    """
    key = "training.ddp_find_unused_parameters"
    checkpointing = config.get("model.gradient_checkpointing", "unsloth") not in (False, "false")
    if config.get(key) is True and checkpointing and not alone(config):
        consequence = "with gradient checkpointing DDP fails in the first backward: a parameter is marked ready twice."
        yield config.problem(key, consequence, "remove it; Unsloth chooses", Repair(kind="remove", key=key))


@rule("run-static-graph", on=("run",))
def run_static_graph(config: Document) -> Iterator[Finding]:
    """DDP's static graph and accumulation don't go together: an internal assertion under no_sync.

    Reference: measured (static_graph alone OK, INTERNAL ASSERT with no_sync).
    """
    key, accumulation = "training.ddp_static_graph", "training.gradient_accumulation_steps"
    if config.get(key) is True and not alone(config) and config.get(accumulation) != 1:
        consequence = "with accumulation DDP fails in an internal assertion."
        yield config.problem(key, consequence, f"remove it, or {accumulation}: 1")


@rule("run-save-only-model", "warning", on=("run",))
def run_save_only_model(config: Document) -> Iterator[Finding]:
    """Checkpoints without optimizer, scheduler and random state: a resumed run starts them anew and goes another way.

    Reference: transformers/trainer.py: Trainer._save_checkpoint, `if not self.args.save_only_model`.
    """
    if config.get("training.save_only_model") is True and not next(run_only_model_and_best(config), None):
        consequence = "a resumed run starts optimizer and learning rate anew."
        yield config.problem("training.save_only_model", consequence, "remove it; an adapter's optimizer is small")


@rule("run-steps-and-epochs", "warning", on=("run",))
def run_steps_and_epochs(config: Document) -> Iterator[Finding]:
    """max_steps overrides num_train_epochs.

    Reference: transformers/training_args.py: TrainingArguments.max_steps, "Overrides `num_train_epochs`".
    """
    steps = given(config).get("max_steps")
    if is_whole(steps) and steps > 0 and config.get("training.num_train_epochs") is not None:
        consequence = f"is ignored: training.max_steps is {steps}."
        yield config.problem("training.num_train_epochs", consequence, "keep one of the two")


@rule("run-torch-compile", "warning", on=("run",))
def run_torch_compile(config: Document) -> Iterator[Finding]:
    """Unsloth compiles its own kernels; the Trainer would have accelerate compile the whole model around them.

    Reference: transformers/training_args.py: TrainingArguments.__post_init__ sets ACCELERATE_DYNAMO_BACKEND;
    unsloth/models/_utils.py: torch_compile_kwargs.
    """
    if config.get("training.torch_compile") is True:
        consequence = "compiles the whole model around Unsloth's own compiled kernels."
        repair = Repair(kind="remove", key="training.torch_compile")
        yield config.problem("training.torch_compile", consequence, "remove it", repair)


@rule("run-optimizer", "warning", on=("run",))
def run_optimizer(config: Document) -> Iterator[Finding]:
    """bitsandbytes' 8-bit optimizers can't step FSDP2's DTensors: through accelerate, Unsloth takes adamw_torch_fused
    in place of adamw_8bit, whose states take four times the memory. Unsloth's own FSDP2 steps them. On a CPU none of
    them runs: the plan takes AdamW for AdamW and refuses the others.

    Reference: unsloth/models/rl.py: "Switching optim = 'adamw_8bit' to 'adamw_torch_fused'"; unsloth/models/
    fsdp2_native.py: _BNB_LOCAL_SHARD_OPTIMS; unsloth_zoo/cpu/trainer.py: normalize_cpu_training_arguments.
    """
    from ...planning.optimizers import BITSANDBYTES_ADAMW, needs_gpu

    if config.get("distributed.device") == "cpu" and needs_gpu(str(config.get("training.optim"))):
        consequence = "needs a GPU; on a CPU Unsloth takes adamw_torch_fused."
        yield config.problem("training.optim", consequence, "training.optim: adamw_torch_fused")
        return

    strategy = _asked(config)
    if config.get("training.optim") in BITSANDBYTES_ADAMW and strategy and not strategy.steps_bitsandbytes:
        consequence = f"is replaced by adamw_torch_fused under {strategy.name}."
        yield config.problem("training.optim", consequence, "training.optim: adamw_torch_fused")


@rule("run-only-model-and-best", on=("run",))
def run_only_model_and_best(config: Document) -> Iterator[Finding]:
    """Under FSDP the Trainer refuses save_only_model together with load_best_model_at_end, in every process.

    Reference: transformers/trainer.py: "can't be used with `save_only_model` along with `load_best_model_at_end`".
    """
    strategy, key = _asked(config), "training.save_only_model"
    both = config.get(key) is True and config.get("training.load_best_model_at_end") is True
    if strategy and strategy.through_plugin and both:
        yield config.problem(key, "excludes load_best_model_at_end under FSDP; every process fails.", "remove it")


@rule("run-strategy-and-processes", on=("run",))
def run_strategy_and_processes(config: Document) -> Iterator[Finding]:
    """`single` is one process and every other strategy needs two; accelerate has no FSDP on a CPU.

    Reference: unsloth_accel/planning/device_and_count.py: check_strategy.
    """
    strategy, count = _asked(config), config.get("distributed.num_processes")
    if strategy and is_whole(count) and count >= 1 and strategy.one_process != (count == 1):
        consequence = "needs at least two processes and there is one."
        if strategy.one_process:
            consequence = f"is one process and num_processes is {count}."
        fix = f"distributed.strategy: {usual(count).name}, or auto"
        yield config.problem("distributed.strategy", consequence, fix)
    elif strategy and not strategy.runs_on_cpu and config.get("distributed.device") == "cpu":
        consequence = "accelerate has no FSDP on a CPU: each process would train alone."
        yield config.problem("distributed.strategy", consequence, "distributed.strategy: auto")


@rule("run-batch-indivisible", on=("run",))
def run_batch_indivisible(config: Document) -> Iterator[Finding]:
    """The global batch is per-device rows × accumulation × processes, exactly; another number can't be kept.

    Reference: unsloth_accel/planning/batch.py: check_divisible.
    """
    yield from indivisible(config, config.get("distributed.num_processes"))


def indivisible(config: Document, count: object) -> Iterator[Finding]:
    """Yield a finding if `batch.global_size` of a run can't be divided among `count` processes."""
    from ...config.run_config import BatchConfig
    from ...planning.batch import check_divisible

    keys = ("batch.global_size", "training.per_device_train_batch_size", "training.gradient_accumulation_steps")
    size, per_device, accumulation = (config.get(key) for key in keys)
    tokens, length = config.get("batch.global_tokens"), config.get("model.max_seq_length", 2048)
    if tokens is not None and not is_whole(count):
        count = 1  # whatever it will be, rows are full
    if not is_whole(tokens if size is None else size) or not is_whole(count) or not is_whole(length):
        return
    numbers = [number for number in (size, tokens, length, count, per_device, accumulation) if number is not None]
    if not all(is_whole(number) and 0 < number < 2**31 for number in numbers):
        return
    try:
        given = BatchConfig(global_size=size, global_tokens=tokens if size is None else None)
        check_divisible(given, length, count, per_device, accumulation)
    except ConfigError as error:
        yield from (config.problem(problem.key, problem.consequence, problem.fix) for problem in error.problems)
