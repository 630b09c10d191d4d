"""MemoryEstimate: the GPU memory that a run takes on each GPU, term by term, before anything is loaded.

Sizes of tensors follow from the model's shapes and from code whose file is named; they are exact. What a block's
backward, the gathering of shards, the allocator and CUDA's context take beyond that was fitted to the calibration cells
of memory-2xH200.json and kept-1xH200.json in benchmarks/results (H200, Unsloth 2026.10.9, torch 2.11). docs/memory.md
puts prediction and measurement side by side, for cells that were used and cells that were not.
Padded rows (DPO, KTO) were fitted to preferences-2xH200.json, of which none was held out: docs/preferences.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from typing import Literal

from ..methods import Logits
from ..models.spec import ModelSpec
from ..strategies import STRATEGIES, Strategy, usual
from .generation_estimate import generation_bytes
from .optimizers import OPTIMIZER_BYTES, optimizer_for

GIB = 2**30
Checkpointing = Literal["unsloth", "true", "false"]

MEMORY_LIMIT, LEAST_IDLE_GIB = 0.95, 1.0
"""Share of the free memory that a plan may fill, and from which on a run warns: the estimate was within 8 % where it
was fitted, mostly within 1 %. On a small card it leaves at least so much: a desktop's windows come and go."""
WORST_ERROR = 0.11
"""The estimate's worst error, as a share of what a run took: what torch's allocator held in the cells of
benchmarks/results/memory-2xH200.json (docs/memory.md), rounded up. What is asked for by name is refused where the
estimate less that is too large for the GPU, and a run that takes that much more than was planned says so."""


def usable_gib(free_gib: float) -> float:
    """Return the GiB that a plan may fill, of so many that are free."""
    return min(MEMORY_LIMIT * free_gib, free_gib - LEAST_IDLE_GIB)


BLOCK_INTERMEDIATE = 4.0
"""Copies of (tokens × intermediate_size) alive at the peak of a block's backward: gate, up, and their gradients, all in
Unsloth's fused MLP (unsloth/kernels/fast_lora.py). Fitted: 1.5B and 8B give 4.0."""
BLOCK_HIDDEN, OFFLOAD_HIDDEN = 4.5, 3.75
"""Copies of (tokens × hidden_size) alive then, and those that Unsloth's offloading adds: two GPU buffers and what is in
flight (unsloth_zoo/gradient_checkpointing.py). Fitted."""
COMPILED_INTERMEDIATE = 5.85
"""Copies of (tokens × intermediate_size) more where rows are padded: Unsloth compiles such a block as one region, tries
it with gradients beside the first pass, and leaves rows laid end to end to its stock forward (unsloth/models/
_block_compile.py: `_wrap`). Fitted to the middle of the twelve cells of preferences-2xH200.json, all of one shape and
8192 tokens; not profiled. Two ranks of one run differed by 0.28 GiB."""
KEPT_INTERMEDIATE, KEPT_HIDDEN, KEPT_QUERY = 2.0, 4.0, 3.2
"""Copies of (tokens × intermediate_size), of (tokens × hidden_size) and of (tokens × the width of all heads) that a
block keeps which is not checkpointed: gate and up; the residual twice and both norms' outputs; query, attention output,
and what else attention keeps (fitted), beside keys and values. Norms of query and key keep these once more."""
BIAS_HIDDEN = 2.0
"""Copies of (tokens × hidden_size) more where query, key and value have a bias, which Unsloth's fused LoRA lacks;
fitted to Qwen2.5's 0.5B alone."""
KEPT_INSIDE_INTERMEDIATE, KEPT_INSIDE_HIDDEN = 1.0, 3.0
"""Copies of both, beside what it keeps, that are alive at the peak of such a block's backward; fitted."""
LOSS_HIDDEN = 2.0
"""Copies of (tokens × hidden_size) beside the logits: the last norm's output and its gradient."""
EVAL_INTERMEDIATE, EVAL_HIDDEN = 3.0, 4.0
"""Copies of (tokens × intermediate_size) and of (tokens × hidden_size) alive in a block's forward pass without
gradients: gate, up and their product, then residual, norm and the two outputs (unsloth/kernels/fast_lora.py)."""
LOGIT_BYTES = 2.0
"""Bytes per logit of one chunk of Unsloth's fused cross entropy, compiled: bf16 logits. In eager mode the code assumes
16 bytes to choose its chunks (unsloth_zoo/fused_losses/cross_entropy_loss.py: `_CE_BYTES_PER_LOGIT`)."""
CHUNK_TARGET_GIB = 4.0
"""Largest chunk in GiB by Unsloth's own reckoning; half the free memory if that is less (same file)."""
TILE_GIB, TILE_HIDDEN = 0.25, 4.0
"""GiB of float32 logits that log-probabilities have at once (unsloth_zoo/fused_losses/fused_linear.py:
`_BWD_TILE_BYTES`), and copies of (tokens × hidden_size) beside them: what is scored of the last norm's output, its
gradient, which that kernel writes as it goes forward, and the gradient as it is put back. A block took more in every
cell that was measured, so they are counted from that code."""
CPU_TILE_ROWS = 512
"""Tokens whose logits a CPU has at once then (same file: `fused_linear_rows`)."""
SCORED_LOGIT_BYTES, SCORED_GIB, SCORED_ROWS, SCORED_PARTS = 6.0, 2.0, 512, 8
"""Bytes per logit of one chunk of Unsloth's GRPO loss: in float32, with the gradient in bf16; GiB that one chunk may
take at 8 bytes per logit, or half of what is free; tokens that it has at least, and chunks otherwise, of the
completions' tokens (unsloth_zoo/fused_losses/chunked_logprob.py: `chunked_logprob_rows`, `backward`)."""
WHOLE_LOGIT_BYTES = 16.0
"""Bytes per logit of a loss that has all of them: in float32, as accelerate hands them out, with the copy of the chosen
side and its log-softmax, and the gradients of both (trl/experimental/orpo/orpo_trainer.py: `concatenated_forward`);
counted from that code, never measured."""
OTHER_GIB = 0.06
"""GiB of rotary tables, staging buffers and workspaces; fitted."""
CONTEXT_GIB = 0.82
"""GiB of CUDA's context, kernels and cuBLAS; one process on an H200."""
NCCL_GIB = 1.47
"""GiB of NCCL's buffers and its own kernels; two processes on NVLink."""
DDP_BUCKETS_GIB = 0.5
"""GiB of buckets in which DDP sends all weights from rank 0 when it wraps the model: two of 250 MiB at once
(torch/nn/parallel/distributed.py: `broadcast_bucket_size`)."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Work of one process, in the numbers that memory and time depend on."""

    spec: ModelSpec
    lora_parameters: int
    per_device: int
    """Rows in one forward pass."""
    length: int
    """Tokens per sequence."""
    sequences_per_row: int = 1
    has_score: bool = False
    """Whether the head gives a sequence one number, and has no logits."""
    reference_passes: int = 0
    """Forward passes beside the trained one."""
    logits: Logits = "fused"
    pads: bool = False
    """Whether sequences of unequal lengths are padded to the longest of a device batch."""
    checkpointing: Checkpointing = "unsloth"
    keep_activations: int = 0
    """Decoder blocks that keep their activations, of those that would be checkpointed."""
    eval_rows: int | None = 0
    """Rows in one forward pass of an evaluation, 0 where there is none; None for twice the training's, which a run's
    trainer takes (config/trainer_settings.py)."""
    generated_rows: int = 0
    """Completions that a process writes at once; 0 where it writes none."""
    generated_tokens: int = 0
    """Most tokens of a completion."""
    load_in_4bit: bool = False
    dtype_bytes: int = 2
    """Bytes per element of the base weights that are not in 4 bit: 2, or 4 for float32."""
    optim: str = "adamw_torch"
    on_cpu: bool = False
    loads_whole: bool = False
    """Whether each process loads the whole model under every strategy, since its adapter begins with its weights."""

    @property
    def tokens(self) -> int:
        """Tokens of one forward and backward pass."""
        return self.per_device * self.sequences_per_row * self.length

    @property
    def logits_per_token(self) -> int:
        return 1 if self.has_score else self.spec.vocab_size

    @property
    def kept_blocks(self) -> int:
        """Decoder blocks that keep their activations: without checkpointing all of them."""
        blocks = self.spec.num_layers
        return blocks if self.checkpointing == "false" else min(self.keep_activations, blocks)

    @property
    def recomputed(self) -> float:
        """Share of the decoder blocks whose forward pass is computed again in the backward one."""
        blocks = self.spec.num_layers
        return (blocks - self.kept_blocks) / max(blocks, 1)

    @property
    def intermediate(self) -> int:
        """Width of the MLP that one token passes."""
        spec = self.spec
        if not spec.measured:
            return spec.block_width
        if not spec.num_experts:
            return max(spec.intermediate_size, 1)
        return (spec.moe_intermediate_size or spec.intermediate_size) * spec.experts_per_token

    @property
    def weight_bytes(self) -> int:
        # Unsloth puts the experts in 4 bit too, transformers alone would not.
        return self.spec.weight_bytes(self.load_in_4bit, self.dtype_bytes, experts_in_4bit=True)

    @cached_property
    def block_bytes(self) -> float:
        """Bytes of the largest decoder block; in 4 bit, of an average one."""
        if self.in_4bit:
            return (self.weight_bytes - self.outer_bytes) / max(self.spec.num_layers, 1)
        return self.spec.layer_parameters * self.dtype_bytes

    @cached_property
    def outer_bytes(self) -> int:
        """Bytes of input embeddings and lm_head, which are never in 4 bit."""
        return (self.spec.embedding_parameters + self.spec.lm_head_parameters) * self.dtype_bytes

    @property
    def head_bytes(self) -> int:
        """Bytes of the output head, which is the input embeddings where the two are tied."""
        return (self.spec.lm_head_parameters or self.spec.embedding_parameters) * self.dtype_bytes

    @property
    def is_tied(self) -> bool:
        """Whether the output head is the input embeddings."""
        return not self.spec.lm_head_parameters and not self.has_score

    @property
    def in_4bit(self) -> bool:
        """Whether the base weights are in 4 bit."""
        return self.load_in_4bit or self.spec.quantization == "bnb-4bit"


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """GiB on each GPU. `terms` add up to `total`, the most that the GPU must have free."""

    terms: dict[str, float]
    loading: float
    """GiB allocated by torch at the peak of loading and sharding."""
    training: float
    """GiB allocated by torch at the peak of a training step."""
    host_gib: float = 0.0
    """GiB of the machine's memory per process: activations that Unsloth offloads to it."""

    @property
    def total(self) -> float:
        return sum(self.terms.values())

    @property
    def least(self) -> float:
        """GiB that it may be, if the estimate is as much too high as it ever was wrong."""
        return self.total * (1 - WORST_ERROR)

    @property
    def held(self) -> float:
        """GiB that torch's allocator will hold: all but what CUDA itself takes."""
        return self.total - self.terms.get("context", 0.0)

    @property
    def allocated(self) -> float:
        """GiB that torch's `max_memory_allocated` will report."""
        return max(self.loading, self.training)

    def to_dict(self) -> dict[str, float]:
        return {"total": round(self.total, 3), **{name: round(value, 3) for name, value in self.terms.items()}}


def estimate(work: Workload, strategy: str, num_processes: int, *, free_gib: float = 1e9) -> MemoryEstimate:
    """Estimate the memory that `work` takes on each of `num_processes` GPUs under `strategy`, in GiB.

    `free_gib` is the GPU's memory, which bounds the chunks of the fused loss. Terms: `weights` (frozen, in the dtype
    they are loaded in), `lora`, `gradients` (float32 as Unsloth keeps the adapter), `optimizer`, `gradient_buckets`
    (DDP's own copy of the gradients), `unsharded_units` (weights that FSDP has gathered at the peak), `dequantized`
    (4-bit weights on their way through a matmul), `activations`, `logits` (the fused loss where it is the larger
    peak), `evaluation_excess`, `generation_excess` and `loading_excess` (their peaks above training's), `other`,
    `fragmentation`, `context`.
    Saving has none: it copies adapter and optimizer while no activations are held.
    """
    record = STRATEGIES[strategy]
    shards = num_processes if record.shards_weights else 1
    whole_lora = record.whole_adapter_share > 0
    whole_lora = whole_lora and work.lora_parameters <= record.whole_adapter_share * work.spec.num_parameters
    lora = 4 * work.lora_parameters
    lora_shards = 1 if whole_lora else shards
    terms = {
        "weights": work.weight_bytes / shards,
        "lora": lora / lora_shards,
        "gradients": lora / lora_shards,
        "optimizer": OPTIMIZER_BYTES.get(optimizer_for(strategy, work.optim), 8) * work.lora_parameters / lora_shards,
    }
    if record.gradient_buckets or whole_lora:
        terms["gradient_buckets"] = lora
    kept, block = _activations(work)
    logits = _logits(work, free_gib)
    # One weight in use and the next one's buffer (unsloth/kernels/utils.py: WEIGHT_BUFFERS); fitted, 1.7 to 2.4.
    dequantized = 2.0 * work.spec.largest_linear * work.dtype_bytes if work.in_4bit else 0.0
    gathered = record.gathered_blocks * work.block_bytes
    if shards > 1 and (record.gathers_outer or work.is_tied):
        # Accelerate's plugin makes of tied embeddings and the last norm one unit, which it never gives back within a
        # step (accelerate/utils/fsdp_utils.py: `fsdp2_prepare_model`).
        terms["unsharded_units"] = work.outer_bytes + gathered
        if record.gathers_outer and not record.flattens:
            # The forward pass begins with both twice: FSDP2 lets go of what NCCL gathered when it has gathered the next
            # unit (torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py: `wait_for_unshard`).
            first = 2 * work.outer_bytes + work.block_bytes
            first -= kept + max(block, logits) + terms["gradients"] + dequantized
            terms["unsharded_units"] = max(terms["unsharded_units"], first)
    elif shards > 1:
        # Beside the loss one block's buffers less, and the output head; GRPO's, which reads the head after the model
        # has returned, lets it stay (adapters/fsdp2/shard.py).
        head = work.head_bytes if work.logits == "scored" else 0
        peak = max(block + gathered + head, logits + gathered - work.block_bytes + work.head_bytes)
        terms["unsharded_units"] = peak - max(block, logits)
        if work.logits == "tiled":
            # TRL gathers the head for itself (trl/trainer/utils.py: `weight.full_tensor()`), and the loss keeps that
            # copy for an entropy's gradient (unsloth_zoo/fused_losses/fused_linear.py: `ent_lazy`). That it is still
            # there beside a block's backward is taken from the one cell that was measured.
            terms["unsharded_units"] += work.head_bytes
    terms["dequantized"] = dequantized
    terms["activations"] = kept + block
    terms["logits"] = max(0.0, logits - block)
    terms["other"] = OTHER_GIB * GIB
    # There are no gradients then, and no block keeps anything.
    evaluation = _evaluation(work, free_gib) - kept - max(block, logits) - terms["gradients"]
    terms["evaluation_excess"] = max(0.0, evaluation)
    # Held-out completions are fewer at once, or as many.
    generation = generation_bytes(work, record, shards) - kept - max(block, logits) - terms["gradients"]
    generation -= terms.get("unsharded_units", 0.0) + terms["evaluation_excess"]
    terms["generation_excess"] = max(0.0, generation)
    training = sum(terms.values())
    loading = _loading(work, record, num_processes)
    terms["loading_excess"] = max(0.0, loading - training)
    if not work.on_cpu:
        share, of_kept = record.fragmentation, record.fragmentation_of_kept
        fragments = share * (training - kept) + (share if of_kept is None else of_kept) * kept
        held = max(loading * (1 + usual(1).fragmentation), training + fragments)
        terms["fragmentation"] = held - max(loading, training)
        terms["context"] = (CONTEXT_GIB + (NCCL_GIB if num_processes > 1 else 0.0)) * GIB
    offloaded = work.tokens * work.spec.hidden_size * 2 * (work.spec.num_layers - work.kept_blocks)
    return MemoryEstimate(
        terms={name: value / GIB for name, value in terms.items() if value > 0},
        loading=loading / GIB,
        training=training / GIB,
        host_gib=offloaded / GIB if work.checkpointing == "unsloth" and not work.on_cpu else 0.0,
    )


def _activations(work: Workload) -> tuple[float, float]:
    """Return bytes of activations at the peak, in the backward pass of one block: those that are kept from the forward
    pass, and those inside that one."""
    spec, kept = work.spec, work.kept_blocks
    intermediate, hidden = _one_copy(work, work.intermediate), _one_copy(work, spec.hidden_size)
    each, checkpointed = _kept_per_block(work), spec.num_layers - kept
    held, inside = kept * each, []
    if kept:
        inside.append(KEPT_INSIDE_INTERMEDIATE * intermediate + KEPT_INSIDE_HIDDEN * hidden)
    if work.reference_passes:  # beside what the trained pass has kept
        inside.append(EVAL_INTERMEDIATE * intermediate + EVAL_HIDDEN * hidden)
    if checkpointed:
        block = BLOCK_INTERMEDIATE * intermediate + BLOCK_HIDDEN * hidden
        # The last block keeps its activations if any does, and has let go of them when one is computed again.
        inside.append(block - (each if kept else 0.0))
    if work.pads and not work.on_cpu:
        inside = [peak + COMPILED_INTERMEDIATE * intermediate for peak in inside]
    offloaded = checkpointed and work.checkpointing == "unsloth"
    if work.checkpointing == "true" or work.on_cpu:
        held += checkpointed * hidden
    return held, max(inside, default=0.0) + (OFFLOAD_HIDDEN * hidden if offloaded else 0.0)


def _kept_per_block(work: Workload) -> float:
    """Return the bytes that a block keeps from its forward to its backward pass."""
    spec = work.spec
    query, key = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    width = KEPT_INTERMEDIATE * work.intermediate + KEPT_HIDDEN * spec.hidden_size + KEPT_QUERY * query + 2 * key
    if spec.has("q_norm.weight"):
        width += query + key
    if spec.has("q_proj.bias"):
        width += BIAS_HIDDEN * spec.hidden_size
    return _one_copy(work, width)


def _one_copy(work: Workload, width: float) -> float:
    """Return the bytes of (tokens × width) activations."""
    return work.tokens * width * (4 if work.dtype_bytes == 4 else 2)


def _evaluation(work: Workload, free_gib: float) -> float:
    """Return the bytes of activations and logits in an evaluation, which goes by Unsloth's fused loss as training does
    where only the loss is asked for (unsloth/models/rl.py: prediction_step)."""
    rows = 2 * work.per_device if work.eval_rows is None else work.eval_rows
    evaluated = replace(work, per_device=rows)
    if work.on_cpu and work.logits in ("fused", "scored"):
        return evaluated.tokens * work.logits_per_token * (work.dtype_bytes + 4.0)
    width = EVAL_INTERMEDIATE * work.intermediate + EVAL_HIDDEN * work.spec.hidden_size
    return max(_one_copy(evaluated, width), _logits(evaluated, free_gib))


def _logits(work: Workload, free_gib: float) -> float:
    """Return the bytes that the loss takes at its peak.

    Of the fused cross entropy on a GPU one chunk: the chunks are counted as `get_chunk_size` counts them
    (unsloth_zoo/fused_losses/cross_entropy_loss.py). On a CPU transformers' own loss, with all logits in the model's
    dtype, in float32 and their gradient; so counts GRPO's there, which isn't Unsloth's.
    """
    logits = work.tokens * work.logits_per_token
    if work.logits == "whole":
        return logits * WHOLE_LOGIT_BYTES
    if work.logits == "scored" and not work.on_cpu:
        scored = work.per_device * (work.generated_tokens or work.length)
        fitting = min(SCORED_GIB, free_gib / 2) * GIB / (8 * work.logits_per_token)
        rows = min(fitting, max(SCORED_ROWS, scored / SCORED_PARTS), scored)
        return rows * work.logits_per_token * SCORED_LOGIT_BYTES + TILE_HIDDEN * _one_copy(work, work.spec.hidden_size)
    if work.logits == "tiled":
        tile = min(work.tokens, CPU_TILE_ROWS) * work.logits_per_token * (work.dtype_bytes + 8.0)
        tile = tile if work.on_cpu else min(logits * 4, TILE_GIB * GIB)
        return tile + TILE_HIDDEN * _one_copy(work, work.spec.hidden_size)
    if work.on_cpu:
        return logits * (work.dtype_bytes + 8.0)
    target = max(min(CHUNK_TARGET_GIB, free_gib / 2), 1e-3)
    exact = logits * 16 / GIB / target
    chunks = 1 if exact <= 1 else min(ceil(exact / 4) * 4, work.tokens)
    return logits / chunks * LOGIT_BYTES + LOSS_HIDDEN * _one_copy(work, work.spec.hidden_size)


def _loading(work: Workload, strategy: Strategy, num_processes: int) -> float:
    """Return the bytes allocated at the peak before the first step."""
    lora = 4 * work.lora_parameters
    whole = work.weight_bytes + lora
    largest = work.spec.largest_tensor * work.dtype_bytes
    if strategy.loading == "sent":
        # A tensor that fills a bucket alone is sent where it is, as the embedding, which comes first, was in every cell
        # measured. A head of its own comes last, into what is left of a bucket, and is copied with it.
        head = work.spec.lm_head_parameters * work.dtype_bytes
        return whole + min(whole, head + DDP_BUCKETS_GIB * GIB)
    if strategy.loading == "cut":
        return whole * (1 + 1 / num_processes)
    in_16_bit = not work.in_4bit and work.spec.quantization is None
    if work.spec.num_experts or work.loads_whole:
        return whole
    if strategy.loading == "shards" or (strategy.loading == "16-bit shards" and in_16_bit):
        # Linear weights are read as shards, everything else whole (unsloth/models/fsdp2_load.py), and the largest of
        # these is there twice while it is cut.
        return (work.weight_bytes - work.outer_bytes) / num_processes + work.outer_bytes + largest + lora
    return whole
