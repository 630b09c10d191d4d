"""The rows of a step are those that were promised, or nothing is trained."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from unsloth_accel.config.promise import PROMISE, Promise


def begin(promised: int | None, rank: int = 0, *, world: int = 2, **how: Any) -> None:
    """Start training, twice, with 4 rows per device and 3 micro-batches."""
    from torch.nn import Linear

    from unsloth_accel.callbacks import RowsPerStep

    args: Any = SimpleNamespace(
        train_batch_size=4,
        gradient_accumulation_steps=3,
        world_size=world,
        process_index=rank,
        accelerator_config=SimpleNamespace(split_batches=False),
    )
    nothing: Any = None
    callback = RowsPerStep(promised, **how)
    for _ in range(2):
        callback.on_train_begin(args, nothing, nothing, model=Linear(1, 1), train_dataloader=SimpleNamespace())


@pytest.fixture(autouse=True)
def ddp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that hold the whole model each."""
    from unsloth_accel.adapters import rank_checks

    monkeypatch.setattr(rank_checks, "distributed_type", lambda: "MULTI_GPU")


@pytest.mark.parametrize("rank", [0, 1])
def test_other_rows_than_promised_stop_every_rank(rank: int, capsys: pytest.CaptureFixture[str]) -> None:
    from unsloth_accel.adapters.rank_checks import GuardError

    begin(24, rank)
    with pytest.raises(GuardError, match="8 rows per step were promised, and the Trainer takes 24 rows") as raised:
        begin(8, rank)
    assert raised.value.on_every_rank
    assert capsys.readouterr().out == "", "the plan has told it"


def test_a_script_is_told_its_batch_once(capsys: pytest.CaptureFixture[str]) -> None:
    begin(None)
    begin(None, rank=1)
    begin(24, script=True)
    begin(None, world=1)
    told = capsys.readouterr()
    batch = "24 rows per step = 4 × 3 × 2 (per device × accumulation × processes)"
    keeps = "which adapt(trainer, global_batch=12) keeps"
    assert told.out.splitlines() == [
        f"unsloth_accel: 2 processes, ddp: {batch}; one process would take 12, {keeps}",
        f"unsloth_accel: 2 processes, ddp: {batch}; one process would take as many",
        "unsloth_accel: 1 process: 12 rows per step = 4 × 3 × 1 (per device × accumulation × processes)",
    ]
    assert told.err == ""


def test_a_script_whose_loader_breaks_its_word_is_stopped() -> None:
    from unsloth_accel.adapters.rank_checks import GuardError

    with pytest.raises(GuardError, match=r"Fix: take out of the loader or the arguments .* global_batch=24\."):
        begin(8, script=True)


@pytest.mark.parametrize(
    ("planned", "fix"),
    [
        (16, "unsloth_accel.adapt(trainer, global_batch=16)"),
        (21, "a number of processes that divides 21"),
    ],
)
def test_a_script_under_a_plan_is_warned(
    planned: int, fix: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(PROMISE, json.dumps(vars(Promise(num_processes=2, rows_per_step=planned))))
    begin(None)
    warned = capsys.readouterr().err
    assert warned.count(f"the plan promises {planned} rows per step, and this script trains 24") == 1
    assert f"Fix: {fix}, or" in warned
    monkeypatch.setenv(PROMISE, json.dumps(vars(Promise(num_processes=2, rows_per_step=24))))
    begin(None)
    assert capsys.readouterr().err == ""
