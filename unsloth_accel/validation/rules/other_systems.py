"""Rules about configs for other systems and from other projects: a fitting answer for each."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from ...config.foreign import recognise
from .document import Document, Finding
from .ready_configs import DDP, FSDP2, ON_CPU
from .rule_registry import rule
from .trying import choice

OTHER_DEVICES = ("MULTI_NPU", "MULTI_MLU", "MULTI_SDAA", "MULTI_MUSA", "MULTI_XPU", "MULTI_HPU", "MULTI_NEURON")


@rule("deepspeed", "warning")
def deepspeed(config: Document) -> Iterator[Finding]:
    """unsloth_accel plans DDP and FSDP. `launch` passes a DeepSpeed config through to accelerate unchanged; of ZeRO,
    Unsloth sets up stage 3, and refuses its own FSDP2 beside it.

    Reference: unsloth/models/loader_utils.py: deepspeed_zero3_device_map; unsloth/fsdp2_launch.py: "UNSLOTH_FSDP2=1 was
    set on a DeepSpeed launch".
    """
    if config.type == "DEEPSPEED":
        consequence = "is launched as it is: unsloth_accel plans and checks DDP and FSDP, not DeepSpeed."
        yield config.problem("distributed_type", consequence, f"nothing, or {FSDP2}")


@rule("deepspeed-config-ignored")
def deepspeed_config_ignored(config: Document) -> Iterator[Finding]:
    """Only distributed_type DEEPSPEED reads deepspeed_config; with MULTI_GPU it is plain DDP, and every GPU holds what
    ZeRO was to divide. A warning where the section divides nothing, or one process starts.

    Reference: accelerate/commands/launch.py: _validate_launch_command, `args.use_deepspeed = defaults.distributed_type
    == DistributedType.DEEPSPEED`; held true by a test.
    """
    section = config.get("deepspeed_config")
    if section and isinstance(config.type, str) and config.type != "DEEPSPEED" and config.local:
        divides = isinstance(section, dict) and (section.get("zero_stage") or "deepspeed_config_file" in section)
        consequence = f"is ignored: distributed_type is {config.type}."
        fix = choice(
            config, {"distributed_type: DEEPSPEED": {"distributed_type": "DEEPSPEED"}}, "remove deepspeed_config"
        )
        yield config.problem("deepspeed_config", consequence, fix, mild=not (divides and config.replicates))


@rule("deepspeed-use-cpu", "warning")
def deepspeed_use_cpu(config: Document) -> Iterator[Finding]:
    """accelerate hands use_cpu to a single process only: DeepSpeed's processes train on GPUs, or find none and fail.

    Reference: accelerate/utils/launch.py: prepare_deepspeed_cmd_env sets no ACCELERATE_USE_CPU; held true by a test.
    """
    if config.type in ("DEEPSPEED", "MEGATRON_LM") and config.get("use_cpu"):
        consequence = "is not told to the processes: they train on GPUs, or find none and fail."
        yield config.problem("use_cpu", consequence, f"use_cpu: false, or {ON_CPU}")


@rule("megatron-lm", "warning")
def megatron_lm(config: Document) -> Iterator[Finding]:
    """Megatron-LM builds its own model from its own classes; a model that Unsloth loaded can't be trained by it.
    `launch` passes the config through.

    Reference: accelerate/utils/megatron_lm.py: prepare_model_optimizer_scheduler; unsloth/fsdp2_launch.py.
    """
    if config.type == "MEGATRON_LM":
        consequence = "Megatron-LM builds a model of its own classes: one that Unsloth loaded is not trained."
        yield config.problem("distributed_type", consequence, "unsloth-accel config, with --strategy ddp or fsdp2")


@rule("tpu", "warning")
def tpu(config: Document) -> Iterator[Finding]:
    """Unsloth has no TPU backend: importing it finds no GPU and takes the CPU or stops. `launch` passes the config
    through.

    Reference: unsloth/device_type.py: "You need a GPU"; accelerate/commands/launch.py: tpu_launcher.
    """
    if config.type == "XLA":
        consequence = "Unsloth doesn't run on TPUs."
        yield config.problem("distributed_type", consequence, f"a machine with GPUs and {DDP}")


@rule("other-device", "warning")
def other_device(config: Document) -> Iterator[Finding]:
    """A config for other chips than NVIDIA's: unsloth_accel detects and plans NVIDIA GPUs and CPUs, and passes this
    through to accelerate unchanged.

    Reference: unsloth_accel/hardware/detect.py, through NVML.
    """
    if config.type in OTHER_DEVICES:
        consequence = "is launched as it is: unsloth_accel knows NVIDIA GPUs and CPUs."
        yield config.problem("distributed_type", consequence, "nothing, or MULTI_GPU for NVIDIA GPUs")


@rule("sagemaker")
def sagemaker(config: Document) -> Iterator[Finding]:
    """accelerate 1.15 ends in a traceback on every SageMaker config, before anything is handed to Amazon: it asks for a
    parallelism_config, which those don't have, and for the type NO adds a num_processes, which it then refuses. Its
    image, with transformers 4.17, would not run Unsloth either.

    Reference: accelerate/commands/launch.py: _validate_launch_command, `defaults.parallelism_config != {}`;
    accelerate/commands/config/config_args.py: BaseConfig.process_config, `config_dict["num_processes"] = 1`;
    accelerate/utils/constants.py: SAGEMAKER_TRANSFORMERS_VERSION; held true by a test.
    """
    if not config.local:
        consequence = "accelerate 1.15 ends in a traceback on every SageMaker config."
        fix = f"{DDP}, launched inside a SageMaker training job"
        yield config.problem("compute_environment", consequence, fix)


@rule("deepspeed-json", "warning", on=("deepspeed",))
def deepspeed_json(config: Document) -> Iterator[Finding]:
    """DeepSpeed's own config, not accelerate's: `accelerate launch --config_file` refuses its keys. It belongs into
    deepspeed_config.deepspeed_config_file of an accelerate config.

    Reference: accelerate/commands/config/config_args.py: BaseConfig.from_json_file; accelerate/utils/launch.py:
    prepare_deepspeed_cmd_env.
    """
    consequence = "is DeepSpeed's own config; unsloth_accel plans DDP and FSDP and checks nothing in it."
    fix = "name it in deepspeed_config.deepspeed_config_file of an accelerate config with distributed_type: DEEPSPEED"
    yield config.problem("(file)", consequence, fix)


@rule("transformers-fsdp", "warning", on=("transformers-fsdp",))
def transformers_fsdp(config: Document) -> Iterator[Finding]:
    """The fsdp_config of transformers' TrainingArguments, not an accelerate config: it builds a plugin of its own, and
    what it leaves out is still read from a launcher's variables. One source is enough.

    Reference: transformers/training_args.py: TrainingArguments.fsdp_config; accelerate/utils/dataclasses.py:
    FullyShardedDataParallelPlugin.__post_init__.
    """
    consequence = "is the fsdp_config of TrainingArguments, not an accelerate config; beside one it half overrules it."
    yield config.problem("(file)", consequence, "put these keys below fsdp_config, with distributed_type: FSDP")


@rule("training-script", "warning", on=("training-script",))
def training_script(config: Document) -> Iterator[Finding]:
    """A training description of another project (axolotl, LLaMA-Factory, TRL's scripts, torchtune, …): it says what to
    train, in that project's words.

    Reference: unsloth_accel/validation/rules/yaml_reader.py: kind_of.
    """
    tool = recognise(config.values)
    whose = f"in {tool.name}'s words" if tool else "in another project's words"
    fix = "unsloth-accel init --model MODEL --data DATA, which writes a run.yaml"
    if tool:
        fix = f"unsloth-accel init --from {shlex.quote(config.file or 'FILE')}, which makes a run.yaml of it"
    yield config.problem("(file)", f"describes a training {whose}; nothing of it was checked.", fix)


@rule("unknown-kind", on=("unknown",))
def unknown_kind(config: Document) -> Iterator[Finding]:
    """Neither an accelerate config (distributed_type, …) nor a run (model, data, output_dir): accelerate refuses it.

    Reference: accelerate/commands/config/config_args.py: BaseConfig.process_config; held true by a test.
    """
    consequence = "is neither an accelerate config nor a run: no key of either is in it."
    yield config.problem("(file)", consequence, "distributed_type: … for accelerate, or model, data, output_dir")
