"""Rules about fsdp_config as a whole: whether it counts, its keys' names, and its version."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ...errors import as_word, close_match
from .document import Document, Finding, Repair, is_slip, truth
from .names import FSDP1_TRUTHS, FSDP_KEYS
from .ready_configs import FSDP2
from .rule_registry import rule
from .trying import choice, leads_astray

SLOW = "version 1 is three times slower with Unsloth"
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
