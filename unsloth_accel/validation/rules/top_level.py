"""Rules about an accelerate config's top-level keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...errors import close_match, nearest
from . import names
from .document import Document, Finding, Repair, is_whole, truth
from .rule_registry import rule
from .trying import choice, leads_astray


@rule("unknown-key")
def unknown_key(config: Document) -> Iterator[Finding]:
    """accelerate refuses the file: "had unknown keys … please try upgrading your `accelerate` version".

    Reference: accelerate/commands/config/config_args.py: BaseConfig.from_yaml_file; held true by a test.
    """
    known = names.TOP_LEVEL_KEYS if config.local else names.SAGEMAKER_KEYS
    told = {finding.key for finding in config.found.get("key-not-text", ())}
    for key in set(config.values) - known - names.OLD_KEYS - told:
        consequence = "unknown key; accelerate refuses the file."
        if key.startswith("fsdp_"):
            yield config.problem(key, consequence, f"move it below fsdp_config as {key}")
        else:
            yield config.unknown_key(key, close_match(key, known - set(config.values)), consequence)


@rule("compute-environment-unknown")
def compute_environment_unknown(config: Document) -> Iterator[Finding]:
    """Whatever is not LOCAL_MACHINE is read as a SageMaker config, and num_processes is called an unknown key.

    Reference: accelerate/commands/config/config_args.py: load_config_from_file; held true by a test.
    """
    value = config.get("compute_environment", "LOCAL_MACHINE")
    if value not in names.ENVIRONMENTS:
        consequence = "accelerate takes it for a SageMaker config and refuses the other keys."
        near = close_match(str(value).upper(), names.ENVIRONMENTS)
        repair = Repair(kind="set", key="compute_environment", value=near)
        yield config.problem("compute_environment", consequence, "compute_environment: LOCAL_MACHINE", repair)


@rule("distributed-type-missing")
def distributed_type_missing(config: Document) -> Iterator[Finding]:
    """accelerate refuses a file without distributed_type. An empty one starts one process, which is a warning.

    Reference: accelerate/commands/config/config_args.py: BaseConfig.process_config; held true by a test.
    """
    if config.type is None:
        kinds = ["FSDP"] * bool(config.get("fsdp_config")) + ["MULTI_GPU", "'NO'"]
        options = {f"distributed_type: {kind}": {"distributed_type": kind.strip("'")} for kind in kinds}
        fix = f"add {choice(config, options)} (in quotes)"
        empty = "distributed_type" in config.values
        consequence = (
            "is empty: accelerate starts one process." if empty else "is missing; accelerate refuses the file."
        )
        yield config.problem("distributed_type", consequence, fix, mild=empty)


@rule("distributed-type-unknown")
def distributed_type_unknown(config: Document) -> Iterator[Finding]:
    """accelerate ends in a ValueError: "… is not a valid DistributedType". The words are in capitals.

    Reference: accelerate/commands/config/config_args.py: BaseConfig.__post_init__; held true by a test.
    """
    known = names.DISTRIBUTED_TYPES if config.local else names.SAGEMAKER_TYPES
    if config.type is not None and config.type is not False and config.type not in known:
        yield config.unknown_word("distributed_type", known, "accelerate knows no such type.")


@rule("word-read-as-boolean")
def word_read_as_boolean(config: Document) -> Iterator[Finding]:
    """YAML 1.1 reads an unquoted NO, no or off as false. For mixed_precision accelerate ends in `'bool' object has no
    attribute 'lower'`, for a backend of dynamo in its like. For distributed_type it starts one process, as meant, where
    num_processes says so: a warning.

    Reference: accelerate/commands/config/config_args.py: BaseConfig.__post_init__; accelerate/utils/launch.py:
    prepare_multi_gpu_env, `args.mixed_precision.lower()`; held true by a test.
    """
    no_such = "accelerate knows no such"
    words = {"distributed_type": ("NO", "one process starts all the same")}
    words |= {"mixed_precision": ("no", f"{no_such} precision")}
    words |= dict.fromkeys(config.dynamo_backends, ("NO", f"{no_such} backend"))
    for key, (word, then) in words.items():
        if config.get(key) is False and config.local:
            consequence = f"YAML reads an unquoted {word} as false, and {then}."
            repair = Repair(kind="set", key=key, value=word)
            fix = f"{key.rpartition('.')[2]}: '{word}'"
            mild = key == "distributed_type" or ("dynamo" in key and config.type == "DEEPSPEED")  # which reads none
            yield config.problem(key, consequence, fix, repair, mild=mild)


@rule("mixed-precision-unknown")
def mixed_precision_unknown(config: Document) -> Iterator[Finding]:
    """accelerate ends in a ValueError: "Unknown mixed_precision mode".

    Reference: accelerate/utils/launch.py: prepare_multi_gpu_env and prepare_simple_launcher_cmd_env; held true by a
    test.
    """
    value = config.get("mixed_precision")
    if value is None or value is False or str(value).lower() in names.PRECISIONS:
        return
    near = {"bfloat16": "bf16", "float16": "fp16", "float32": "no", "fp32": "no", "half": "fp16"}.get(str(value))
    fix = f"mixed_precision: {near!r}" if near else nearest(str(value), names.PRECISIONS)
    repair = Repair(kind="set", key="mixed_precision", value=near)
    yield config.problem("mixed_precision", "accelerate knows no such precision.", fix, repair)


@rule("mixed-precision-fp8", "warning")
def mixed_precision_fp8(config: Document) -> Iterator[Finding]:
    """accelerate needs torchao, Transformer Engine or MS-AMP for fp8 and replaces linear layers by its own, which
    Unsloth's fused LoRA kernels don't know; Unsloth's own FSDP2 refuses it.

    Reference: accelerate/utils/launch.py: prepare_multi_gpu_env ("FP8 is not available on this machine");
    accelerate/accelerator.py: Accelerator.prepare_model; unsloth/models/fsdp2_native.py.
    """
    if str(config.get("mixed_precision")).lower() == "fp8":
        consequence = "replaces linear layers by ones that Unsloth's fused LoRA kernels don't know."
        yield config.problem("mixed_precision", consequence, "mixed_precision: bf16")


@rule("fp16-on-cpu", "warning")
def fp16_on_cpu(config: Document) -> Iterator[Finding]:
    """On a CPU accelerate sets up neither autocast nor a gradient scaler for fp16: the run trains in full precision.

    Reference: accelerate/accelerator.py: Accelerator.__init__, `mixed_precision == "fp16" and self.device.type !=
    "cpu"`; held true by a test.
    """
    if str(config.get("mixed_precision")).lower() == "fp16" and config.get("use_cpu") is True:
        consequence = "accelerate does nothing for fp16 on a CPU: the run trains in full precision."
        yield config.problem("mixed_precision", consequence, "mixed_precision: bf16, or 'no'")


_WHOLE = ("num_processes", "num_machines", "main_process_port")
_TRUTHS = ("use_cpu", "debug", "same_network", "enable_cpu_affinity", "tpu_use_cluster", "tpu_use_sudo")
_TEXTS = ("main_process_ip", "rdzv_backend", "main_training_function", "tpu_name", "tpu_zone", "command_file")


@rule("wrong-type")
def wrong_type(config: Document) -> Iterator[Finding]:
    """accelerate checks no type. A number in quotes ends in a TypeError where it is compared or divided. A warning
    where accelerate takes it all the same: a truth value in quotes, which is true even if it says 'false';
    num_processes on one machine with GPUs; and text.

    Reference: accelerate/utils/launch.py: prepare_multi_gpu_env (`num_machines > 1`, is_port_in_use);
    accelerate/commands/launch.py: _validate_launch_command, `args.debug = defaults.debug`; held true by a test.
    """
    if not config.local:
        return
    for key in _WHOLE:
        value = config.get(key)
        empty = key == "num_machines" and value is None and key in config.values
        if (value is None and not empty) or is_whole(value):
            continue
        number = 1 if empty else config.whole(key)
        if isinstance(value, float) and value.is_integer():
            number = int(value)
        fix = "a whole number" if number is None else f"{key}: {number}"
        repair = Repair(kind="set", key=key, value=number)
        taken = key == "num_processes" and number is not None and isinstance(value, str)
        on_gpus = config.type in ("MULTI_GPU", "FSDP", "DEEPSPEED") and not config.get("use_cpu")
        taken = taken and on_gpus and config.num_machines == 1
        yield config.problem(key, f"is {_kind(value)}, not a whole number.", fix, repair, mild=taken)
    for key in _TRUTHS:
        value = config.get(key)
        if value is None or isinstance(value, bool):
            continue
        meant = truth(value)
        consequence = f"is {_kind(value)}, not true or false; accelerate takes any text but '' for true."
        unclear = meant is None or leads_astray(config, {key: meant})
        fix = "true, or false" if unclear else f"{key}: {str(meant).lower()}"
        # str_to_bool stops there; and the keys of a section are taken for keys of the launcher.
        unread = key == "use_cpu" and meant is None and (config.type in ("NO", False) or isinstance(value, dict))
        yield config.problem(key, consequence, fix, Repair(kind="set", key=key, value=meant), mild=not unread)
    for key in _TEXTS:
        value = config.get(key)
        if value is not None and not isinstance(value, str):
            yield config.problem(key, f"is {_kind(value)}, not text.", "write a word, in quotes if need be", mild=True)


def _kind(value: Any) -> str:
    kinds = {
        type(None): "empty",
        str: "text",
        bool: "a truth value",
        int: "a number",
        float: "a broken number",
        list: "a list",
    }
    return "a section" if isinstance(value, dict) else kinds.get(type(value), "a date")


@rule("section-not-a-mapping")
def section_not_a_mapping(config: Document) -> Iterator[Finding]:
    """accelerate copies the keys of a section only if it has keys; a word or a list there is dropped silently, which is
    a warning. With DEEPSPEED, deepspeed_config has to have keys: accelerate ends in an AttributeError.

    Reference: accelerate/commands/launch.py: _validate_launch_command, `if isinstance(attr, dict)`; launch_command,
    `defaults.deepspeed_config.keys()`; held true by a test.
    """
    for key in ("fsdp_config", *names.NESTED_KEYS):
        value = config.get(key)
        if value is not None and not isinstance(value, dict):
            consequence = "is not a section with keys, so accelerate drops it silently."
            needed = key == "deepspeed_config" and config.type == "DEEPSPEED"
            yield config.problem(key, consequence, "write keys below it", mild=not needed)


@rule("old-key-overruled", "warning")
def old_key_overruled(config: Document) -> Iterator[Finding]:
    """`fp16: true` beside another mixed_precision is deleted silently; `dynamo_backend` replaces a dynamo_config beside
    it. What says the same, or nothing, is not told.

    Reference: accelerate/commands/config/config_args.py: BaseConfig.process_config; held true by a test.
    """
    precision = str(config.get("mixed_precision", "fp16")).lower()
    if truth(config.get("fp16")) and precision != "fp16":
        fix, repair = "remove it; mixed_precision says it", Repair(kind="remove", key="fp16")
        yield config.problem("fp16", "is dropped silently: mixed_precision is there too.", fix, repair)
    if "dynamo_backend" in config.values and config.get("dynamo_config"):
        yield config.problem("dynamo_backend", "replaces the whole dynamo_config silently.", "keep one of the two")


@rule("rdzv-backend-ignored", "warning")
def rdzv_backend_ignored(config: Document) -> Iterator[Finding]:
    """The launcher takes a YAML value only where its own flag is None, and --rdzv_backend is 'static'.

    Reference: accelerate/commands/launch.py: _validate_launch_command, `getattr(args, name, None) is None`; held true
    by a test.
    """
    value = config.get("rdzv_backend", "static")
    if isinstance(value, str) and value != "static" and config.local and "rdzv_backend" not in config.flagged:
        fix = f"accelerate launch --rdzv_backend {value} …"
        yield config.problem("rdzv_backend", "is ignored in a file: accelerate takes static.", fix)


@rule("same-network-ignored", "warning")
def same_network_ignored(config: Document) -> Iterator[Finding]:
    """--same_network is false, not None, so that the file's value never counts.

    Reference: accelerate/commands/launch.py: _validate_launch_command, `getattr(args, name, None) is None`; held true
    by a test.
    """
    if config.get("same_network") is True and config.num_machines > 1 and "same_network" not in config.flagged:
        consequence = "is ignored in a file; the machines meet through main_process_ip and port alike."
        yield config.problem("same_network", consequence, "accelerate launch --same_network …, or remove it")


@rule("cpu-affinity-ignored", "warning")
def cpu_affinity_ignored(config: Document) -> Iterator[Finding]:
    """--enable_cpu_affinity is false, not None: ACCELERATE_CPU_AFFINITY is never set from a file.

    Reference: accelerate/commands/launch.py: _validate_launch_command; accelerate/utils/launch.py:
    prepare_multi_gpu_env; held true by a test.
    """
    if config.get("enable_cpu_affinity") is True and config.local and "enable_cpu_affinity" not in config.flagged:
        consequence = "is ignored in a file: no process is bound to its GPU's cores."
        yield config.problem("enable_cpu_affinity", consequence, "accelerate launch --enable_cpu_affinity …")


@rule("debug-hides-failure", "warning")
def debug_hides_failure(config: Document) -> Iterator[Finding]:
    """With debug and rich installed, accelerate prints a rank's failure and leaves with status 0: a script or scheduler
    takes the run for finished. Every collective is checked by a gather as well.

    Reference: accelerate/commands/launch.py: multi_gpu_launcher, `if is_rich_available() and debug`; held true by a
    test.
    """
    if config.get("debug") is True and config.local and not config.context.launching:
        consequence = "a failed run leaves with status 0 where rich is installed, and every collective is slower."
        yield config.problem("debug", consequence, "debug: false, and --debug when you look for a hang")


@rule("main-training-function-ignored", "warning")
def main_training_function_ignored(config: Document) -> Iterator[Finding]:
    """Only the TPU launcher calls a function by name; everywhere else the whole script runs.

    Reference: accelerate/commands/launch.py: tpu_launcher, the only reader of main_training_function.
    """
    key = "main_training_function"
    if isinstance(config.get(key), str) and config.get(key) != "main" and config.type != "XLA" and config.local:
        yield config.problem(key, "is only called on TPUs; here the script runs from top to bottom.", "remove it")


@rule("tpu-keys-ignored", "warning")
def tpu_keys_ignored(config: Document) -> Iterator[Finding]:
    """TPU keys mean nothing to any other distributed_type; downcast_bf16 and tpu_use_sudo are ignored in a file even on
    a TPU, since their flags are false and not None.

    Reference: accelerate/commands/launch.py: _validate_launch_command; accelerate/utils/launch.py: prepare_tpu; held
    true by a test.
    """
    for key in ("tpu_name", "tpu_zone", "tpu_use_cluster", "tpu_use_sudo", "tpu_vm", "tpu_env", "downcast_bf16"):
        value = config.get(key)
        if not value or truth(value) is False or not config.local:
            continue
        if config.type != "XLA":
            yield config.problem(key, "means nothing outside TPUs.", "remove it", Repair(kind="remove", key=key))
        elif key in ("downcast_bf16", "tpu_use_sudo") and key not in config.flagged:
            yield config.problem(key, "is ignored in a file.", f"accelerate launch --{key} …")


@rule("commands-ignored", "warning")
def commands_ignored(config: Document) -> Iterator[Finding]:
    """`commands` and `command_file` are for `accelerate tpu-config`; `accelerate launch` runs none of them.

    Reference: accelerate/commands/tpu.py: tpu_command_launcher, their only reader.
    """
    for key in ("commands", "command_file"):
        if config.get(key) and config.local:
            yield config.problem(key, "is never run by `accelerate launch`.", "run it before the launch")
