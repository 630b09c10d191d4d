"""Rules about the weights under FSDP: how they are saved and loaded, what is recomputed and what lies on the CPU."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .document import Document, Finding, Repair
from .names import STATE_DICT_TYPES
from .rule_registry import rule

SAVES_NOTHING = "save_model alone writes no adapter (`adapt` mends it)"


@rule("fsdp-state-dict-type-missing", "warning", usual=SAVES_NOTHING)
def fsdp_state_dict_type_missing(config: Document) -> Iterator[Finding]:
    """For version 2 accelerate takes SHARDED_STATE_DICT, with which the Trainer's save_model writes no adapter and says
    nothing. `adapt` mends it; a script without it has its shards, in its checkpoints alone.

    Reference: measured; accelerate/utils/dataclasses.py: FullyShardedDataParallelPlugin.set_state_dict_type; held true
    by a test.
    """
    if config.fsdp_version == 2 and config.get(config.fsdp.get("state_dict_type", "-")) is None:
        key = "fsdp_config.fsdp_state_dict_type"
        consequence = "is missing: accelerate takes SHARDED_STATE_DICT; without `adapt` save_model writes no adapter."
        add = Repair(kind="add", key=key, value=None if "state_dict_type" in config.fsdp else "FULL_STATE_DICT")
        yield config.problem(key, consequence, "fsdp_state_dict_type: FULL_STATE_DICT", add)


@rule("fsdp-sharded-state-dict", "warning", usual=SAVES_NOTHING)
def fsdp_sharded_state_dict(config: Document) -> Iterator[Finding]:
    """The Trainer's save_model writes no adapter and says nothing, checkpoints hold shards alone, and save_only_model
    raises; under FSDP1 a resumed run restores nothing. `adapt` mends it, and so does a script that asks for the full
    type before it saves, as PEFT's own examples do.

    Reference: measured; transformers/trainer.py: "save_only_model option is not compatible with FSDP
    state dict type 'SHARDED_STATE_DICT'".
    """
    if config.fsdp_version and config.fsdp_word("state_dict_type") == "SHARDED_STATE_DICT":
        key = config.fsdp["state_dict_type"]
        consequence = "without `adapt` the Trainer's save_model writes no adapter and says nothing."
        repair = Repair(kind="set", key=key, value="FULL_STATE_DICT")
        yield config.problem(key, consequence, "fsdp_state_dict_type: FULL_STATE_DICT", repair)


@rule("fsdp-state-dict-type-impossible")
def fsdp_state_dict_type_impossible(config: Document) -> Iterator[Finding]:
    """FSDP2 refuses LOCAL_STATE_DICT, and an unknown type is a KeyError: every process fails after it has started.

    Reference: accelerate/utils/dataclasses.py: FullyShardedDataParallelPlugin.set_state_dict_type; held true by a test.
    """
    key = config.fsdp_key("state_dict_type")
    if not key or config.get(key) is None:
        return
    word = config.fsdp_word("state_dict_type")
    numbered = str(config.get(key)) in ("1", "2", "3")  # accelerate takes torch's numbers too
    if word == "LOCAL_STATE_DICT" or (word not in STATE_DICT_TYPES and not numbered):
        repair = Repair(kind="set", key=key, value="FULL_STATE_DICT")
        consequence = "every process fails after it has started."
        yield config.problem(key, consequence, "fsdp_state_dict_type: FULL_STATE_DICT", repair)


@rule("fsdp-cpu-ram-efficient-loading", "warning", usual="ranks load empty weights and wait for rank 0's")
def fsdp_cpu_ram_efficient_loading(config: Document) -> Iterator[Finding]:
    """True, also when it is missing: all ranks but the first are to load empty weights and get rank 0's through a
    broadcast. With Unsloth it saves no GPU memory (22.70 GiB either way), 4-bit weights are left out of it, and weights
    that a script changes on the other ranks are lost.

    Reference: accelerate/commands/launch.py: --fsdp_cpu_ram_efficient_loading default "true";
    accelerate/utils/fsdp_utils.py: fsdp2_prepare_model; measured; held true by a test.
    """
    key = config.fsdp.get("cpu_ram_efficient_loading")
    if not config.fsdp_version or config.truth(key, default=True) is not True:
        return
    if next(fsdp_loading_without_sync(config), None):
        return
    said = "is true when it is missing: " if key is None else ""
    consequence = f"{said}ranks load empty weights and wait for rank 0's; with Unsloth it saves no memory."
    where = key or "fsdp_config.fsdp_cpu_ram_efficient_loading"
    repair = Repair(kind="set" if key else "add", key=where, value=False)
    yield config.problem(where, consequence, "fsdp_cpu_ram_efficient_loading: false", repair)


@rule("fsdp-loading-without-sync")
def fsdp_loading_without_sync(config: Document) -> Iterator[Finding]:
    """accelerate refuses cpu_ram_efficient_loading (true by default) with sync_module_states: false, also for version
    2, where the second key means nothing otherwise.

    Reference: accelerate/utils/launch.py: prepare_multi_gpu_env, "set `--fsdp_sync_module_states` to `True`"; held true
    by a test.
    """
    sync = config.fsdp.get("sync_module_states")
    if config.type != "FSDP" or not sync or config.get(sync):
        return
    loading = config.fsdp.get("cpu_ram_efficient_loading")
    if loading is None or config.get(loading):
        consequence = "accelerate refuses it while fsdp_cpu_ram_efficient_loading is true, which is the default."
        where = loading or "fsdp_config.fsdp_cpu_ram_efficient_loading"
        repairs = [Repair(kind="set" if loading else "add", key=where, value=False)]
        if config.fsdp_version == 2:
            repairs.append(Repair(kind="remove", key=sync))
        yield config.problem(sync, consequence, "fsdp_cpu_ram_efficient_loading: false", *repairs)


@rule("fsdp-activation-checkpointing", "warning")
def fsdp_activation_checkpointing(config: Document) -> Iterator[Finding]:
    """Unsloth checkpoints activations itself, and with gradient_checkpointing (activation_checkpointing, from
    transformers 5.23 on) on in the training arguments the Trainer refuses to start.

    Reference: transformers/trainer.py: `fsdp_plugin.activation_checkpointing and self.args.`, which raises.
    """
    key = config.fsdp_key("activation_checkpointing")
    if key and config.truth(key):
        consequence = "Unsloth checkpoints activations itself; the Trainer refuses both together."
        repair = Repair(kind="set", key=key, value=None if "activation_checkpointing_offload" in config.fsdp else False)
        yield config.problem(key, consequence, "fsdp_activation_checkpointing: false", repair)


@rule("fsdp-activation-offload")
def fsdp_activation_offload(config: Document) -> Iterator[Finding]:
    """activation_checkpointing_offload needs activation_checkpointing and version 2; otherwise every process fails.

    Reference: accelerate/utils/dataclasses.py: FullyShardedDataParallelPlugin.__post_init__; held true by a test.
    """
    key = config.fsdp_key("activation_checkpointing_offload")
    if key and config.truth(key) and not config.truth(config.fsdp_key("activation_checkpointing", 2)):
        consequence = "needs fsdp_activation_checkpointing: true and fsdp_version: 2; every process fails."
        repair = Repair(kind="set", key=key, value=False)
        yield config.problem(key, consequence, "false; Unsloth offloads activations itself", repair)


@rule("fsdp-offload-params", "warning")
def fsdp_offload_params(config: Document) -> Iterator[Finding]:
    """Weights and gradients go to the CPU and back in every step, and the optimizer steps on the CPU. A LoRA run keeps
    few gradients, so that it waits for the weights alone; QLoRA is the cheaper way to less memory.

    Reference: accelerate/utils/dataclasses.py: FullyShardedDataParallelPlugin.set_cpu_offload; accelerate/state.py:
    PartialState.__init__ (backend cuda:nccl,cpu:gloo).
    """
    key = config.fsdp_key("offload_params")
    if key and config.truth(key):
        consequence = "the weights cross to the GPU and back in every step."
        yield config.problem(key, consequence, "false; load the model in 4 bit where memory lacks")


@rule("fsdp-ignored-modules")
def fsdp_ignored_modules(config: Document) -> Iterator[Finding]:
    """One regular expression over module names. A list becomes its text, brackets included, which as an expression
    matches single letters: nothing is ignored, which is a warning. A bad expression fails in every process.

    Reference: accelerate/utils/launch.py: prepare_multi_gpu_env, `str(args.fsdp_ignored_modules)`;
    accelerate/accelerator.py: Accelerator.prepare_model, `re.compile(kwargs["ignored_modules"])`; held true by a test.
    """
    key = config.fsdp_key("ignored_modules")
    value = config.get(key) if key else None
    if not key or value is None:
        return
    consequence, mild = "is one regular expression over module names; this ignores nothing.", True
    if isinstance(value, str):
        try:
            re.compile(value)
            return
        except (re.error, RecursionError, OverflowError) as error:
            consequence, mild = f"is not a regular expression ({error}); every process fails.", False
    yield config.problem(key, consequence, "fsdp_ignored_modules: (first|second)", mild=mild)
