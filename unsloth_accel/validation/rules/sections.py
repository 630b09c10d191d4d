"""Rules about the other sections: dynamo, fp8, parallelism, MPI, and what is misspelt in any of them."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ...errors import close_match, nearest
from .document import Document, Finding, Repair, is_slip, is_whole
from .fsdp_section import second_version
from .names import DYNAMO_BACKENDS, NESTED_KEYS, TOP_LEVEL_KEYS
from .ready_configs import FSDP2
from .rule_registry import rule
from .trying import choice

PREFIXES = {"dynamo_config": "dynamo_", "fp8_config": "fp8_"}
"""Sections whose keys may leave their prefix out (accelerate/commands/launch.py: _validate_launch_command)."""


@rule("nested-unknown-key")
def nested_unknown_key(config: Document) -> Iterator[Finding]:
    """accelerate checks no key below the top level: a misspelt one is set on the launcher's arguments and never read. A
    warning for a key that is near none, and in deepspeed_config, where DeepSpeed's own are found that way.

    Reference: accelerate/commands/launch.py: _validate_launch_command, `setattr(args, key, value)`; held true by a
    test.
    """
    if not config.local:
        return
    for section, known in NESTED_KEYS.items():
        values = config.get(section)
        others = []
        for name in values if isinstance(values, dict) else ():
            prefix = PREFIXES.get(section, "")
            full = f"{prefix}{name.removeprefix(prefix)}"
            if full in known or name in TOP_LEVEL_KEYS or f"parallelism_config_{name}" in known:
                continue
            near = close_match(full, known - set(values))
            if near:
                consequence = "unknown key; accelerate takes it and never reads it."
                slip = is_slip(full, near) and section != "deepspeed_config"
                yield config.unknown_key(f"{section}.{name}", near, consequence, mild=not slip)
            else:
                others.append(name)
        if others:
            what, them = "unknown key", "it"
            if len(others) > 1:
                what, them = f"and {', '.join(others[1:])} are unknown keys", "them"
            fix, keys = "remove it", [f"{section}.{name}" for name in others]
            if section == "deepspeed_config":
                fix = "a DeepSpeed config of its own, named by deepspeed_config_file"
            repairs = [Repair(kind="remove", key=key) for key in keys] if fix == "remove it" else []
            yield config.problem(keys[0], f"{what}; accelerate never reads {them}.", fix, *repairs, mild=True)


@rule("nested-key-overrules", "warning")
def nested_key_overrules(config: Document) -> Iterator[Finding]:
    """A top-level key inside deepspeed_config, parallelism_config, mpirun_config or megatron_lm_config overrules the
    one at the top, since every key there is set on the launcher's arguments.

    Reference: accelerate/commands/launch.py: _validate_launch_command, `setattr(args, key, value)`; held true by a
    test.
    """
    for section in ("deepspeed_config", "parallelism_config", "mpirun_config", "megatron_lm_config"):
        values = config.get(section)
        for name in values if isinstance(values, dict) and config.local else ():
            if name in TOP_LEVEL_KEYS and values[name] != config.get(name):
                consequence, fix = f"overrules the {name} at the top level, silently.", "move it to the top level"
                yield config.problem(f"{section}.{name}", consequence, fix)


@rule("dynamo-on", "warning")
def dynamo_on(config: Document) -> Iterator[Finding]:
    """Unsloth compiles its own kernels. accelerate would compile the whole model around them, with Unsloth's options in
    place of dynamo_mode and its like, and again for every new length of rows.

    Reference: unsloth/models/_utils.py: `TorchDynamoPlugin.to_kwargs = torch_compile_kwargs`; accelerate/
    accelerator.py: Accelerator.prepare_model.
    """
    for key in config.dynamo_backends:
        value = config.get(key)
        if isinstance(value, str) and value.upper() != "NO" and value.upper() in DYNAMO_BACKENDS:
            consequence = "compiles the whole model around Unsloth's own compiled kernels."
            repair = Repair(kind="set", key=key, value="NO")
            yield config.problem(key, consequence, f"{key.split('.')[-1]}: 'NO'", repair)


@rule("dynamo-backend-unknown")
def dynamo_backend_unknown(config: Document) -> Iterator[Finding]:
    """accelerate ends in a ValueError: "Unknown dynamo backend".

    Reference: accelerate/utils/launch.py: prepare_multi_gpu_env and prepare_simple_launcher_cmd_env; held true by a
    test.
    """
    for key in config.dynamo_backends:
        value = config.get(key)
        if value is not None and value is not False and str(value).upper() not in DYNAMO_BACKENDS:
            fix = nearest(str(value).upper(), DYNAMO_BACKENDS)
            yield config.problem(key, "accelerate knows no such backend.", fix)


@rule("fp8-config-ignored", "warning")
def fp8_config_ignored(config: Document) -> Iterator[Finding]:
    """The launcher hands fp8_config on only for mixed_precision fp8.

    Reference: accelerate/utils/launch.py: prepare_multi_gpu_env, `if args.mixed_precision.lower() == "fp8"`; held true
    by a test.
    """
    if config.get("fp8_config") and str(config.get("mixed_precision")).lower() != "fp8" and config.local:
        consequence = "is ignored: mixed_precision is not fp8."
        yield config.problem("fp8_config", consequence, "remove it, or mixed_precision: fp8")


@rule("mpirun-config-ignored", "warning")
def mpirun_config_ignored(config: Document) -> Iterator[Finding]:
    """Only the launcher of MULTI_CPU and NO reads mpirun_config.

    Reference: accelerate/utils/launch.py: prepare_simple_launcher_cmd_env, the only reader of mpirun_hostfile.
    """
    if config.get("mpirun_config") and config.type not in ("MULTI_CPU", "NO", False, None) and config.local:
        consequence = f"is ignored: distributed_type is {config.type}."
        yield config.problem("mpirun_config", consequence, "remove it, or distributed_type: MULTI_CPU")


SIZES = ("dp_replicate_size", "dp_shard_size", "tp_size", "cp_size", "sp_size")


def _sizes(config: Document) -> dict[str, int] | None:
    """The five sizes of parallelism_config, 1 where one is missing; None without the section or with a bad size."""
    if not config.section("parallelism_config"):
        return None
    sizes = {name: config.get(f"parallelism_config.parallelism_config_{name}", 1) for name in SIZES}
    return sizes if all(is_whole(size) and size > 0 for size in sizes.values()) else None


@rule("parallelism-prefix")
def parallelism_prefix(config: Document) -> Iterator[Finding]:
    """Only in fsdp_, fp8_ and dynamo_config may the prefix be left out. `tp_size` without `parallelism_config_` is
    dropped silently, and all sizes are 1: FSDP2 has nothing to shard over and fails. A warning under other types.

    Reference: accelerate/commands/launch.py: _validate_launch_command; held true by a test.
    """
    for name, key in config.section("parallelism_config").items():
        full = f"parallelism_config_{name}"
        if full in NESTED_KEYS["parallelism_config"]:
            consequence = "is dropped silently: this section's keys need their whole name."
            rename = Repair(kind="rename", key=key, value=full)
            yield config.problem(key, consequence, f"write {full}", rename, mild=config.fsdp_version != 2)


@rule("parallelism-size-impossible")
def parallelism_size_impossible(config: Document) -> Iterator[Finding]:
    """Every size is a whole number of at least 1; otherwise every process fails.

    Reference: accelerate/parallelism_config.py: ParallelismConfig.__post_init__; held true by a test.
    """
    for name in SIZES:
        key = f"parallelism_config.parallelism_config_{name}"
        size = config.get(key, 1)
        if not is_whole(size) or size < 1:
            yield config.problem(key, "must be a whole number from 1; every process fails.", "1, or more")


@rule("parallelism-product")
def parallelism_product(config: Document) -> Iterator[Finding]:
    """The five sizes multiply to num_processes, or every process fails: "total_size … does not match num_processes".

    Reference: accelerate/parallelism_config.py: ParallelismConfig._validate_accelerator; held true by a test.
    """
    sizes, count = _sizes(config), config.num_processes
    if sizes is None or count is None or sizes["sp_size"] > 1:
        return
    product = math.prod(sizes.values())
    if product not in (1, count):
        consequence = f"the sizes multiply to {product} and there are {count} processes; every process fails."
        fix = choice(config, {f"num_processes: {product}": {"num_processes": product}}, "other sizes")
        yield config.problem("parallelism_config", consequence, fix)


@rule("parallelism-needs-fsdp2")
def parallelism_needs_fsdp2(config: Document) -> Iterator[Finding]:
    """FSDP1 with a parallelism_config fails in every process, and so does cp_size above 1 without FSDP2. The check in
    the launcher never fires: it compares the text "1" with a number, before the file is read.

    Reference: accelerate/parallelism_config.py: ParallelismConfig._validate_accelerator; accelerate/state.py:
    AcceleratorState.__init__; accelerate/commands/launch.py: _validate_launch_command, `args.fsdp_version == 1`; held
    true by a test.
    """
    sizes = _sizes(config)
    if sizes is None or max(sizes.values()) == 1:
        return
    if config.fsdp_version == 1 or (sizes["cp_size"] > 1 and config.type != "FSDP"):
        text, changes = "distributed_type: FSDP with fsdp_version: 2", {"distributed_type": "FSDP"}
        if "reshard_after_forward" in config.fsdp:
            text += " with fsdp_reshard_after_forward: true"
        fix = choice(config, {text: changes | second_version(config)}, "remove parallelism_config")
        yield config.problem("parallelism_config", "needs FSDP2; every process fails.", fix)


@rule("parallelism-replicated")
def parallelism_replicated(config: Document) -> Iterator[Finding]:
    """MULTI_GPU shards nothing: with dp_shard_size above 1 every process holds the whole model, as plain DDP, and
    accelerate says nothing.

    Reference: accelerate/accelerator.py: Accelerator.prepare_model, `if self.multi_device and not
    (self.parallelism_config and self.parallelism_config.tp_enabled)`; held true by a test.
    """
    sizes = _sizes(config)
    if sizes and sizes["dp_shard_size"] > 1 and config.replicates:
        key = "parallelism_config.parallelism_config_dp_shard_size"
        consequence = "MULTI_GPU shards nothing: every GPU holds the whole model, as plain DDP."
        changes = {"distributed_type": "FSDP"} | second_version(config)
        options = {"distributed_type: FSDP with fsdp_version: 2": changes} if len(changes) == 2 else {}
        yield config.problem(key, consequence, choice(config, options, FSDP2))


@rule("parallelism-no-shard")
def parallelism_no_shard(config: Document) -> Iterator[Finding]:
    """FSDP2 shards over dp_shard and cp; with both at 1 there is nothing to shard over and every process fails.

    Reference: accelerate/parallelism_config.py: ParallelismConfig._validate_accelerator, "has no dimension for FSDP to
    shard across"; held true by a test.
    """
    sizes = _sizes(config)
    if not sizes or config.fsdp_version != 2 or next(parallelism_prefix(config), None):
        return
    if sizes["dp_shard_size"] == sizes["cp_size"] == 1:
        key = "parallelism_config.parallelism_config_dp_shard_size"
        consequence = "is 1 and so is cp_size: FSDP2 has nothing to shard over; every process fails."
        shards, rest = divmod(config.num_processes or 0, math.prod(sizes.values()))
        fix = f"parallelism_config_dp_shard_size: {shards}" if shards > 1 and not rest else "remove parallelism_config"
        yield config.problem(key, consequence, fix)


@rule("parallelism-cp-and-sp")
def parallelism_cp_and_sp(config: Document) -> Iterator[Finding]:
    """Context and sequence parallelism exclude each other; every process fails.

    Reference: accelerate/parallelism_config.py: ParallelismConfig.__post_init__, "mutually exclusive"; held true by a
    test.
    """
    sizes = _sizes(config)
    if sizes and sizes["cp_size"] > 1 and sizes["sp_size"] > 1:
        key = "parallelism_config.parallelism_config_sp_size"
        yield config.problem(key, "excludes cp_size; every process fails.", "set one of the two to 1")


@rule("parallelism-unsloth", "warning")
def parallelism_unsloth(config: Document) -> Iterator[Finding]:
    """accelerate's tensor, context and sequence parallelism replace linear layers or attention by their own, of which
    Unsloth's kernels know nothing; Unsloth has its own (UNSLOTH_TP_SIZE, context_parallel.py), and its FSDP2 refuses a
    ParallelismConfig of accelerate's beside it.

    Reference: unsloth/context_parallel.py: _check_fsdp2_parallelism_config; unsloth/models/fsdp2_native.py.
    """
    for name in ("tp_size", "cp_size", "sp_size"):
        key = f"parallelism_config.parallelism_config_{name}"
        size = config.get(key)
        if is_whole(size) and size > 1 and not next(parallelism_cp_and_sp(config), None):
            consequence = "Unsloth's kernels know nothing of accelerate's parallelism inside a model."
            data = f"parallelism_config_dp_{'shard' if config.type == 'FSDP' else 'replicate'}_size"
            others = config.whole(f"parallelism_config.{data}") or 1
            fix = f"parallelism_config_{name}: 1 with {data}: {size * others}"
            yield config.problem(key, consequence, fix)
