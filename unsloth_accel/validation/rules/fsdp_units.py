"""Rules about FSDP's units: which parts of a model are gathered at once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ...errors import close_match
from .document import Document, Finding, Repair
from .names import WRAP_POLICIES, decoder_layers, layer_exists
from .ready_configs import FSDP2
from .rule_registry import rule
from .trying import choice


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
        near = close_match(name, decoder_layers())
        exists = layer_exists(name) if name.isidentifier() else False
        if not name or exists or (exists is None and near is None):
            continue
        repair = Repair(kind="set", key=key, value=near if len(names) == 1 else None)
        consequence = f"transformers has no class {name[:80]}; every process fails unless the model has."
        fix = f"did you mean {near}?" if near else "the decoder layer's class in transformers' modeling file"
        yield config.problem(key, consequence, fix, repair)
