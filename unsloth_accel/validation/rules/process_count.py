"""Rules about how many processes start, and on what."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ...errors import counted
from .document import Document, Finding, Repair, is_whole
from .ready_configs import ON_CPU
from .rule_registry import rule
from .trying import choice

_BY_GPU = ("MULTI_GPU", "FSDP")
"""Types of which every process takes a GPU of its own, by its number."""


@rule("num-processes-missing")
def num_processes_missing(config: Document) -> Iterator[Finding]:
    """accelerate refuses to launch: "You need to manually pass in `--num_processes` using this config yaml".

    Reference: accelerate/commands/launch.py: _validate_launch_command, `args.num_processes == -1`; held true by a test.
    """
    # An unquoted NO is false, for which accelerate does not take one process.
    if config.get("num_processes") in (None, -1) and config.type not in ("NO", None) and config.local:
        yield config.problem("num_processes", "is missing; accelerate refuses to launch.", "add num_processes: 2")


@rule("num-processes-impossible")
def num_processes_impossible(config: Document) -> Iterator[Finding]:
    """torchrun ends in an assertion for 0 or fewer processes.

    Reference: torch/distributed/elastic/agent/server/api.py: WorkerSpec.__post_init__, `local_world_size <= 0`; held
    true by a test.
    """
    count = config.num_processes
    if count is not None and count < 1 and count != -1:
        yield config.problem("num_processes", "must be at least 1.", "1 or more, over all machines")


@rule("num-processes-uneven")
def num_processes_uneven(config: Document) -> Iterator[Finding]:
    """Each machine starts num_processes // num_machines: the rest is never started, and the batch is smaller.

    Reference: accelerate/utils/launch.py: prepare_multi_gpu_env, `num_processes // num_machines`; held true by a test.
    """
    count, machines = config.num_processes, config.num_machines
    if count is not None and count > 0 and machines > 1 and count % machines and config.type not in ("NO", False):
        started = count // machines * machines
        consequence = f"{machines} machines start {count // machines} each: {counted(started, 'process')}, not {count}."
        more = (count // machines + 1) * machines
        fix = f"num_processes: {started}, or num_processes: {more}" if started else f"num_processes: {more}"
        yield config.problem("num_processes", consequence, fix)


@rule("multi-cpu-one-process")
def multi_cpu_one_process(config: Document) -> Iterator[Finding]:
    """Without MPI `accelerate launch` starts one process for MULTI_CPU, whatever num_processes is, and says nothing.

    Reference: measured; accelerate/commands/launch.py: launch_command ends in simple_launcher; held true by a test.
    """
    count = config.num_processes
    if config.type == "MULTI_CPU" and count not in (1, None) and not config.get("mpirun_config"):
        consequence = f"`accelerate launch` starts one process for MULTI_CPU, not {count}, and says nothing: "
        consequence += "the run would train with a fraction of its batch."
        fix = f"distributed_type: MULTI_GPU with use_cpu: true, as in {ON_CPU}"
        yield config.problem("distributed_type", consequence, fix)


@rule("one-process-starts")
def one_process_starts(config: Document) -> Iterator[Finding]:
    """distributed_type NO starts one process, whatever --num_processes asks for. A warning where only the file has a
    number that NO overrules, as files for one GPU do that were copied from others.

    Reference: accelerate/commands/launch.py: launch_command ends in simple_launcher; held true by a test.
    """
    count = config.num_processes
    if config.type in ("NO", False) and count is not None and count > 1 and config.local:
        asked = "num_processes" in config.flagged
        hardware = config.context.hardware
        key = "num_processes" if asked else "distributed_type"
        fix = choice(config, {"distributed_type: MULTI_GPU": {"distributed_type": "MULTI_GPU"}}, "num_processes: 1")
        if hardware and not hardware.devices:
            fix = f"{ON_CPU}, or num_processes: 1"
        yield config.problem(key, f"one process starts, not {count}.", fix, mild=not asked)


@rule("one-process-distributed", "warning")
def one_process_distributed(config: Document) -> Iterator[Finding]:
    """A launcher, a process group and DDP's or FSDP's hooks around one process: slower, and nothing is divided. Unsloth
    even tells accelerate that it isn't distributed where it sees one GPU and WORLD_SIZE 1.

    Reference: accelerate/state.py: PartialState._prepare_backend (LOCAL_RANK alone decides); unsloth/models/_utils.py
    (_prepare_backend); held true by a test.
    """
    if config.num_processes == 1 and config.type in ("MULTI_GPU", "FSDP"):
        consequence = "one process is wrapped as if there were more: slower, and nothing is divided."
        yield config.problem("num_processes", consequence, "distributed_type: 'NO', or more processes")


@rule("multi-gpu-on-cpu", "warning")
def multi_gpu_on_cpu(config: Document) -> Iterator[Finding]:
    """accelerate starts the processes and doesn't tell them use_cpu: with GPUs they train on GPUs, and without a plain
    Accelerator() forms no group, so that each process trains alone. `import unsloth_accel` first, or
    `unsloth-accel launch`, says it.

    Reference: measured; accelerate/utils/launch.py: prepare_multi_gpu_env sets no ACCELERATE_USE_CPU,
    prepare_simple_launcher_cmd_env does; held true by a test.
    """
    if config.type == "MULTI_GPU" and config.get("use_cpu") is True and not config.context.launching:
        consequence = "accelerate doesn't tell several processes to use the CPU: each may train alone."
        fix = "import unsloth_accel first, or unsloth-accel launch --config_file"
        yield config.problem("use_cpu", consequence, fix)


@rule("fsdp-on-cpu")
def fsdp_on_cpu(config: Document) -> Iterator[Finding]:
    """accelerate has no FSDP on a CPU: the processes become MULTI_CPU or none, and nothing is sharded.

    Reference: accelerate/state.py: AcceleratorState.__init__ (MULTI_CPU is not among the types that take a
    fsdp_plugin); measured.
    """
    if config.type == "FSDP" and config.get("use_cpu") is True:
        consequence = "accelerate has no FSDP on a CPU: nothing would be sharded."
        fix = choice(config, {"use_cpu: false": {"use_cpu": False}}, ON_CPU)
        yield config.problem("use_cpu", consequence, fix)


@rule("gpu-ids-not-text")
def gpu_ids_not_text(config: Document) -> Iterator[Finding]:
    """accelerate splits gpu_ids at commas: a number or a list ends in `'int' object has no attribute 'split'`.

    Reference: accelerate/commands/launch.py: _validate_launch_command, `args.gpu_ids.split(",")`; held true by a test.
    """
    value = config.get("gpu_ids")
    if value is None or isinstance(value, str) or not config.local:
        return
    in_list = isinstance(value, list) and all(map(is_whole, value)) and len(set(value)) == len(value) > 0
    text = ",".join(map(str, value)) if in_list else str(value) if is_whole(value) else "all"
    consequence = "accelerate ends in an AttributeError: it needs text to split at commas."
    repair = Repair(kind="set", key="gpu_ids", value=None if isinstance(value, list) else text)
    yield config.problem("gpu_ids", consequence, f"gpu_ids: '{text}'", repair)


@rule("gpu-ids-unreadable")
def gpu_ids_unreadable(config: Document) -> Iterator[Finding]:
    """gpu_ids becomes CUDA_VISIBLE_DEVICES as it is. CUDA sees no GPU where an id is there twice, and none from a word
    on that is no number: processes beyond fail at `set_device`.

    Reference: torch/cuda/__init__.py: _parse_visible_devices, "# Repeated ordinal results in empty set"; held true by a
    test.
    """
    ids = [part.strip() for part in _ids(config)]
    if config.type not in (*_BY_GPU, "DEEPSPEED", "NO", False) or config.get("use_cpu"):
        return
    wrong = [part for part in ids if not re.fullmatch(r"\d+|(GPU|MIG)-[\w/-]+", part)]
    if wrong or len({part.lstrip("0") for part in ids}) < len(ids):
        what = f"{wrong[0] or 'an empty word'} is no GPU's number" if wrong else "a GPU is named twice"
        kept = list(dict.fromkeys(part for part in ids if part not in wrong))
        consequence = f"{what}: CUDA shows the processes fewer GPUs, or none."
        yield config.problem("gpu_ids", consequence, f"gpu_ids: all{', or ' + repr(','.join(kept)) if kept else ''}")


@rule("gpu-ids-one")
def gpu_ids_one(config: Document) -> Iterator[Finding]:
    """accelerate refuses MULTI_GPU with one GPU id on one machine.

    Reference: accelerate/commands/launch.py: _validate_launch_command, "Less than two GPU ids were configured"; held
    true by a test.
    """
    if config.type == "MULTI_GPU" and len(_ids(config)) == 1 and config.num_machines <= 1:
        if next(gpu_ids_unreadable(config), None):
            return
        yield config.problem("gpu_ids", "accelerate refuses one GPU for MULTI_GPU.", "gpu_ids: all, or two ids")


@rule("gpu-ids-too-few")
def gpu_ids_too_few(config: Document) -> Iterator[Finding]:
    """gpu_ids becomes CUDA_VISIBLE_DEVICES: a process beyond their number asks for a device that isn't there.

    Reference: accelerate/utils/launch.py: prepare_multi_gpu_env; accelerate/state.py: PartialState.set_device; held
    true by a test.
    """
    ids, count = _ids(config), config.num_processes
    if not ids or count is None or config.type not in _BY_GPU or config.get("use_cpu"):
        return
    each = count // max(config.num_machines, 1)
    if len(ids) < each and not (len(ids) == 1 and config.type == "MULTI_GPU"):
        shared = counted(len(ids), "GPU")
        consequence = f"{each} processes of this machine share {shared}: the others fail at `set_device`."
        fewer = len(ids) * config.num_machines
        fix = choice(config, {f"num_processes: {fewer}": {"num_processes": fewer}}, "more ids")
        yield config.problem("gpu_ids", consequence, fix)


def _ids(config: Document) -> list[str]:
    """The ids in gpu_ids; empty for `all`, none, or what is no text."""
    value = config.get("gpu_ids")
    value = ",".join(map(str, value)) if isinstance(value, list) else str(value) if is_whole(value) else value
    return value.split(",") if isinstance(value, str) and value != "all" and config.local else []


@rule("too-few-gpus")
def too_few_gpus(config: Document) -> Iterator[Finding]:
    """More processes than GPUs on one machine: those beyond fail at `set_device`. Checked at launch, and where
    --hardware says what it is for.

    Reference: accelerate/state.py: PartialState.set_device.
    """
    hardware, count = config.context.hardware, config.num_processes
    if hardware is None or count is None or config.type not in _BY_GPU or config.get("use_cpu"):
        return
    gpus = len(hardware.devices)
    if config.num_machines == 1 and count > gpus:
        why = f" ({hardware.reason})" if hardware.reason else ""
        need = f"{counted(count, 'process')} need{'s' * (count == 1)} {counted(count, 'GPU')}"
        consequence = f"{need} and {gpus} are visible{why}."
        fix = f"--num_processes {gpus}" if gpus > 1 else f"{ON_CPU}, or a machine with GPUs"
        yield config.problem("num_processes", consequence, fix)
