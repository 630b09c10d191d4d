"""What a rehearsal says, and where it is left out; real ones are in test_rehearsal.py."""

from types import SimpleNamespace
from typing import Any

import pytest
from plans import SMALL, planned

from unsloth_accel.training.rehearsed import Rehearsed


@pytest.mark.parametrize(
    ("kept", "parts", "said"),
    [
        ((8, 3), 1, "; out of memory: blocks that keep their activations 8 → 3"),
        ((0, 0), 2, "; out of memory: each micro-batch in 2 parts"),
        ((0, 6), 1, ""),  # UNSLOTH_GC_KEEP_LAYERS=auto: Unsloth raised it
    ],
)
def test_what_was_corrected_is_said(kept: tuple[int, int], parts: int, said: str) -> None:
    found = Rehearsed(rows=2, tokens=64, step=1200, keep_activations=kept, parts=parts)
    assert found.told(None) == f"rehearsed step 1,200, the longest, with 2 rows (64 tokens) at once, in 0.0 s{said}"


@pytest.mark.parametrize(("columns", "known"), [(("input_ids", "labels"), True), (("text",), False)])
def test_a_stream_is_rehearsed_where_its_rows_are_tokens(columns: tuple[str, ...], known: bool) -> None:
    """Of others nothing says how long they are."""
    import torch
    from accelerate.data_loader import DataLoaderShard
    from datasets import Dataset

    from unsloth_accel.training.rehearsal import Rehearsal

    stream = Dataset.from_dict({name: [[1]] for name in columns}).to_iterable_dataset().with_format("torch")
    trainer: Any = SimpleNamespace(
        args=SimpleNamespace(optim="adamw_torch"),
        model=torch.nn.Linear(1, 1),
        accelerator=SimpleNamespace(split_batches=False),
        train_dataset=stream,
    )
    rehearsal = Rehearsal(trainer, always=True, limit=8, evaluates=False, advice="")
    reason = rehearsal._obstacle(DataLoaderShard(stream))
    assert reason == (None if known else "the rows are streamed, and nothing says how long they may be")


@pytest.mark.parametrize(
    ("lengths", "always", "is_rehearsed"), [([3, 3], False, False), ([3, 3], True, True), ([3, 4], False, True)]
)
def test_where_all_lengths_are_the_same_only_what_is_asked_for_is_rehearsed(
    lengths: list[int], always: bool, is_rehearsed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from accelerate.data_loader import DataLoaderShard
    from datasets import Dataset

    from unsloth_accel.training.rehearsal import Rehearsal

    trainer: Any = SimpleNamespace(
        args=SimpleNamespace(optim="adamw_torch", process_index=0, device=torch.device("cpu")),
        model=torch.nn.Linear(1, 1),
        model_wrapped=None,
        accelerator=SimpleNamespace(
            split_batches=False, gradient_state=SimpleNamespace(sync_gradients=True, _set_sync_gradients=bool)
        ),
        eval_dataset=None,
    )
    rehearsal = Rehearsal(trainer, always=always, limit=None, evaluates=False, advice="")
    monkeypatch.setattr(rehearsal, "_rehearse", lambda loader: Rehearsed(rows=1, tokens=max(lengths), step=None))
    rows: Any = Dataset.from_dict({"input_ids": [[1] * length for length in lengths]})
    rehearsal.on_train_begin(trainer.args, None, None, train_dataloader=DataLoaderShard(rows))
    assert bool(rehearsal.figures) == is_rehearsed


@pytest.mark.parametrize(
    ("figures", "told"),
    [
        ({"peak_gib": 57.0}, ": 57.0 GiB, 5% less than planned, in 1.0 s"),
        ({"peak_gib": 63.0}, ": 63.0 GiB, 5% more than planned, in 1.0 s"),
        (
            {"peak_gib": 66.0, "refused_gib": 68.4, "keep_activations": (24, 20)},
            ": 66.0 GiB, in 1.0 s; the plan's 60.0 GiB were at least 14% too low: blocks that keep their activations "
            "24 → 20",
        ),
        (
            {"peak_gib": 50.0, "refused_gib": 59.0, "parts": 2},
            ": 50.0 GiB, in 1.0 s; the plan's 60.0 GiB were too low: each micro-batch in 2 parts",
        ),
        (
            {"peak_gib": 20.0, "refused_gib": 23.0, "parts": 2},
            ": 20.0 GiB, in 1.0 s; out of memory at 23.0 GiB, less than the plan's 60.0 was free: each micro-batch in "
            "2 parts",
        ),
    ],
)
def test_how_far_the_plan_was_off(figures: dict[str, Any], told: str) -> None:
    found = Rehearsed(rows=4, tokens=8192, step=7, seconds=1.0, **figures)
    assert found.told(60.0) == f"rehearsed step 7, the longest, with 4 rows (8,192 tokens) at once{told}"


def test_the_plan_counts_as_the_rehearsal_does() -> None:
    """A run that takes what was planned is neither less nor more, though CUDA takes GiB beside torch's."""
    made = planned("2xH100-80GB", SMALL)
    assert made.memory is not None
    found = Rehearsed(rows=4, tokens=8192, step=7, peak_gib=made.memory.training)
    assert ", 0% " in found.told(made.promise.memory_gib)
