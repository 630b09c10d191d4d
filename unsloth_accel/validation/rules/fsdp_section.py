"""Rules about fsdp_config: which keys count, for which version, and what they do to Unsloth and to saving."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ...errors import as_word, close_match
from .document import Document, Finding, Repair, is_slip, truth
from .names import (
    BACKWARD_PREFETCHES,
    DECODER_LAYERS,
    FSDP1_TRUTHS,
    FSDP_KEYS,
    FSDP_TRUTHS,
    SHARDING_STRATEGIES,
    STATE_DICT_TYPES,
    WRAP_POLICIES,
    layer_exists,
)
from .ready_configs import FSDP2
from .rule_registry import rule
from .trying import GONE, choice, leads_astray

SLOW = "version 1 is three times slower with Unsloth"
REPLICATED = {"distributed_type: MULTI_GPU without fsdp_config": {"distributed_type": "MULTI_GPU", "fsdp_config": GONE}}
"""Fix for who wants every GPU to hold the whole model."""
RESHARD: dict[str | None, bool] = {"FULL_SHARD": True, "SHARD_GRAD_OP": False}
"""Value of reshard_after_forward in version 2 for each sharding strategy of version 1."""


@rule("fsdp-config-ignored")
def fsdp_config_ignored(config: Document) -> Iterator[Finding]:
    """Only distributed_type FSDP shards. MULTI_GPU with an fsdp_config is plain DDP, silently: every GPU holds the
    whole model that was to be divided. A warning where nothing could be divided: for one process, and for DeepSpeed.

    Reference: accelerate/commands/launch.py: _validate_launch_command, `args.use_fsdp = defaults.distributed_type ==
    DistributedType.FSDP`; held true by a test.
    """
    if config.get("fsdp_config") and isinstance(config.type, str) and config.type != "FSDP" and config.local:
        what = "plain DDP" if config.type == "MULTI_GPU" else "nothing of it"
        consequence = f"distributed_type is {config.type}: accelerate does {what} and says nothing."
        fix = choice(config, {"distributed_type: FSDP": {"distributed_type": "FSDP"}}, "remove fsdp_config")
        yield config.problem("fsdp_config", consequence, fix, mild=not config.replicates)


@rule("fsdp-config-missing", "warning")
def fsdp_config_missing(config: Document) -> Iterator[Finding]:
    """Without fsdp_config accelerate takes FSDP1 with NO_WRAP: the whole model is one unit, so that every GPU holds all
    of it at once, and Unsloth's fused kernels are declined.

    Reference: accelerate/commands/launch.py: launch_command_parser, --fsdp_version; accelerate/utils/dataclasses.py:
    FullyShardedDataParallelPlugin.__post_init__, AUTO_WRAP_POLICY; held true by a test.
    """
    if config.type == "FSDP" and config.get("fsdp_config") in (None, {}):
        consequence = "is missing: accelerate takes FSDP1 and the whole model as one unit."
        yield config.problem("fsdp_config", consequence, f"copy it from {FSDP2}")


@rule("fsdp-unknown-key")
def fsdp_unknown_key(config: Document) -> Iterator[Finding]:
    """accelerate checks no key below the top level: a misspelt one is silently dropped and its default taken. A warning
    for a key that is near none, or has an older name (backward_prefetch_policy).

    Reference: accelerate/commands/launch.py: _validate_launch_command, `setattr(args, key, value)`; held true by a
    test.
    """
    for name, key in config.fsdp.items():
        if name in FSDP_KEYS:
            continue
        # A key of version 1 would lead version 2 to fsdp2-old-keys.
        known = FSDP_KEYS - {"backward_prefetch", *FSDP1_TRUTHS} if config.fsdp_version == 2 else FSDP_KEYS
        near = close_match(name, known - set(config.fsdp))
        consequence = "unknown key; accelerate drops it silently and takes the default."
        yield config.unknown_key(key, near and f"fsdp_{near}", consequence, mild=not is_slip(name, near))


@rule("fsdp-version-missing", "warning", usual=SLOW)
def fsdp_version_missing(config: Document) -> Iterator[Finding]:
    """accelerate takes FSDP1, under which Unsloth declines its fused LoRA kernels.

    Reference: accelerate/commands/launch.py: launch_command_parser, --fsdp_version default "1";
    unsloth/models/loader_utils.py: fsdp2_keeps_fused_lora; held true by a test.
    """
    if config.type == "FSDP" and config.fsdp and "version" not in config.fsdp:
        consequence = "is missing: accelerate takes 1, the old FSDP, without Unsloth's fused kernels."
        yield config.problem("fsdp_config.fsdp_version", consequence, _second_version(config))


@rule("fsdp-version-unknown")
def fsdp_version_unknown(config: Document) -> Iterator[Finding]:
    """Any other version than 1 and 2 fails in every process, after they have started: a KeyError or ValueError.

    Reference: accelerate/utils/dataclasses.py: FullyShardedDataParallelPlugin.__post_init__, `int(os.environ…)`;
    held true by a test.
    """
    key = config.fsdp.get("version")
    if config.type == "FSDP" and key and str(config.get(key)) not in ("1", "2"):
        number = re.fullmatch(r"\W*([12])(\.0)?\W*", str(config.get(key)))
        repair = Repair(kind="set", key=key, value=int(number[1]) if number else None)
        yield config.problem(key, "every process fails after it has started.", _second_version(config), repair)


def _second_version(config: Document) -> str:
    """Return the fix that makes a section one of version 2: what that version refuses changes with it."""
    text, changes = "fsdp_version: 2", second_version(config)
    for name, value in list(changes.items())[1:]:
        text += f" with {name.rpartition('.')[2]}: {as_word(value)}"
    whole = f"fsdp_config of {FSDP2}"
    return whole if leads_astray(config, changes) else text


def second_version(config: Document) -> dict[str, Any]:
    """Return what has to change in fsdp_config for version 2."""

    def key(name: str) -> str:
        return config.fsdp.get(name, f"fsdp_config.fsdp_{name}")

    changes: dict[str, Any] = {key("version"): 2}
    if "reshard_after_forward" in config.fsdp and truth(config.get(key("reshard_after_forward"))) is None:
        changes[key("reshard_after_forward")] = RESHARD.get(config.fsdp_word("reshard_after_forward"), True)
    if config.fsdp_word("state_dict_type") == "LOCAL_STATE_DICT":
        changes[key("state_dict_type")] = "FULL_STATE_DICT"
    return changes


@rule("fsdp1", "warning", usual=SLOW)
def fsdp1(config: Document) -> Iterator[Finding]:
    """Unsloth declines its fused LoRA kernels (three times slower than FSDP2, measured), PEFT 0.21 saves an empty
    adapter and restores no tensor of it (which `adapt` mends), and transformers calls it deprecated (5.24 has it).

    Reference: measured (1.274 against 0.429 s per step; 0 of 24 tensors restored; 0 numbers saved on two H200);
    unsloth/models/loader_utils.py: fsdp2_keeps_fused_lora; peft/tuners/tuners_utils.py: _get_adapter_state_dict.
    """
    if config.fsdp_version == 1 and "version" in config.fsdp:
        consequence = "three times slower than FSDP2 with Unsloth, and PEFT 0.21 alone saves and restores no adapter."
        yield config.problem(config.fsdp["version"], consequence, _second_version(config))


@rule("fsdp-wrap-policy-missing", "warning")
def fsdp_wrap_policy_missing(config: Document) -> Iterator[Finding]:
    """accelerate takes NO_WRAP: the whole model is one unit, gathered at once, and Unsloth declines its fused kernels.

    Reference: accelerate/utils/dataclasses.py: FullyShardedDataParallelPlugin.__post_init__, default "NO_WRAP";
    unsloth/models/fsdp2.py: _gate_fused_lora; held true by a test.
    """
    if config.fsdp_version and "auto_wrap_policy" not in config.fsdp:
        consequence = "is missing: the whole model is one unit, gathered at once, without Unsloth's fused kernels."
        text, key = "fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP", "fsdp_config.fsdp_auto_wrap_policy"
        fix = choice(config, {text: {key: "TRANSFORMER_BASED_WRAP"}}, f"fsdp_config of {FSDP2}")
        yield config.problem(key, consequence, fix)


@rule("fsdp-no-wrap", "warning")
def fsdp_no_wrap(config: Document) -> Iterator[Finding]:
    """NO_WRAP makes the whole model one unit: each GPU holds all of it in every step, and Unsloth declines its fused
    kernels.

    Reference: unsloth/models/fsdp2.py: _gate_fused_lora; unsloth/models/loader_utils.py: fsdp2_keeps_fused_lora; held
    true by a test.
    """
    if config.fsdp_version and config.fsdp_word("auto_wrap_policy") == "NO_WRAP":
        consequence = "the whole model is one unit: no memory is saved, and Unsloth's fused kernels are declined."
        fix = "fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP"
        yield config.problem(config.fsdp["auto_wrap_policy"], consequence, fix)


@rule("fsdp-wrap-policy-unknown")
def fsdp_wrap_policy_unknown(config: Document) -> Iterator[Finding]:
    """Every process fails after it has started: "Invalid auto wrap policy".

    Reference: accelerate/utils/dataclasses.py: FullyShardedDataParallelPlugin.__post_init__; held true by a test.
    """
    key = config.fsdp_key("auto_wrap_policy")
    # accelerate leaves a key without value out.
    if key and config.get(key) is not None and config.fsdp_word("auto_wrap_policy") not in WRAP_POLICIES:
        yield config.unknown_word(key, WRAP_POLICIES, "every process fails: no such policy.")


@rule("fsdp-size-based-wrap", "warning")
def fsdp_size_based_wrap(config: Document) -> Iterator[Finding]:
    """Units end where a number of parameters is reached, not at decoder blocks, and Unsloth keeps its fused kernels
    only with one unit per block. min_num_params 0 silently wraps nothing.

    Reference: unsloth/models/fsdp2.py: _gate_fused_lora; accelerate/utils/dataclasses.py:
    FullyShardedDataParallelPlugin.set_auto_wrap_policy, "If zero, we silently ignore it".
    """
    if config.fsdp_version and config.fsdp_word("auto_wrap_policy") == "SIZE_BASED_WRAP":
        consequence = "units don't end at decoder blocks, so Unsloth declines its fused kernels."
        fix = "fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP, with the model's decoder layer"
        yield config.problem(config.fsdp["auto_wrap_policy"], consequence, fix)


@rule("fsdp-min-num-params")
def fsdp_min_num_params(config: Document) -> Iterator[Finding]:
    """`1e8` is text to YAML, at which `int()` fails in every process. A warning where another policy than
    SIZE_BASED_WRAP stands: only that one reads min_num_params.

    Reference: accelerate/utils/dataclasses.py: FullyShardedDataParallelPlugin.__post_init__, MIN_NUM_PARAMS; held true
    by a test.
    """
    key = config.fsdp_key("min_num_params")
    if not key:
        return
    if config.fsdp_word("auto_wrap_policy") != "SIZE_BASED_WRAP":
        if config.get(key):
            consequence = "is ignored: only SIZE_BASED_WRAP reads it."
            yield config.problem(key, consequence, "remove it", Repair(kind="remove", key=key), mild=True)
    elif not re.fullmatch(r"\d+", str(config.get(key))):
        consequence, fix = "every process fails: int() can't read it.", "the digits, fsdp_min_num_params: 100000000"
        yield config.problem(key, consequence, fix)


def _layers(config: Document) -> tuple[str, Any]:
    """The key of the classes to wrap and its value; None where it has none, or other units than classes are wrapped."""
    name = "transformer_layer_cls_to_wrap"
    key = config.fsdp_key(name) or f"fsdp_config.fsdp_{name}"
    return key, config.get(key) if _by_layer(config) else None


def _by_layer(config: Document) -> bool:
    return bool(config.fsdp_version) and config.fsdp_word("auto_wrap_policy") == "TRANSFORMER_BASED_WRAP"


@rule("fsdp-layer-class-missing", "warning", usual="its units are guessed from the model")
def fsdp_layer_class_missing(config: Document) -> Iterator[Finding]:
    """accelerate guesses from the model's `_no_split_modules`, which names vision blocks too and is empty for some
    models; then the whole model is one unit.

    Reference: accelerate/utils/dataclasses.py: FullyShardedDataParallelPlugin.set_auto_wrap_policy.
    """
    _, value = _layers(config)
    if _by_layer(config) and value in (None, ""):
        key = "fsdp_config.fsdp_transformer_layer_cls_to_wrap"
        consequence = "is missing: accelerate guesses the units, and may take the whole model for one."
        yield config.problem(key, consequence, "name the model's decoder layer, for example LlamaDecoderLayer")


@rule("fsdp-layer-class-list")
def fsdp_layer_class_list(config: Document) -> Iterator[Finding]:
    """A YAML list becomes the text "['LlamaDecoderLayer']", and spaces after a comma stay part of the name: the class
    isn't found and every process fails when the model is prepared.

    Reference: accelerate/utils/launch.py: prepare_multi_gpu_env, `str(args.fsdp_transformer_layer_cls_to_wrap)`;
    accelerate/utils/dataclasses.py: `.split(",")`; held true by a test.
    """
    key, value = _layers(config)
    if not value:
        return
    if isinstance(value, str):
        joined = ",".join(part.strip() for part in value.split(",") if part.strip())
    else:
        joined = ",".join(map(str, value)) if isinstance(value, list) else "LlamaDecoderLayer"
    if value != joined:
        consequence = "accelerate looks for a class of exactly this name, brackets and spaces included."
        repair = Repair(kind="set", key=key, value=joined if isinstance(value, str | list) and joined else None)
        yield config.problem(key, consequence, f"{key.split('.')[-1]}: {joined}", repair)


@rule("fsdp-layer-class-unknown", "warning")
def fsdp_layer_class_unknown(config: Document) -> Iterator[Finding]:
    """transformers has no class of this name. Unless the model brings its own code, every process fails when the model
    is prepared: "Could not find the transformer layer class … in the model".

    Reference: accelerate/utils/dataclasses.py: FullyShardedDataParallelPlugin.set_auto_wrap_policy; held true by a
    test.
    """
    key, value = _layers(config)
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else []
    for name in names:
        near = close_match(name, DECODER_LAYERS)
        exists = layer_exists(name) if name.isidentifier() else False
        if not name or exists or (exists is None and near is None):
            continue
        repair = Repair(kind="set", key=key, value=near if len(names) == 1 else None)
        consequence = f"transformers has no class {name[:80]}; every process fails unless the model has."
        fix = f"did you mean {near}?" if near else "the decoder layer's class in transformers' modeling file"
        yield config.problem(key, consequence, fix, repair)


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


@rule("fsdp2-sharding-strategy", "warning")
def fsdp2_sharding_strategy(config: Document) -> Iterator[Finding]:
    """Version 2 doesn't read sharding_strategy: it always shards fully, and fsdp_reshard_after_forward says when.

    Reference: accelerate/utils/dataclasses.py: FullyShardedDataParallelPlugin.__post_init__, `if self.fsdp_version ==
    1`; held true by a test.
    """
    key = config.fsdp_key("sharding_strategy", 2)
    if not key:
        return
    reshard = RESHARD.get(config.fsdp_word("sharding_strategy"))
    repairs = []
    if "reshard_after_forward" in config.fsdp or reshard:
        repairs = [Repair(kind="remove", key=key)]
    elif reshard is not None:
        repairs = [Repair(kind="rename", key=key, value="fsdp_reshard_after_forward")]
        repairs.append(Repair(kind="set", key=key, value=False))
    fix = f"fsdp_reshard_after_forward: {str(reshard is not False).lower()}"
    if config.fsdp_word("sharding_strategy") == "NO_SHARD":
        fix, repairs = choice(config, REPLICATED, "remove it"), []
    yield config.problem(key, "version 2 doesn't read it; every weight is sharded.", fix, *repairs)


@rule("fsdp2-old-keys", "warning", usual="some keys are version 1's")
def fsdp2_old_keys(config: Document) -> Iterator[Finding]:
    """backward_prefetch, forward_prefetch, use_orig_params and sync_module_states are FSDP1's; version 2 ignores them.

    Reference: accelerate/utils/dataclasses.py: FullyShardedDataParallelPlugin.__post_init__ ("is obsolete in FSDP2");
    held true by a test.
    """
    for name in ("backward_prefetch", *FSDP1_TRUTHS):
        key = config.fsdp_key(name, 2)
        # sync_module_states: false is told by fsdp-loading-without-sync where it stops the launch.
        if key and not (name == "sync_module_states" and next(fsdp_loading_without_sync(config), None)):
            yield config.problem(key, "version 2 ignores it.", "remove it", Repair(kind="remove", key=key))


@rule("fsdp2-reshard-not-boolean")
def fsdp2_reshard_not_boolean(config: Document) -> Iterator[Finding]:
    """Version 2 wants true or false for reshard_after_forward; FULL_SHARD is an "invalid truth value" in every process.

    Reference: accelerate/utils/dataclasses.py: FullyShardedDataParallelPlugin.__post_init__, str_to_bool; held true by
    a test.
    """
    key = config.fsdp_key("reshard_after_forward", 2)
    if key and truth(config.get(key)) is None:
        meant = RESHARD.get(config.fsdp_word("reshard_after_forward"))
        consequence = "version 2 wants true or false; every process fails after it has started."
        fix = f"{key.split('.')[-1]}: {str(meant is not False).lower()}"
        yield config.problem(key, consequence, fix, Repair(kind="set", key=key, value=meant))


@rule("fsdp1-reshard-ignored", "warning")
def fsdp1_reshard_ignored(config: Document) -> Iterator[Finding]:
    """`accelerate config` writes fsdp_reshard_after_forward for version 1, and the launcher ignores it: its own
    --fsdp_sharding_strategy is FULL_SHARD, which wins.

    Reference: accelerate/utils/launch.py: prepare_multi_gpu_env sets FSDP_SHARDING_STRATEGY; accelerate/utils/
    dataclasses.py: `self.reshard_after_forward is None and self.sharding_strategy is None`; held true by a test.
    """
    key = config.fsdp_key("reshard_after_forward", 1)
    word = config.fsdp_word("reshard_after_forward")
    if not key or word in ("FULL_SHARD", "1") or config.truth(key):
        return  # full sharding either way
    renamed = "sharding_strategy" not in config.fsdp and word in SHARDING_STRATEGIES
    repair = Repair(kind="rename", key=key, value="fsdp_sharding_strategy" if renamed else None)
    consequence = "is ignored for version 1: accelerate takes FULL_SHARD."
    yield config.problem(key, consequence, "write fsdp_sharding_strategy instead", repair)


@rule("fsdp1-sharding-strategy-unknown")
def fsdp1_sharding_strategy_unknown(config: Document) -> Iterator[Finding]:
    """An unknown strategy is a KeyError in every process, after they have started.

    Reference: accelerate/utils/dataclasses.py: FullyShardedDataParallelPlugin.__post_init__, `ShardingStrategy[…]`;
    held true by a test.
    """
    key = config.fsdp_key("sharding_strategy", 1)
    # accelerate takes torch's numbers too.
    if key and str(config.get(key)).upper() not in (*SHARDING_STRATEGIES, "1", "2", "3", "4", "5"):
        yield config.unknown_word(key, SHARDING_STRATEGIES, "every process fails.")


@rule("fsdp1-no-shard", "warning")
def fsdp1_no_shard(config: Document) -> Iterator[Finding]:
    """NO_SHARD is DDP in FSDP's clothes: every GPU holds the whole model, and torch calls it deprecated.

    Reference: torch/distributed/fsdp/_init_utils.py: "The `NO_SHARD` sharding strategy is deprecated."; held true by a
    test.
    """
    key = config.fsdp_key("sharding_strategy", 1)
    if key and str(config.get(key)).upper() in ("NO_SHARD", "3"):
        consequence = "every GPU holds the whole model, as under DDP, and Unsloth's fused kernels are declined."
        yield config.problem(key, consequence, choice(config, REPLICATED, "FULL_SHARD"))


@rule("fsdp1-backward-prefetch-unknown")
def fsdp1_backward_prefetch_unknown(config: Document) -> Iterator[Finding]:
    """An unknown prefetch is a KeyError in every process, after they have started.

    Reference: accelerate/utils/dataclasses.py: FullyShardedDataParallelPlugin.__post_init__, `BackwardPrefetch[…]`;
    held true by a test.
    """
    key = config.fsdp_key("backward_prefetch", 1)
    value = config.get(key) if key else None
    if key and value is not None and str(value).upper() not in (*BACKWARD_PREFETCHES, "1", "2"):
        yield config.unknown_word(key, BACKWARD_PREFETCHES, "every process fails.")


@rule("fsdp1-use-orig-params", "warning", usual="use_orig_params: false needs PEFT's wrap policy")
def fsdp1_use_orig_params(config: Document) -> Iterator[Finding]:
    """LoRA trains some parameters of a unit and not the others; FSDP1 allows that only with its original parameters,
    and raises a ValueError when the model is prepared. The Trainer takes PEFT's wrap policy, which makes LoRA's layers
    units of their own and trains; a loop of one's own does not.

    Reference: transformers/distributed/fsdp.py: update_fsdp_plugin_peft,
    `accelerator.state.fsdp_plugin.auto_wrap_policy = fsdp_auto_wrap_policy(model)`;
    torch/distributed/fsdp/_flat_param.py: "Must flatten tensors with uniform
    `requires_grad` when"; held true by a test, and measured.
    """
    key = config.fsdp_key("use_orig_params", 1)
    if key and config.truth(key) is False:
        consequence = "without PEFT's wrap policy, which the Trainer sets, FSDP1 raises a ValueError for LoRA."
        yield config.problem(key, consequence, "fsdp_use_orig_params: true", Repair(kind="set", key=key, value=True))


@rule("fsdp-not-boolean")
def fsdp_not_boolean(config: Document) -> Iterator[Finding]:
    """accelerate reads these words with str_to_bool in every process: "invalid truth value", also for a key without
    value, which becomes the word none.

    Reference: accelerate/utils/environment.py: str_to_bool; accelerate/utils/launch.py: prepare_multi_gpu_env; held
    true by a test.
    """
    for name in FSDP_TRUTHS:
        key = config.fsdp_key(name, 1) if name in FSDP1_TRUTHS else config.fsdp_key(name)
        if key and truth(config.get(key)) is None:
            consequence = "is neither true nor false; every process fails after it has started."
            name = key.split(".")[-1]
            fix = choice(config, {f"{name}: {str(value).lower()}": {key: value} for value in (True, False)})
            yield config.problem(key, consequence, fix)
