"""Out of memory in the middle of training: the step is done again in smaller pieces, and the run goes on.

Mends, with any torch: one GPU that runs out of memory raises in its forward or backward pass, while its peers wait for
its gradients in the all-reduce that DDP started inside of theirs. Catching the error doesn't help, since DDP can't
begin a second backward pass before the all-reduces of the first are done; so the run dies, or hangs until NCCL does.

Here DDP's own averaging is off (`no_sync` in every micro-batch) and gradients are averaged after the last one, with one
all-reduce. Nothing is shared before a rank's gradients are whole, so a rank may compute its part as often as it must:
it drops the half-made gradients, frees what it can, and repeats the step's micro-batches: first with fewer decoder
blocks that keep their activations, which costs the least time, and once all recompute, in halves. The loss is weighted
by tokens, so halves add up to the same. Peers wait in the one all-reduce, which also tells them: from then on every
rank does the same, and the rows per step stay what they were.

Under FSDP2 the same holds where weights are fetched from the peers' memory (`adapters.fsdp2.peer_fetch`), who need not
take part in it; FSDP2 is brought back to where a step begins. Where weights are gathered by NCCL every forward pass
meets the peers, so a rank can't repeat it alone: there the run ends, saying what helps.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..capabilities.probe import available
from ..errors import UnslothAccelError, counted
from .fsdp2 import native
from .fsdp2.peer_fetch import fetch
from .fsdp2.peer_fetch.peer_reach import SWITCH
from .fsdp2.units import units_of
from .generating import writes_completions
from .hook_types import Arguments, Control, State, TrainerCallback
from .kept_activations import count_anew, keep, kept
from .lack_of_memory import is_lack_of_memory
from .micro_batches import parts_add_up, rows_and_tokens, split
from .rank_checks import distributed_type, is_sharded, trainable
from .written_steps import WrittenSteps, why_whole

if TYPE_CHECKING:
    import torch
    from torch.distributed.fsdp import FSDPModule
    from transformers import Trainer

LOWERED = 2
"""Stages in which blocks stop keeping their activations: half of them, then the rest."""
MOST_HALVINGS = 10
"""Stages after them, in each of which micro-batches are halved."""
OWN_AVERAGING = (
    *("ddp_static_graph", "ddp_broadcast_buffers", "ddp_bucket_cap_mb"),
    *("static_graph", "gradient_as_bucket_view"),
)
"""Settings, of the Trainer and of accelerate's DDP, that mean something for DDP's own averaging only."""
BUFFERS = {
    "unsloth_zoo.gradient_checkpointing": ("GPU_BUFFERS", "GPU_BUFFERS_B"),
    "unsloth.kernels.utils": ("WEIGHT_BUFFERS", "ABSMAX_BUFFERS"),
}
"""Tensors that Unsloth keeps and lets grow, by module: lists with one for each GPU, or None."""
_FIGURES = ("gather_for_metrics", "gather", "reduce")
"""Methods of accelerate's Accelerator by which losses of TRL and Unsloth gather figures for the log."""
MEETING = "where weights are gathered every forward pass meets the other ranks, so none can repeat it alone"
ADVICE = "shorter rows, the base model in 4 bit, or more GPUs that divide it (fsdp2)"


class OutOfMemory(UnslothAccelError):
    """A step doesn't fit, however small its pieces are."""


@dataclass(frozen=True, kw_only=True)
class Halving:
    """What happened once: from `step` on `keep_activations` blocks keep their activations, and each micro-batch is
    computed in `parts` parts."""

    step: int
    """The optimizer step, counted from 1, in which it happened; 0 in the rehearsal."""
    rank: int
    keep_activations: int
    parts: int
    rows: int
    tokens: int
    """Tokens of the micro-batch, or the part of one, that was too large; padding included."""

    def __str__(self) -> str:
        rows = f"{self.rows} rows ({self.tokens:,} tokens)"
        what = f"out of memory in {named(self.step)}, with {rows} at once. The step is"
        if self.parts == 1:
            fewer = counted(self.keep_activations, "decoder block")
            return f"{what} done again, and from here on every rank keeps the activations of {fewer} only; rows stay."
        return (
            f"{what} done again, and from here on every rank computes 1/{self.parts} as many rows at once, in "
            f"{self.parts} times as many micro-batches; the rows per step stay."
        )


def named(step: int) -> str:
    """Return how a `Halving.step` is called."""
    return f"step {step}" if step else "the rehearsal"


class StepHalving:
    """A training step of a Trainer that begins again, with fewer activations kept or half the rows, where memory is
    out.

    `stage`: how many times something was lowered, which ranks agree on. `halvings`: what happened on this rank.
    `reason`: why it can't be done after all, known in the first step; None where it can. `rehearses`: whether the
    steps are those of a rehearsal, and none of the run's.
    """

    def __init__(self, trainer: Trainer, advice: str = ADVICE) -> None:
        self.halvings: list[Halving] = []
        self.reason: str | None = None
        self.rehearses = False
        self.stage = 0
        self.listeners: list[Callable[[Halving], None]] = []
        self.timers: list[Callable[[str], None]] = []
        """Called with `ready` when this rank's gradients are whole and with `averaged` when all ranks' are."""
        self._trainer = trainer
        self._advice = advice
        self._done: list[Mapping[str, Any]] = []
        self._written = WrittenSteps(trainer) if writes_completions(trainer) else None
        self._plain = self._written.part if self._written else trainer.training_step
        self._first = True
        self._kept_at_first: int | None = None
        self._needed: StageNeeded | None = None
        self._tokens: int | None = None
        self._units: list[FSDPModule] = []

    @property
    def parts(self) -> int:
        """The parts in which each micro-batch is computed now."""
        return int(2 ** max(0, self.stage - LOWERED))

    @property
    def _step(self) -> int:
        return 0 if self.rehearses else self._trainer.state.global_step + 1

    def forget(self) -> None:
        """Drop the micro-batches of the step that was begun."""
        self._done.clear()
        if self._written:
            self._written.forget()

    def can_go_on(self, model: torch.nn.Module) -> bool:
        """Return whether a lack of memory ends nothing, which is known once `model` is prepared."""
        if self._first:
            self._first = False
            self.reason = _meeting(model) if self._trainer.accelerator.num_processes > 1 else None
            self._units = units_of(model)
            if self.reason is not None and self._trainer.accelerator.is_main_process:
                print(f"out of memory would end the run: {self.reason}", flush=True)
        return self.reason is None

    def fits(self, model: torch.nn.Module, micro_batches: Sequence[Mapping[str, Any]], items: Any) -> bool:
        """Return whether this rank has memory for the gradients of a step of `micro_batches`, and drop them."""
        try:
            with self._alone(model):
                for inputs in micro_batches:
                    self._plain(model, dict(inputs), items)
            enough = True
        except RuntimeError as error:
            if not is_lack_of_memory(error):
                raise
            enough = False
        if not enough:  # only here, as in `_compute`
            self.make_room(model)
        model.zero_grad(set_to_none=True)
        return enough

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None, *rest: Any
    ) -> torch.Tensor:
        """One micro-batch, in `parts` parts; after a step's last one the gradients of all ranks are averaged."""
        if not self.can_go_on(model):
            return self._plain(model, inputs, num_items_in_batch, *rest)
        several = self._trainer.accelerator.num_processes > 1
        if not self._done:
            self._tokens = getattr(self._trainer, "_total_train_tokens", None)
            # The stage that some rank needs, once its word has arrived.
            if self._needed is not None and self._needed.arrived():
                self._lower(self._needed.stage)
                self._needed = None
        if self._written:
            inputs = self._written.written(model, inputs)
        with self._alone(model):
            loss = self._compute(model, inputs, num_items_in_batch, rest)
        self._done.append(inputs)
        if self._written:
            self._written.end()
        if self._trainer.accelerator.sync_gradients:
            self._done.clear()
            if self._written:
                self._written.share()
            if several:
                self._time("ready")
                self._needed = average([p for p in model.parameters() if p.requires_grad], self.stage)
                self._time("averaged")
                self._count_tokens()
        return loss

    def _compute(
        self, model: torch.nn.Module, inputs: dict[str, Any], items: Any, rest: tuple[Any, ...]
    ) -> torch.Tensor:
        """The loss of `inputs`, whose gradients are added to those of this step's earlier micro-batches."""
        earlier: list[Mapping[str, Any]] = []
        while True:
            try:
                for part in self._parts_of(earlier):
                    self._plain(model, part, items, *rest)
                losses = [self._plain(model, part, items, *rest) for part in self._parts_of([inputs])]
            except RuntimeError as error:
                if not is_lack_of_memory(error) or (items is None and not self._written):
                    raise
                message = str(error).splitlines()[0]
            else:
                total: torch.Tensor = sum(losses[1:], losses[0])
                return total
            # Only here, with the error gone and all that its frames held, is there something to free.
            self.make_room(model)
            rows, tokens = max(map(rows_and_tokens, self._parts_of([*self._done, inputs])))
            halves = self.stage >= LOWERED or kept(self._trainer.model) == 0
            if halves and (rows == 1 or self.stage == LOWERED + MOST_HALVINGS):
                raise OutOfMemory(
                    f"out of memory in {named(self._step)} with a single row of {tokens:,} tokens at once "
                    f"({message}). Fix: {self._advice}."
                )
            self._go_on_with_less(rows, tokens)
            earlier = list(self._done)

    def _parts_of(self, micro_batches: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        if self.parts == 1:
            return list(map(dict, micro_batches))
        return [part for one in micro_batches for part in split(one, self.parts)]

    def make_room(self, model: torch.nn.Module) -> None:
        """Drop the gradients of a step that ran out of memory, and free what can be."""
        from accelerate.utils.memory import clear_device_cache

        # A backward pass that was cut short has added to some gradients and not to others.
        model.zero_grad(set_to_none=True)
        if hasattr(model, "unshard"):
            fetch.start_over(model)
        _empty_half_grown()
        count_anew()  # a forward pass that was cut short has counted some of its blocks
        clear_device_cache(garbage_collection=True)
        if self._tokens is not None:
            self._trainer._total_train_tokens = self._tokens

    def _lower(self, stage: int) -> None:
        """Reach `stage`, unless a later one is reached already."""
        if stage <= self.stage:
            return
        if self._kept_at_first is None:
            self._kept_at_first = kept(self._trainer.model)
        self.stage = stage
        count = self._kept_at_first // 2 if stage == 1 else 0
        if count != kept(self._trainer.model):
            keep(self._trainer.model, count)

    def _go_on_with_less(self, rows: int, tokens: int) -> None:
        blocks = kept(self._trainer.model)
        lowers = 1 if blocks > 1 else LOWERED if blocks else LOWERED + 1  # of a single one there is no half
        self._lower(max(self.stage + 1, lowers))
        happened = Halving(
            step=self._step,
            rank=self._trainer.accelerator.process_index,
            keep_activations=kept(self._trainer.model),
            parts=self.parts,
            rows=rows,
            tokens=tokens,
        )
        rank = happened.rank
        self.halvings.append(happened)
        print(f"unsloth_accel: rank {rank}: {happened}", file=sys.stderr, flush=True)
        for listener in self.listeners:
            listener(happened)

    def _time(self, mark: str) -> None:
        for timer in self.timers:
            timer(mark)

    @contextmanager
    def _alone(self, model: Any) -> Iterator[None]:
        """Inside, nothing that this rank does meets another: a rank that repeats its part does more than its peers.

        TRL's loss gathers figures for its log in every micro-batch, which then are those of the rank's own rows.
        """
        accelerator = self._trainer.accelerator
        if accelerator.num_processes == 1:
            yield
            return
        if hasattr(model, "require_forward_param_sync"):
            model.require_forward_param_sync = False  # DDP's first forward pass would send buffers
        for unit in self._units:  # Unsloth's averaging of what FSDP2 leaves whole heeds it
            # One by one: FSDP2's own walk over all modules takes milliseconds, in which the GPU has nothing to do.
            unit.set_requires_gradient_sync(False, recurse=False)
        try:
            with own_figures(accelerator), model.no_sync() if hasattr(model, "no_sync") else nullcontext():
                yield
        finally:
            for unit in self._units:
                unit.set_requires_gradient_sync(True, recurse=False)

    def _count_tokens(self) -> None:
        """Make TRL's count of tokens that of all ranks again; Unsloth's trainer on GPUs keeps none."""
        trainer = self._trainer
        if self._tokens is None or trainer._total_train_tokens == self._tokens:
            return
        import torch

        own = torch.tensor(trainer._total_train_tokens - self._tokens, device=trainer.accelerator.device)
        trainer._total_train_tokens = self._tokens + int(trainer.accelerator.gather(own).sum())
        trainer._metrics["train"]["num_tokens"] = [trainer._total_train_tokens]


@contextmanager
def own_figures(accelerator: Any) -> Iterator[None]:
    """Inside, the figures that a loss gathers for the log are this rank's own: it may fail, or repeat, alone."""
    for name in _FIGURES:
        setattr(accelerator, name, lambda value, *_, **__: value)
    try:
        yield
    finally:
        for name in _FIGURES:
            delattr(accelerator, name)


class StepBegins(TrainerCallback):
    """Forgets the micro-batches of a step that was begun and never ended: an interrupted training may be begun anew."""

    def __init__(self, halving: StepHalving) -> None:
        self._halving = halving

    def on_step_begin(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        self._halving.forget()


def halve_on_out_of_memory(trainer: Trainer, advice: str = ADVICE) -> StepHalving | str:
    """Have `trainer` go on where a step runs out of memory; returns what watches over it, or why it can't be done.

    Call it once, before `trainer.train()`, on every rank. Training raises `OutOfMemory`, with `advice`, where not even
    a single row fits.
    """
    several = trainer.accelerator.num_processes > 1
    # Weights that FSDP2 divides are fetched from the peers where they can be.
    fetched = getattr(trainer.accelerator, "is_fsdp2", False) and os.environ.get(SWITCH) != "0"
    if several and (native.requested() or not (distributed_type().startswith("MULTI_") or fetched)):
        return MEETING
    for name in OWN_AVERAGING if several else ():
        if getattr(trainer.args, name, None) or getattr(trainer.accelerator.ddp_handler, name, None):
            return f"{name} is a setting of DDP's own averaging, which this replaces"
    if writes_completions(trainer):
        if several and not distributed_type().startswith("MULTI_"):
            return "completions are written with weights that are gathered, so none can repeat a step alone"
        if why := why_whole(trainer):
            return why
    if not parts_add_up(trainer):
        return "the loss of a micro-batch is a mean over its rows, so those of its parts don't add up to it"
    if os.environ.get("UNSLOTH_TOKEN_BUDGET"):
        return "under UNSLOTH_TOKEN_BUDGET ranks meet in every micro-batch"
    available("TRL's count of tokens")
    if not available("a step done again"):
        return "the installed packages lack a name that going on needs"
    halving = StepHalving(trainer, advice)
    trainer.add_callback(StepBegins(halving))
    trainer.training_step = halving.training_step
    trainer.step_halving = halving
    return halving


def _meeting(model: torch.nn.Module) -> str | None:
    """Why ranks meet inside of a prepared model's passes; None where they don't."""
    if not hasattr(model, "unshard"):  # whole on every rank
        return None
    if not fetch.meets_nowhere(model):
        return MEETING
    if any(map(is_sharded, trainable(model).values())):
        return "the adapter is divided, too, and its gradients are averaged inside of the backward pass"
    return None


class StageNeeded:
    """What the ranks told each other with their gradients; the computation goes on while it travels."""

    def __init__(self, needed: torch.Tensor) -> None:
        import torch

        on_gpu = needed.is_cuda
        self._needed = torch.empty(needed.shape, dtype=needed.dtype, pin_memory=on_gpu)
        self._needed.copy_(needed, non_blocking=True)
        self._event = torch.cuda.Event() if on_gpu else None
        if self._event is not None:
            self._event.record()

    def arrived(self) -> bool:
        return self._event is None or bool(self._event.query())

    @property
    def stage(self) -> int:
        """The furthest stage that a rank has reached."""
        return max(stage for stage, ranks in enumerate(self._needed.tolist()) if ranks)


def average(params: Sequence[torch.nn.Parameter], stage: int) -> StageNeeded:
    """Average the gradients of `params` over all ranks, in place; every rank calls it, with the same parameters.

    A gradient that only some ranks have counts as zero on the others, and one that none has stays away, as under DDP.
    Every rank is told of `stage`.
    """
    import torch
    import torch.distributed as dist

    sizes = [parameter.numel() for parameter in params]
    total, count = sum(sizes), len(params)
    flat = torch.zeros(total + count + LOWERED + MOST_HALVINGS + 1, dtype=torch.float32, device=params[0].device)
    pieces = list(flat[:total].split(sizes))
    here = [index for index, parameter in enumerate(params) if parameter.grad is not None]
    gradients = [params[index].grad.view(-1) for index in here]
    if here:
        torch._foreach_copy_([pieces[index] for index in here], gradients)
    if len(here) == count:
        flat[total : total + count].fill_(1)
    else:
        flat[total : total + count] = torch.tensor([float(parameter.grad is not None) for parameter in params])
    flat[total + count + stage].fill_(1)
    dist.all_reduce(flat)
    flat[:total].div_(dist.get_world_size())
    if here:
        torch._foreach_copy_(gradients, [pieces[index] for index in here])
    if len(here) < count:
        had = flat[total : total + count].tolist()
        for index, parameter in enumerate(params):
            if parameter.grad is None and had[index]:
                parameter.grad = pieces[index].view_as(parameter).to(parameter.dtype, copy=True)
    return StageNeeded(flat[total + count :])


def _empty_half_grown() -> None:
    """Empty those of Unsloth's buffers that were about to grow: torch notes a new size before it takes the memory."""
    for module, names in BUFFERS.items():
        for name in names:
            for buffer in getattr(sys.modules.get(module), name, None) or ():
                if buffer is not None and buffer.numel() * buffer.element_size() > buffer.untyped_storage().nbytes():
                    buffer.resize_(0)
