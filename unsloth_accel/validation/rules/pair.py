"""Rules about a run and its accelerate config together: the directory that a launch writes, or that you keep."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...errors import counted
from ...files import read_json
from ...models.known_names import known_config
from ...strategies import STRATEGIES, strategy_of, usual
from .document import Document, Finding, is_whole
from .names import layers_of
from .rule_registry import rule
from .run_file import indivisible


@rule("pair-processes", on=("pair",))
def pair_processes(pair: Document) -> Iterator[Finding]:
    """The accelerate config starts another number of processes than the run asks for: another batch, another plan.

    Reference: unsloth_accel/adapters/environment.py: check_world_size stops such a run.
    """
    run, config = pair.others["run"], pair.others["accelerate"]
    asked, started = run.get("distributed.num_processes"), config.num_processes
    if is_whole(asked) and started is not None and asked != started:
        consequence = f"{Path(run.file).name} asks for {counted(asked, 'process')}."
        yield config.problem("num_processes", consequence, f"num_processes: {asked}, or change the run")


@rule("pair-strategy", on=("pair",))
def pair_strategy(pair: Document) -> Iterator[Finding]:
    """The accelerate config shares the model in another way than the run says.

    Reference: unsloth_accel/config/accelerate_config.py: AccelerateConfig.to_dict.
    """
    run, config = pair.others["run"], pair.others["accelerate"]
    asked = run.get("distributed.strategy", "auto")
    if asked == "auto" or asked not in STRATEGIES or config.type not in ("NO", "MULTI_GPU", "MULTI_CPU", "FSDP"):
        return
    made = usual(1) if config.type == "NO" else strategy_of(str(config.type), config.fsdp_version)
    # Unsloth's own FSDP2 is MULTI_GPU to accelerate, and chosen by a variable.
    kinds = {(one.distributed_type, one.fsdp_config.get("fsdp_version")) for one in (STRATEGIES[asked], made)}
    if len(kinds) == 2:
        consequence = f"is {made.name}; {Path(run.file).name} says {asked}."
        yield config.problem("distributed_type", consequence, "let `unsloth-accel launch` write the config")


@rule("pair-precision", on=("pair",))
def pair_precision(pair: Document) -> Iterator[Finding]:
    """The Trainer hands its own bf16 or fp16 to accelerate, which then forgets the config's mixed_precision; FSDP1 and
    other code that reads the launcher's variable goes by the config.

    Reference: transformers/trainer.py: Trainer._build_accelerator_args, `"mixed_precision": self.args.mixed_precision`.
    """
    run, config = pair.others["run"], pair.others["accelerate"]
    asked = next((word for word in ("bf16", "fp16") if run.get(f"training.{word}") is True), None)
    if asked is None and run.get("training.bf16") is False and run.get("training.fp16") is not True:
        asked = "no"
    made = config.get("mixed_precision", "no")
    if asked is not None and isinstance(made, str) and made.lower() != asked:
        consequence = f"{Path(run.file).name} says {asked}, which wins in the Trainer and nowhere else."
        yield config.problem("mixed_precision", consequence, f"mixed_precision: {asked!r}")


@rule("pair-device", on=("pair",))
def pair_device(pair: Document) -> Iterator[Finding]:
    """One of the two is for a CPU and the other for GPUs.

    Reference: unsloth_accel/config/accelerate_config.py: AccelerateConfig.to_dict, use_cpu.
    """
    run, config = pair.others["run"], pair.others["accelerate"]
    asked, made = run.get("distributed.device"), config.get("use_cpu", False)
    if asked in ("cpu", "cuda") and isinstance(made, bool) and made != (asked == "cpu"):
        consequence = f"{Path(run.file).name} says {asked}."
        yield config.problem("use_cpu", consequence, f"use_cpu: {str(asked == 'cpu').lower()}")


@rule("pair-batch", on=("pair",))
def pair_batch(pair: Document) -> Iterator[Finding]:
    """The global batch is per-device rows × accumulation × the processes that the config starts, exactly.

    Reference: unsloth_accel/planning/batch.py: check_divisible.
    """
    run, config = pair.others["run"], pair.others["accelerate"]
    if run.get("distributed.num_processes", "auto") == "auto":  # otherwise run-batch-indivisible says it
        yield from indivisible(run, config.num_processes)


@rule("pair-layer-class", on=("pair",))
def pair_layer_class(pair: Document) -> Iterator[Finding]:
    """The class to wrap is another model's: "Could not find the transformer layer class" in every process.

    Reference: accelerate/utils/dataclasses.py: FullyShardedDataParallelPlugin.set_auto_wrap_policy; the model's
    config.json and its modeling file in transformers.
    """
    run, config = pair.others["run"], pair.others["accelerate"]
    key = config.fsdp.get("transformer_layer_cls_to_wrap")
    value = config.get(key) if key else None
    model_type = _model_type(run)
    if not key or not isinstance(value, str) or model_type is None:
        return
    known = layers_of(model_type)
    wrong = [name for name in value.split(",") if known and name not in known]
    if wrong:
        layers = [name for name in known if name.endswith(("DecoderLayer", "Block"))]
        consequence = f"the model is a {model_type}, which has no {wrong[0]}: every process fails."
        fix = f"{key.split('.')[-1]}: {layers[0]}" if layers else "the model's own decoder layer"
        yield config.problem(key, consequence, fix)


def _model_type(run: Document) -> str | None:
    """model_type of the run's model, where that is a directory here or a hub id whose shape the library knows."""
    name = run.get("model.name")
    if not isinstance(name, str):
        return None
    for directory in (Path(name).expanduser(), Path(run.file).parent / name) if "\0" not in name else ():
        if values := read_json(directory / "config.json"):
            found = values.get("model_type")
            return found if isinstance(found, str) else None
    known = known_config(name)
    return known["model_type"] if known else None


@rule("pair-optimizer", "warning", on=("pair",))
def pair_optimizer(pair: Document) -> Iterator[Finding]:
    """bitsandbytes' 8-bit optimizers can't step FSDP2's DTensors: Unsloth takes adamw_torch_fused in place of
    adamw_8bit, whose states take four times the memory.

    Reference: unsloth/models/rl.py: "Switching optim = 'adamw_8bit' to 'adamw_torch_fused'".
    """
    run, config = pair.others["run"], pair.others["accelerate"]
    asked = STRATEGIES.get(run.get("distributed.strategy"))
    said = asked is not None and not asked.steps_bitsandbytes  # then run-optimizer tells it
    if run.get("training.optim") == "adamw_8bit" and config.fsdp_version == 2 and not said:
        consequence = "is replaced by adamw_torch_fused under FSDP2."
        yield run.problem("training.optim", consequence, "training.optim: adamw_torch_fused")
