"""The strategies: one record each, with everything in which one differs from another.

Code asks a record what it must know (`strategy.shards_weights`) and never compares names. The order of the records is
the order of preference where speeds are unknown or equal. A strategy of your own: `STRATEGIES.add(Strategy(…))`, in a
module that UNSLOTH_ACCEL_PLUGINS names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .registry import Registry

Loading = Literal["whole", "sent", "cut", "shards", "16-bit shards"]
"""Loading of weights onto a GPU: the `whole` model; the whole, which rank 0 has also `sent` to all; the whole, also
`cut` into shards; a process's own `shards` only; `16-bit shards`: own shards, but a 4-bit model whole."""


@dataclass(frozen=True, kw_only=True)
class Strategy:
    name: str
    about: str
    """One line for people."""
    reason: str = ""
    """Reason to plan it where nothing is known about the model's size; empty where only a user's word is a reason."""
    never_chosen: str = ""
    """Reason why a plan never takes it unless it is asked for; empty where it may."""

    # What it divides, and where it runs.
    one_process: bool = False
    """Whether it is one process; any other strategy needs at least two."""
    shards_weights: bool = False
    """Whether its processes divide the frozen weights among them."""
    flattens: bool = False
    """Whether it divides them in flat pieces without names and shapes, instead of DTensors."""
    processes_per_row: int = 1
    """Processes that compute the same rows together; the others are data parallel."""
    runs_on_cpu: bool = True
    by_unsloth: bool = False
    """Whether Unsloth itself implements it, so that a script started without our launch needs Unsloth, too."""

    # What accelerate is told.
    distributed_type: Literal["NO", "MULTI_GPU", "FSDP"]
    """`MULTI_GPU` on a CPU too: it is the only type for which `accelerate launch` starts several processes without
    MPI. MULTI_CPU would start one and say nothing (accelerate/commands/launch.py)."""
    fsdp_config: Mapping[str, Any] = field(default_factory=dict)
    """Keys of accelerate's fsdp_config that are its own; `fsdp_version` first."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that select it where accelerate's config can't; the first one does, the others configure it."""
    environment_16_bit: Mapping[str, str] = field(default_factory=dict)
    """Further variables where the weights are not in 4 bit."""
    process_environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that each of its processes sets for itself."""

    adapter: str = ""
    """Import path of the function that fits an Accelerator to it: called with each before it wraps a model, in a
    launched process; it does nothing under another strategy."""

    # What it needs, and what it can't do.
    needs: tuple[str, ...] = ("CPU backend",)
    """Capabilities that the installed packages must have, by the names in `capabilities.patches`."""
    cannot: Mapping[str, str] = field(default_factory=dict)
    """Features that fail under it, with a sentence each: `4bit`, `bitsandbytes` (optimizers), `embeddings` (with a
    learning rate of their own), `generate`."""
    steps_bitsandbytes: bool = True
    """Whether bitsandbytes' optimizers can step its parameters; otherwise torch's fused AdamW takes their place."""
    saves_fused: bool = True
    """Whether the state of a fused optimizer can be put together for a checkpoint."""
    optimizer_state: str = "whole"
    """Form of the optimizer in its checkpoints: as one process keeps it, by parameters' names, or a form of its own."""
    reads: tuple[str, ...] = ("whole", "named")
    """Forms of `optimizer_state` that it can resume from."""

    # Memory (planning.memory_estimate).
    loading: Loading = "whole"
    gathered_blocks: int = 0
    """Decoder blocks whose weights are gathered at the peak."""
    gathers_outer: bool = False
    """Whether input embeddings and output head are gathered beside them throughout, not only at the loss."""
    whole_adapter_share: float = 0.0
    """Share of the model's parameters up to which LoRA weights stay whole on every rank."""
    gradient_buckets: bool = False
    """Whether gradients are copied into buckets to be averaged."""
    fragmentation: float = 0.03
    """Memory that torch's allocator holds beyond its peak of allocations, as a share of that; medians. Gathers on other
    streams fragment more."""
    fragmentation_of_kept: float | None = None
    """The same of what kept blocks hold, which comes and goes in large pieces (benchmarks/results/regret-2xH200.json);
    None where it wasn't measured, and is taken for the other."""

    # Speed (planning.speed_estimate).
    seconds_per_block: float = 0.0
    """Seconds per decoder block, device batch and step beside the bytes: hooks and waiting at each gather; fitted."""
    launch_per_block: float = 0.0
    """Seconds per decoder block and device batch more that Python takes to launch its kernels, for the hooks of a
    gather; they count where launching is what a step waits for. Fitted."""
    hides_gathering: bool = False
    """Whether copy engines fetch the next block over NVLink while one computes."""
    compute_factor: float = 1.0
    """Factor on the seconds of computing."""

    def variables(self, *, in_4bit: bool) -> dict[str, str]:
        """Return the variables that select it, for weights in 4 bit or not."""
        return {**self.environment, **({} if in_4bit else self.environment_16_bit)}

    def data_parallel(self, num_processes: int) -> int:
        """Return the number of processes that compute different rows, of `num_processes` in all."""
        return num_processes // self.processes_per_row

    @property
    def through_plugin(self) -> bool:
        """Whether accelerate's FSDP plugin divides the weights, and must be told the class of the decoder blocks."""
        return self.distributed_type == "FSDP"

    @property
    def loads_shards(self) -> bool:
        """Whether each process loads its part only, of a 16-bit checkpoint at least."""
        return self.loading in ("shards", "16-bit shards")

    def loads_whole(self, *, in_4bit: bool, mixture: bool = False) -> bool:
        """Return whether each process holds the whole model at some time while loading, which a mixture of experts
        always is: transformers puts experts together from several tensors of the checkpoint, which Unsloth's sharded
        loading can't read (unsloth/models/tp_native.py: `_fill_from_checkpoint`)."""
        return mixture or not self.loads_shards or (in_4bit and self.loading == "16-bit shards")


_ALIKE = {"UNSLOTH_GRPO_SEQ_PACKING": "0", "UNSLOTH_GRPO_PREFIX_GROUPER": "0"}
"""Variables for equal forward passes on all ranks, since each gathers weights (unsloth_zoo/rl_replacements.py)."""
_FSDP2_NEEDS = ("fused loss under FSDP2", "4-bit weights under FSDP2", "CPU backend", "fully_shard", "FSDP2's units")

STRATEGIES: Registry[Strategy] = Registry(
    "distributed.strategy",
    [
        Strategy(
            name="single",
            about="one process",
            reason="there is one process.",
            one_process=True,
            distributed_type="NO",
        ),
        Strategy(
            name="ddp",
            about="every GPU holds the whole model and trains on its share of each batch",
            reason="every process holds the model and synchronises only the adapter's gradients.",
            distributed_type="MULTI_GPU",
            loading="sent",
            gradient_buckets=True,
        ),
        Strategy(
            name="fsdp2",
            about="the GPUs divide the frozen weights through accelerate's plugin and gather them block by block",
            shards_weights=True,
            runs_on_cpu=False,
            distributed_type="FSDP",
            fsdp_config={"fsdp_version": 2, "fsdp_reshard_after_forward": True},
            process_environment=_ALIKE,
            adapter="unsloth_accel.adapters.fsdp2.shard.adapt_accelerator",
            needs=("kernels that know FSDP2", *_FSDP2_NEEDS, "FSDP2's plugin", "gradients of whole weights"),
            # unsloth/models/rl.py: "Switching optim"
            steps_bitsandbytes=False,
            optimizer_state="fsdp2",
            reads=("fsdp2",),
            # Also in 4 bit, which our adapter cuts as it quantises (adapters/fsdp2).
            loading="shards",
            # Two sets of buffers (adapters/fsdp2/peer_fetch).
            gathered_blocks=2,
            whole_adapter_share=0.01,
            fragmentation=0.09,
            fragmentation_of_kept=0.03,
            seconds_per_block=0.0004,
            launch_per_block=0.002,
            hides_gathering=True,
        ),
        Strategy(
            name="fsdp2_native",
            about="the GPUs divide the frozen weights by Unsloth's own FSDP2",
            shards_weights=True,
            by_unsloth=True,
            # In what accelerate takes for DDP.
            distributed_type="MULTI_GPU",
            # UNSLOTH_FSDP2_BACKEND: without it a plain loop's Accelerator would shard through accelerate's plugin
            # (unsloth/fsdp2_launch.py). UNSLOTH_FSDP2_LAYOUT: without it Unsloth keeps all weights on every GPU where
            # they fit, which is DDP under another name.
            environment={"UNSLOTH_FSDP2": "1", "UNSLOTH_FSDP2_BACKEND": "native", "UNSLOTH_FSDP2_LAYOUT": "sharded"},
            # Each rank loads its part only; Unsloth has it for 16-bit weights only (unsloth/models/fsdp2_load.py).
            environment_16_bit={"UNSLOTH_FSDP2_SHARDED_LOAD": "1"},
            process_environment=_ALIKE,
            needs=("native FSDP2", "sharded loading", *_FSDP2_NEEDS, "triton", "Unsloth's sharding in a loop"),
            # It looks its parameters up by name, and the others number them.
            optimizer_state="named",
            reads=("named",),
            loading="16-bit shards",
            # The current one, the prefetched one, and its all-gather's buffer; fitted (2.2 to 3.7).
            gathered_blocks=3,
            gathers_outer=True,
            fragmentation=0.2,
            seconds_per_block=0.0010,
        ),
        Strategy(
            name="fsdp1",
            about="the old FSDP, for what can't use FSDP2",
            never_chosen="Unsloth declines its fused LoRA kernels under FSDP1 (three times slower, measured), every "
            "GPU loads the whole model first, and transformers calls it deprecated; it is never chosen, only taken "
            "when asked for.",
            shards_weights=True,
            flattens=True,
            runs_on_cpu=False,
            distributed_type="FSDP",
            fsdp_config={
                "fsdp_version": 1,
                # `fsdp_reshard_after_forward: FULL_SHARD`, which `accelerate config` writes, is ignored for version 1.
                "fsdp_sharding_strategy": "FULL_SHARD",
                "fsdp_backward_prefetch": "BACKWARD_PRE",
                "fsdp_forward_prefetch": False,
                # LoRA trains some parameters of a unit and not others, which needs the original ones.
                "fsdp_use_orig_params": True,
                "fsdp_sync_module_states": True,
            },
            needs=("LoRA kernels declined under FSDP1", "CPU backend", "the adapter under FSDP1"),
            cannot={
                "4bit": "FSDP1 can't flatten weights in 4 bit; every process fails.",
                "bitsandbytes": "whether FSDP1 can put its state together was never tried.",
                "embeddings": "FSDP1's flat weights have no names by which embeddings could get a rate of their own.",
                "generate": "answers can't be generated from FSDP1's flat shards; the run fails once it has trained.",
            },
            saves_fused=False,
            optimizer_state="fsdp1",
            reads=("fsdp1",),
            loading="cut",
            gathered_blocks=1,
            gathers_outer=True,
            fragmentation=0.09,
            seconds_per_block=0.0014,
            # 1.274 s against 0.429 s for FSDP2 (DDP 0.386 s), measured on the 1.5B shape with variable rows.
            compute_factor=3.0,
        ),
    ],
)


def choosable(num_processes: int) -> list[Strategy]:
    """Return the strategies that a plan may take for so many processes without being asked, in order of preference.

    Their processes all compute different rows, so the batch is divided alike whichever is taken.
    """
    free = [one for one in STRATEGIES if not one.never_chosen and one.processes_per_row == 1]
    return [one for one in free if one.one_process == (num_processes == 1)]


def usual(num_processes: int) -> Strategy:
    """Return the strategy that works wherever the model fits: every process holds it."""
    return next(one for one in choosable(num_processes) if not one.shards_weights)


def strategy_of(
    distributed_type: str, fsdp_version: Any = None, variables: Mapping[str, str] | None = None
) -> Strategy:
    """Return the strategy that an accelerate config starts in several processes, with `variables` set beside it.

    Accelerate takes version 1 where `fsdp_version` says nothing.
    """
    kind = "FSDP" if distributed_type == "FSDP" else "MULTI_GPU"
    version = 2 if str(fsdp_version) == "2" else 1
    fitting = [
        one
        for one in STRATEGIES
        if one.distributed_type == kind
        and one.fsdp_config.get("fsdp_version", version) == version
        # The first variable chooses it, the others say how.
        and all((variables or {}).get(name) == value for name, value in [*one.environment.items()][:1])
    ]
    return max(fitting, key=lambda one: len(one.environment))
