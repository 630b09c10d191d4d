"""A strategy from outside the package: DDP with two processes that compute the same rows together."""

import os
from typing import Any

from unsloth_accel.strategies import STRATEGIES, Strategy


def fit(accelerator: Any) -> None:
    """Where this strategy's own work would be done; it leaves a word that it was called."""
    os.environ["TOY_FITTED"] = type(accelerator).__name__


STRATEGIES.add(
    Strategy(
        name="toy_strategy",
        about="every two GPUs compute the same rows together",
        distributed_type="MULTI_GPU",
        environment={"TOY_STRATEGY": "1"},
        processes_per_row=2,
        adapter="toy_strategy.fit",
        never_chosen="it is a toy, only taken when asked for.",
        loading="sent",
        gradient_buckets=True,
    )
)
