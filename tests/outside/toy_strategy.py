"""A strategy from outside the package: DDP with two processes that compute the same rows together."""

from unsloth_accel.strategies import STRATEGIES, Strategy

STRATEGIES.add(
    Strategy(
        name="toy_strategy",
        about="every two GPUs compute the same rows together",
        distributed_type="MULTI_GPU",
        environment={"TOY_STRATEGY": "1"},
        processes_per_row=2,
        never_chosen="it is a toy, only taken when asked for.",
        loading="sent",
        gradient_buckets=True,
    )
)
