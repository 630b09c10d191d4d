"""Warnings before memory is out; runs that go on without it are in tests/training/test_training.py."""

from types import SimpleNamespace
from typing import Any


def test_the_watch_warns_once_of_each_shortage() -> None:
    from unsloth_accel.callbacks import MemoryWatch
    from unsloth_accel.callbacks.memory_watch import MemoryShares

    seen = iter(
        [
            MemoryShares(gpu=0.5, retries=1, host=0.5),  # loading had to free its cache; no matter
            MemoryShares(gpu=0.9, retries=1, host=0.5),
            MemoryShares(gpu=0.96, retries=1, host=0.5),
            MemoryShares(gpu=0.97, retries=2, host=0.96),
            MemoryShares(gpu=0.99, retries=3, host=0.99),
        ]
    )
    told: list[str] = []
    watch = MemoryWatch(advice="less", listener=told.append, read=lambda: next(seen))
    args: Any = SimpleNamespace(process_index=1)
    watch.on_train_begin(args, SimpleNamespace(global_step=0), None)  # type: ignore[arg-type]
    counts = []
    for step in range(1, 5):
        watch.on_step_end(args, SimpleNamespace(global_step=step), None)  # type: ignore[arg-type]
        counts.append(len(told))
    assert counts == [0, 1, 3, 3]
    assert told[0].startswith("rank 1, step 2: 96% of the GPU's memory was in use")
    assert told == watch.warnings
    assert all("What would help: less." in line for line in told)


def test_more_than_was_planned_is_told_before_the_gpu_is_full() -> None:
    from unsloth_accel.callbacks import MemoryWatch
    from unsloth_accel.callbacks.memory_watch import MemoryShares

    # Weights of 4 GiB are in memory that the GPUs share, which torch's allocator doesn't count.
    seen = iter([MemoryShares(gpu=n / 80, retries=0, host=0.1, own_gib=n - 4) for n in (4.0, 22.0, 24.0, 78.0)])
    model = SimpleNamespace(_unsloth_accel_peer=SimpleNamespace(shared_bytes=4 * 2**30))
    told: list[str] = []
    watch = MemoryWatch(planned_gib=20.0, listener=told.append, read=lambda: next(seen))
    args: Any = SimpleNamespace(process_index=0)
    state: Any = SimpleNamespace(global_step=1)
    watch.on_train_begin(args, state, None, model=model)  # type: ignore[arg-type]
    for expected in (0, 1, 2):
        watch.on_step_end(args, state, None)  # type: ignore[arg-type]
        assert len(told) == expected, "within the estimate's error nothing is said"
    assert "torch allocated 24.0 GiB on the GPU (the plan reckoned with 20.0 GiB for torch)" in told[0]
    assert "98% of the GPU's memory was in use (the plan reckoned with 20.0 GiB for torch)" in told[1]


def test_this_machines_memory() -> None:
    from unsloth_accel.callbacks.memory_watch import memory_shares

    now = memory_shares()
    assert now.gpu is None
    assert 0 < now.host < 1
