"""The batch of a Trainer, read from the loaders that accelerate really makes."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _no_state_is_left() -> Iterator[None]:
    """Accelerate's loaders ask for a state, which would then be there for other tests."""
    yield
    from accelerate.state import PartialState

    PartialState._reset_state()


def args(processes: int, **more: Any) -> Any:
    plain: dict[str, Any] = {"train_batch_size": 4, "gradient_accumulation_steps": 3, "world_size": processes}
    return SimpleNamespace(**plain | {"accelerator_config": SimpleNamespace(split_batches=False)} | more)


def loader(processes: int, *, streamed: bool = False, rows: int = 4, **more: Any) -> Any:
    """Rank 1's, as `Accelerator.prepare` makes it; `rows` is the batch size of the loader that is given to it."""
    from accelerate.data_loader import prepare_data_loader
    from torch.utils.data import DataLoader, IterableDataset

    class Stream(IterableDataset[int]):
        def __iter__(self) -> Any:
            return iter(range(64))

    data: Any = Stream() if streamed else list(range(64))
    import torch

    settings = {"dispatch_batches": False, "put_on_device": True, "device": torch.device("cpu")} | more
    index = min(1, processes - 1)
    return prepare_data_loader(
        DataLoader(data, batch_size=rows), num_processes=processes, process_index=index, **settings
    )


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("processes", [1, 2])
def test_rows_of_all_processes_and_micro_batches(streamed: bool, processes: int) -> None:
    from unsloth_accel.adapters.real_batch import real_batch

    batch = real_batch(args(processes), loader(processes, streamed=streamed))
    assert str(batch).startswith(f"{12 * processes} rows per step = 4 × 3 × {processes}")


def test_what_the_loader_does_counts_and_not_what_the_arguments_say() -> None:
    from unsloth_accel.adapters.real_batch import real_batch

    assert real_batch(args(2), loader(2, rows=6)).global_size == 36
    divided = args(2, accelerator_config=SimpleNamespace(split_batches=True))
    assert real_batch(divided, loader(2, split_batches=True)).global_size == 12, "accelerate divides the batch of four"
    assert real_batch(divided, loader(2, split_batches=True)).per_device == 2


def test_grpos_loader_holds_several_micro_batches() -> None:
    from unsloth_accel.adapters.real_batch import real_batch

    assert real_batch(args(2, steps_per_generation=3), loader(2, rows=12)).global_size == 24


def test_rows_shared_out_by_tokens() -> None:
    from torch.utils.data import DataLoader, SequentialSampler

    from unsloth_accel.adapters.real_batch import real_batch
    from unsloth_accel.adapters.token_balance import TokenBatches

    data: Any = list(range(64))
    batches = TokenBatches(SequentialSampler(data), data, rows=24, ranks=2, rank=0, accumulation=3, padded=False)
    assert real_batch(args(2), DataLoader(data, batch_sampler=batches)).global_size == 24


def test_transformers_own_balancing_deals_rows_itself() -> None:
    from torch.utils.data import DataLoader
    from transformers.trainer_pt_utils import BatchRebalanceSampler

    from unsloth_accel.adapters.real_batch import real_batch

    data: Any = list(range(48))
    sampler = BatchRebalanceSampler(lengths=data, effective_batch_size=24, dp_size=2, grad_accum=3, rank=1)
    from accelerate.data_loader import prepare_data_loader

    made = prepare_data_loader(
        DataLoader(data, batch_sampler=sampler),
        num_processes=2,
        process_index=1,
        put_on_device=False,
        dispatch_batches=False,
    )
    made.batch_sampler.num_processes = 1  # as Trainer._get_dataloader does
    assert str(real_batch(args(2), made)).startswith("24 rows per step = 4 × 3 × 2")


def test_a_stream_is_not_asked_for_its_length() -> None:
    from unsloth_accel.adapters.real_batch import batch_of

    handler = SimpleNamespace(train_dataloader=loader(2, streamed=True))
    trainer: Any = SimpleNamespace(args=args(2), callback_handler=handler)
    assert batch_of(trainer).global_size == 24
    trainer.callback_handler = SimpleNamespace(train_dataloader=None)  # before it trains
    assert batch_of(trainer).global_size == 24


@pytest.mark.parametrize(("dispatched", "together"), [(True, 4), (False, 4)])
def test_a_stream_whose_batches_are_divided(dispatched: bool, together: int) -> None:
    from unsloth_accel.adapters.real_batch import real_batch

    divided = args(2, accelerator_config=SimpleNamespace(split_batches=True))
    made = loader(2, streamed=True, split_batches=True, dispatch_batches=dispatched)
    assert real_batch(divided, made).global_size == 3 * together


def test_processes_that_share_rows_count_once() -> None:
    from accelerate.parallelism_config import ParallelismConfig

    from unsloth_accel.adapters.real_batch import real_batch

    both = args(2, parallelism_config=ParallelismConfig(tp_size=2))
    assert str(real_batch(both, loader(1))).startswith("12 rows per step = 4 × 3 × 1")


def test_what_is_generated_is_drawn_for_several_micro_batches() -> None:
    from torch.utils.data import DataLoader
    from trl.trainer.utils import RepeatSampler

    from unsloth_accel.adapters.real_batch import real_batch

    data: Any = list(range(48))
    sampler = RepeatSampler(data, mini_repeat_count=2, batch_size=6, repeat_count=6)  # as with 2 iterations of 3 steps
    made = DataLoader(data, batch_size=12, sampler=sampler)
    made.get_sampler = lambda: sampler  # type: ignore[attr-defined]
    assert real_batch(args(2, num_iterations=2), made).global_size == 24


def to_keep(rows: int, processes: int, per_device: int = 4, **more: Any) -> Any:
    """The arguments of a script's Trainer that is to take `rows` per step."""
    from unsloth_accel.adapters.real_batch import keep_global_batch

    own = args(processes, per_device_train_batch_size=per_device, n_gpu=1, **more)
    trainer: Any = SimpleNamespace(args=own, callback_handler=SimpleNamespace(train_dataloader=None))
    trainer.is_deepspeed_enabled = "hf_deepspeed_config" in more
    keep_global_batch(trainer, rows)
    assert trainer._train_batch_size == own.train_batch_size
    return own


@pytest.mark.parametrize(
    ("rows", "processes", "per_device", "made"),
    [(8, 1, 4, (4, 2)), (8, 2, 4, (4, 1)), (8, 4, 4, (2, 1)), (24, 2, 4, (4, 3)), (10, 2, 4, (1, 5))],
)
def test_a_script_keeps_its_rows(rows: int, processes: int, per_device: int, made: tuple[int, int]) -> None:
    """On any number of processes, and no more at once than it was written for."""
    own = to_keep(rows, processes, per_device)
    assert (own.per_device_train_batch_size, own.gradient_accumulation_steps) == made


@pytest.mark.parametrize(
    ("rows", "more", "consequence", "fix"),
    [
        (8, {}, "can't be 3 processes times", "global_batch=6 or global_batch=9, or 2 or 4 processes in place of 3"),
        (2, {}, "can't be 3 processes times", "global_batch=3, or 2 processes in place of 3"),
        (0, {}, "no step has such rows", "global_batch=3 or more"),
        (12, {"generation_batch_size": 12}, "into groups already", "per_device_train_batch_size=4, gradient"),
        (12, {"hf_deepspeed_config": 1}, "DeepSpeed has taken the numbers", "per_device_train_batch_size=4, gradient"),
    ],
)
def test_rows_that_a_script_cannot_keep(rows: int, more: dict[str, int], consequence: str, fix: str) -> None:
    from unsloth_accel.errors import ConfigError

    with pytest.raises(ConfigError) as raised:
        to_keep(rows, 3, **more)
    (problem,) = raised.value.problems
    assert (problem.key, problem.value) == ("global_batch", rows)
    assert consequence in problem.consequence
    assert problem.fix.startswith(fix)
