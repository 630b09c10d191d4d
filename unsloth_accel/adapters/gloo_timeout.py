"""The time-out of a CPU's collectives: no rank waits for another longer than was asked for.

Mends, in transformers 5.17: `ddp_timeout` is given to the process group on GPUs only; on a CPU gloo waits its own half
hour, whatever was asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..capabilities.probe import available

if TYPE_CHECKING:
    from transformers import TrainingArguments


def heed_timeout(args: TrainingArguments) -> None:
    """Give the process group `args.ddp_timeout` seconds for a collective, where it runs over gloo."""
    from torch import distributed

    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_backend() != "gloo":
        return
    if available("the time-out of a CPU's collectives"):
        distributed.distributed_c10d._set_pg_timeout(args.ddp_timeout_delta)
