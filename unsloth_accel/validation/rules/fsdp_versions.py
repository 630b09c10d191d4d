"""Rules about keys of fsdp_config that one version of FSDP reads otherwise than the other, or not at all."""

from __future__ import annotations

from collections.abc import Iterator

from .document import Document, Finding, Repair, truth
from .fsdp_section import RESHARD
from .fsdp_weights import fsdp_loading_without_sync
from .names import BACKWARD_PREFETCHES, FSDP1_TRUTHS, FSDP_TRUTHS, SHARDING_STRATEGIES
from .rule_registry import rule
from .trying import GONE, choice

REPLICATED = {"distributed_type: MULTI_GPU without fsdp_config": {"distributed_type": "MULTI_GPU", "fsdp_config": GONE}}
"""Fix for who wants every GPU to hold the whole model."""


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
