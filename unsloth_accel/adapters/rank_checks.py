"""The checks of a run's first step: the world is the one that was promised, and all ranks hold the same weights.

A process that trains alone, or whose gradients are not averaged, looks healthy in its own log. These checks compare
bits over ranks, so they have no tolerance and no false alarm: DDP gives every rank the same averaged gradient, and
the same optimizer makes the same step from it.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UnslothAccelError
from ..strategies import STRATEGIES, strategy_of, usual
from .environment import world_size

if TYPE_CHECKING:
    import torch

    from ..config.promise import Promise


AT_ONCE = 2**20
"""Elements whose checksums are taken together; each is 8 bytes then, three times."""


class GuardError(UnslothAccelError):
    """What runs is not what was asked for; the run stops before it trains silently wrong."""

    def __init__(self, message: str, on_every_rank: bool = False) -> None:
        super().__init__(message)
        self.on_every_rank = on_every_rank


def check_world(promised: Promise) -> None:
    """Compare Accelerate's view of this run with what was promised; raises `GuardError` with every difference."""
    from accelerate import PartialState

    state = PartialState()
    running = distributed_type()
    wrong = []
    if state.num_processes != promised.num_processes:
        wrong.append(f"{promised.num_processes} processes were promised, Accelerate sees {state.num_processes}")
    if running == "NO" and world_size() > 1:
        wrong.append(f"{world_size()} processes were started but form no group: each would train alone")
    kind = "FSDP" if running == "FSDP" else "MULTI_" if running.startswith("MULTI_") else "NO"
    # Unsloth shards natively in what Accelerate takes for DDP.
    if promised.strategy is not None and kind != STRATEGIES[promised.strategy].distributed_type.removesuffix("GPU"):
        wrong.append(f"strategy {promised.strategy} was promised, Accelerate runs {running}")
    if promised.device is not None and state.device.type != promised.device:
        wrong.append(f"device {promised.device} was promised, this process runs on {state.device.type}")
    if wrong:
        raise GuardError(
            f"{'; '.join(wrong)} (promised by {promised.made_by}). Fix: launch with `unsloth-accel launch`, or import "
            "unsloth_accel before unsloth, transformers and accelerate."
        )


def check_sharded(promised: Promise, model: torch.nn.Module) -> None:
    """Raise `GuardError` when a strategy that divides the weights was promised and `model` is whole on every rank."""
    strategy = STRATEGIES.get(promised.strategy)
    if strategy is None or not strategy.shards_weights or strategy.flattens:
        return
    if not any(map(is_sharded, model.parameters())):
        raise GuardError(
            f"strategy {promised.strategy} was promised and no weight is sharded: every GPU holds the whole model "
            f"(promised by {promised.made_by}). Fix: launch with `unsloth-accel launch`, and import unsloth_accel "
            "before unsloth, transformers and accelerate.",
            on_every_rank=True,
        )


def check_equal(tensors: Mapping[str, torch.Tensor], what: str) -> int | None:
    """Raise `GuardError` on every rank unless `tensors` hold the same bits on all of them; returns how many they are.

    `what` names them: "gradients". Does nothing, and returns None, in one process, and under FSDP1 and DeepSpeed, whose
    ranks hold different shards by design; single sharded tensors (DTensor) are left out for the same reason.
    """
    import torch
    from accelerate import PartialState
    from accelerate.utils import gather

    state = PartialState()
    if state.num_processes == 1 or not (distributed_type().startswith("MULTI_") or _is_fsdp2()):
        return None
    whole = {name: tensor for name, tensor in tensors.items() if not is_sharded(tensor)}
    # The first entry is the number of tensors, so that ranks with other tensors differ instead of hanging.
    count = torch.tensor([len(whole)], device=state.device)
    mine = torch.cat([count, _checksums(list(whole.values()), state.device)[: _smallest(len(whole))]])
    everyone: torch.Tensor = gather(mine.unsqueeze(0))
    same = (everyone == everyone[0]).all(dim=0)
    if bool(same.all()):
        return len(whole)
    names = ["(their number)", *whole]
    different = [name for name, equal in zip(names, same.tolist(), strict=False) if not equal]
    raise GuardError(
        f"{what} differ between ranks in {len(different)} of {len(whole)} tensors, first {different[0]}: the ranks "
        "are not synchronised and would train different models. Fix: let Accelerate wrap the model (don't put "
        "DistributedDataParallel around it, don't call the inner model in the loss).",
        on_every_rank=True,
    )


def trainable(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The trainable parameters of `model` by name."""
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The gradients of the trainable parameters of `model` by name; those without one are left out."""
    named: Iterable[tuple[str, Any]] = model.named_parameters()
    return {name: p.grad.detach() for name, p in named if p.requires_grad and p.grad is not None}


def _checksums(tensors: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Return for each tensor a 64-bit sum over its bits, weighted by position, on `device`: equal ones agree, others
    almost surely don't. Tensors that are alike are summed together, since an adapter has hundreds of small ones."""
    import torch

    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    alike: dict[Any, list[int]] = defaultdict(list)
    for index, tensor in enumerate(tensors):
        alike[tensor.device, tensor.dtype, tensor.numel()].append(index)
    sums = torch.zeros(len(tensors), dtype=torch.int64, device=device)
    for (where, _, size), indices in alike.items():
        # By an odd multiplier below 2**31; products wrap around, which a checksum may.
        weights = torch.arange(size, device=where, dtype=torch.int64) * 0x5851_F42D + 1
        most = max(1, AT_ONCE // max(size, 1))
        for start in range(0, len(indices), most):
            chosen = indices[start : start + most]
            bits = torch.stack(
                [tensors[i].contiguous().view(-1).view(integers[tensors[i].element_size()]) for i in chosen]
            )
            sums[torch.tensor(chosen, device=device)] = (bits.to(torch.int64) * weights).sum(1).to(device)
    return sums


def _smallest(count: int) -> int:
    """The smallest `count` over all ranks, so that every rank gathers the same shape."""
    import torch
    from accelerate import PartialState

    if not torch.distributed.is_initialized():
        return count
    smallest = torch.tensor(count, device=PartialState().device)
    torch.distributed.all_reduce(smallest, op=torch.distributed.ReduceOp.MIN)
    return int(smallest)


def distributed_type() -> str:
    """Accelerate's word for how this run is distributed: NO, MULTI_GPU, FSDP, …

    Read from the state: only AcceleratorState knows FSDP and DeepSpeed, and where one GPU is visible Unsloth before
    2026.9 makes `Accelerator.distributed_type` a function.
    """
    from accelerate import PartialState
    from accelerate.state import AcceleratorState, is_initialized

    state = AcceleratorState() if is_initialized() else PartialState()
    return str(state.distributed_type.value)


def running() -> str:
    """The name of the strategy that runs, or Accelerate's word in small letters where it is none of `STRATEGIES`."""
    kind = distributed_type()
    if kind == "NO":
        return usual(1).name
    if kind == "FSDP" or kind.startswith("MULTI_"):
        return strategy_of(kind, 2 if _is_fsdp2() else 1, os.environ).name
    return kind.lower()


def _is_fsdp2() -> bool:
    from accelerate.state import AcceleratorState, is_initialized

    return is_initialized() and bool(AcceleratorState().is_fsdp2)


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether this rank holds only a part of `tensor` (a DTensor)."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` with all ranks' parts; a collective if it is sharded."""
    full: torch.Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor
    return full
