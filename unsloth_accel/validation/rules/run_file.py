"""Rules about run.yaml: what its reader refuses, and what TRL, transformers and Unsloth refuse later."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from ...errors import ConfigError, Problem
from ...strategies import STRATEGIES, Strategy, usual
from .document import Document, Finding, Repair, is_whole
from .rule_registry import add_rule, rule


def _refused_by_the_reader(id: str, happens: str, reference: str) -> None:
    """Register a rule that tells what `read_run` says under its id."""
    add_rule(id, lambda config: _refused(config, id), happens, reference, "error", ("run",))


def _refused(config: Document, rule_id: str) -> Iterator[Finding]:
    """Yield what `read_run` says under this rule, with the line."""
    if config.found:
        return  # the reader's word comes first
    for problem in _problems(config.text):
        if problem.rule == rule_id:
            near = problem.fix.removeprefix("did you mean ").removesuffix("?").split(".")[-1]
            unknown = rule_id == "run-unknown-key" and problem.fix.startswith("did you mean ")
            taken = f"{problem.key.rpartition('.')[0]}.{near}".lstrip(".") in config.places
            repair = Repair(kind="rename", key=problem.key, value=near if unknown and not taken else None)
            yield config.problem(problem.key, problem.consequence, problem.fix, repair)


@functools.lru_cache(maxsize=8)
def _problems(text: str) -> tuple[Problem, ...]:
    import yaml
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from ...config.read_run import from_dict

    try:
        values = OmegaConf.create(text)
        if isinstance(values, DictConfig):
            from_dict(values)
    except ConfigError as error:
        return error.problems
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        fix = "correct it, or quote values with ${…}"
        consequence = f"can't be read: {str(error).splitlines()[0][:200]}."
        return (Problem(key="(file)", consequence=consequence, fix=fix, rule="run-reference"),)
    return ()


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


def _alone(config: Document) -> bool:
    strategy = _asked(config)
    return bool((strategy and strategy.one_process) or config.get("distributed.num_processes") == 1)


def _asked(config: Document) -> Strategy | None:
    """Return the strategy that the run names; None for `auto`, and for a word that names none."""
    return STRATEGIES.get(config.get("distributed.strategy"))


@rule("run-two-precisions", on=("run",))
def run_two_precisions(config: Document) -> Iterator[Finding]:
    """TrainingArguments refuse it in every process: "At most one of fp16 and bf16 can be True".

    Reference: transformers/training_args.py: TrainingArguments.__post_init__.
    """
    if config.get("training.bf16") is True and config.get("training.fp16") is True:
        yield config.problem("training.fp16", "bf16 and fp16 are both on; every process fails.", "turn one of them off")


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
    if config.get(key) is True and checkpointing and not _alone(config):
        consequence = "with gradient checkpointing DDP fails in the first backward: a parameter is marked ready twice."
        yield config.problem(key, consequence, "remove it; Unsloth chooses", Repair(kind="remove", key=key))


@rule("run-static-graph", on=("run",))
def run_static_graph(config: Document) -> Iterator[Finding]:
    """DDP's static graph and accumulation don't go together: an internal assertion under no_sync.

    Reference: measured (static_graph alone OK, INTERNAL ASSERT with no_sync).
    """
    key, accumulation = "training.ddp_static_graph", "training.gradient_accumulation_steps"
    if config.get(key) is True and not _alone(config) and config.get(accumulation) != 1:
        consequence = "with accumulation DDP fails in an internal assertion."
        yield config.problem(key, consequence, f"remove it, or {accumulation}: 1")


@rule("run-load-best", on=("run",))
def run_load_best(config: Document) -> Iterator[Finding]:
    """load_best_model_at_end needs the same strategy, and save_steps a multiple of eval_steps, or TrainingArguments
    fail in every process.

    Reference: transformers/training_args.py: TrainingArguments.__post_init__, "requires the save and eval strategy to
    match".
    """
    if config.get("training.load_best_model_at_end") is not True:
        return
    save, evaluate = _strategy(config, "save_strategy", "steps"), _strategy(config, "eval_strategy", "no")
    if save != evaluate and save != "best":
        consequence = f"save_strategy is {save} and eval_strategy is {evaluate}; every process fails."
        fix = "give training.eval_strategy and training.save_strategy the same word"
        yield config.problem("training.load_best_model_at_end", consequence, fix)
    steps, every = config.get("training.save_steps"), config.get("training.eval_steps")
    if save == evaluate == "steps" and is_whole(steps) and is_whole(every) and every > 0 and steps % every:
        consequence = f"is not a multiple of eval_steps, {every}; every process fails."
        yield config.problem("training.save_steps", consequence, f"training.save_steps: {(steps // every + 1) * every}")


def _strategy(config: Document, name: str, default: str) -> str:
    value = config.get(f"training.{name}", default)
    return "no" if value is False else str(value)


@rule("run-best-metric", on=("run",))
def run_best_metric(config: Document) -> Iterator[Finding]:
    """save_strategy: best needs metric_for_best_model; without it the Trainer raises in every process.

    Reference: transformers/trainer.py: Trainer.__init__, "`args.metric_for_best_model` must be provided".
    """
    best = config.get("training.save_strategy") == "best"
    if best and not config.get("training.metric_for_best_model") and not config.get("training.load_best_model_at_end"):
        fix = "training.metric_for_best_model: loss"
        yield config.problem("training.save_strategy", "needs metric_for_best_model; every process fails.", fix)


@rule("run-plateau-needs-evaluation", on=("run",))
def run_plateau_needs_evaluation(config: Document) -> Iterator[Finding]:
    """reduce_lr_on_plateau watches the evaluation; without one TrainingArguments fail in every process.

    Reference: transformers/training_args.py: TrainingArguments.__post_init__, "requires an eval strategy".
    """
    key = "training.lr_scheduler_type"
    if config.get(key) == "reduce_lr_on_plateau" and _strategy(config, "eval_strategy", "no") == "no":
        yield config.problem(key, "needs an evaluation; every process fails.", "training.eval_strategy: steps")


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
    steps = config.get("training.max_steps")
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
    from ...planning.memory_estimate import BITSANDBYTES_ADAMW, needs_gpu

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
    """`single` is one process and every other strategy needs two.

    Reference: unsloth_accel/planning/planner.py: _check_strategy.
    """
    strategy, count = _asked(config), config.get("distributed.num_processes")
    if strategy and is_whole(count) and count >= 1 and strategy.one_process != (count == 1):
        consequence = "needs at least two processes and there is one."
        if strategy.one_process:
            consequence = f"is one process and num_processes is {count}."
        yield config.problem("distributed.strategy", consequence, f"{usual(count).name}, or auto")


@rule("run-batch-indivisible", on=("run",))
def run_batch_indivisible(config: Document) -> Iterator[Finding]:
    """The global batch is per-device rows × accumulation × processes, exactly; another number can't be kept.

    Reference: unsloth_accel/planning/batch.py: divide_batch.
    """
    yield from indivisible(config, config.get("distributed.num_processes"))


def indivisible(config: Document, count: object) -> Iterator[Finding]:
    """Yield a finding if `batch.global_size` of a run can't be divided among `count` processes."""
    from ...planning.batch import divide_batch

    keys = ("batch.global_size", "training.per_device_train_batch_size", "training.gradient_accumulation_steps")
    size, per_device, accumulation = (config.get(key) for key in keys)
    tokens, length = config.get("batch.global_tokens"), config.get("model.max_seq_length", 2048)
    if size is None and is_whole(tokens) and is_whole(length) and length > 0 and tokens % length == 0:
        size = tokens // length
    if not is_whole(size) or not is_whole(count):
        return
    numbers = [number for number in (size, count, per_device, accumulation) if number is not None]
    if not all(is_whole(number) and 0 < number < 10**6 for number in numbers):
        return
    try:
        divide_batch(size, count, per_device, accumulation)
    except ConfigError as error:
        yield from (config.problem(problem.key, problem.consequence, problem.fix) for problem in error.problems)
