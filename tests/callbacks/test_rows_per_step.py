"""The rows of a step are those that were promised, or nothing is trained."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from unsloth_accel.config.promise import PROMISE, Promise


def begin(promised: int | None, rank: int = 0) -> None:
    """Start training with 4 rows per device, 3 micro-batches and 2 processes."""
    from unsloth_accel.callbacks import RowsPerStep

    args: Any = SimpleNamespace(
        train_batch_size=4,
        gradient_accumulation_steps=3,
        world_size=2,
        process_index=rank,
        accelerator_config=SimpleNamespace(split_batches=False),
    )
    nothing: Any = None
    RowsPerStep(promised).on_train_begin(args, nothing, nothing, train_dataloader=SimpleNamespace())


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
    told = capsys.readouterr()
    assert told.out == "unsloth_accel: 24 rows per step = 4 × 3 × 2 (per device × accumulation × processes)\n"
    assert told.err == ""


@pytest.mark.parametrize(
    ("planned", "fix"),
    [
        (16, "gradient_accumulation_steps=2"),
        (20, "per_device_train_batch_size × gradient_accumulation_steps = 10"),
        (21, "a number of processes that divides 21"),
    ],
)
def test_a_script_under_a_plan_is_warned(
    planned: int, fix: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(PROMISE, json.dumps(vars(Promise(num_processes=2, rows_per_step=planned))))
    begin(None)
    warned = capsys.readouterr().err
    assert f"the plan promises {planned} rows per step, and this script trains 24" in warned
    assert f"Fix: {fix}, or" in warned
    monkeypatch.setenv(PROMISE, json.dumps(vars(Promise(num_processes=2, rows_per_step=24))))
    begin(None)
    assert capsys.readouterr().err == ""
