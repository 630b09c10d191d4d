"""AggregationMethod: how the gradients of several ranks become one, as communication hooks of DDP.

DDP hands a hook each bucket of gradients and takes back what every rank is to step with
(https://docs.pytorch.org/docs/stable/ddp_comm_hooks.html).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class AggregationMethod(str, Enum):
    """How gradients are put together. Each rank's own is the mean over the tokens that it learns from in a step."""

    MEAN = "mean"
    """Mean over ranks, as DDP does it: ranks count alike, whatever their tokens. The learning rate is that of one
    process with as many rows in a step. The only one under a strategy that divides the weights."""
    SUM = "sum"
    """Sum over ranks: N times the mean. SGD needs a rate of 1/N of the mean's; Adam, which divides by the gradient's
    own size, the same rate. Clipping (`max_grad_norm`) sees a norm that is N times as large."""
    WEIGHTED_MEAN = "weighted_mean"
    """Mean over the tokens of all ranks: the gradient of one process that has all rows, so its learning rate, too."""
    MEDIAN = "median"
    """Median over ranks of each number, for rows of which some may be broken: a rank alone can't move it far. Of two
    ranks it is the mean. It is smaller than the mean where gradients are skewed; keep the mean's rate. Every rank
    holds the gradients of all, N times a bucket."""


@dataclass
class StepTokens:
    """Learned tokens of the step that is being computed."""

    own: float = 1.0
    """Tokens of this rank."""
    total: float = 1.0
    """Tokens of all ranks."""


def hook_of(method: AggregationMethod, tokens: StepTokens) -> Callable[[Any, Any], torch.futures.Future[torch.Tensor]]:
    """Return the hook of `method` for `DistributedDataParallel.register_comm_hook(None, …)`.

    `tokens` is to hold each step's numbers before its last backward pass (`WEIGHTED_MEAN` reads them).
    """
    import torch.distributed as dist

    def summed(bucket: Any, scale: float) -> torch.futures.Future[torch.Tensor]:
        buffer: torch.Tensor = bucket.buffer()
        if scale != 1:
            buffer.mul_(scale)
        return dist.all_reduce(buffer, async_op=True).get_future().then(lambda done: done.value()[0])

    def mean(_: Any, bucket: Any) -> torch.futures.Future[torch.Tensor]:
        return summed(bucket, 1 / dist.get_world_size())

    def total(_: Any, bucket: Any) -> torch.futures.Future[torch.Tensor]:
        return summed(bucket, 1.0)

    def weighted_mean(_: Any, bucket: Any) -> torch.futures.Future[torch.Tensor]:
        return summed(bucket, tokens.own / max(tokens.total, 1.0))

    def median(_: Any, bucket: Any) -> torch.futures.Future[torch.Tensor]:
        import torch

        buffer: torch.Tensor = bucket.buffer()
        ranks = [torch.empty_like(buffer) for _ in range(dist.get_world_size())]

        def middle(_: Any) -> torch.Tensor:
            ordered = torch.stack(ranks).sort(dim=0).values
            # torch.median takes the lower one of an even number.
            return (ordered[(len(ranks) - 1) // 2] + ordered[len(ranks) // 2]) / 2

        return dist.all_gather(ranks, buffer, async_op=True).get_future().then(middle)

    hook = {
        AggregationMethod.MEAN: mean,
        AggregationMethod.SUM: total,
        AggregationMethod.WEIGHTED_MEAN: weighted_mean,
        AggregationMethod.MEDIAN: median,
    }[method]
    hook.__annotations__.clear()  # DDP compares them to types, and these are text
    return hook
