"""The steps, hours and price of a whole run, at the speed of its rows' real lengths."""

import json
from pathlib import Path
from typing import Any

import pytest
from commands import out

from unsloth_accel.config.read_run import from_dict
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.planning.plan import Plan
from unsloth_accel.planning.planner import plan
from unsloth_accel.planning.run_time import hours_text


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """1,000 rows of 40 tokens, by four characters each."""
    path = tmp_path / "short.jsonl"
    path.write_text((json.dumps({"text": "x" * 160}) + "\n") * 1000, "utf-8")
    return path


def planned(path: Path | str, price: float | None = None, **sections: Any) -> Plan:
    values = {"model": {"name": "unsloth/Llama-3.1-8B-Instruct"}, "batch": {"global_size": 64}}
    run = from_dict({**values, "data": {"path": str(path)}} | sections, to_plan=True)
    return plan(run, Hardware.parse("8xH100-80GB"), price=price)


def test_short_rows_are_not_shown_at_the_speed_of_full_ones(rows: Path) -> None:
    """They were, 50 times too many tokens per second: most of a step is launching kernels."""
    full, short = planned(""), planned(rows)
    assert full.speed is not None
    assert short.speed is not None
    assert short.speed.tokens == 64 * 40
    assert short.speed.tokens_per_second < full.speed.tokens_per_second / 3
    assert short.speed.step_seconds < full.speed.step_seconds / 3
    assert "s per step, rows of about 40 tokens at the mean (estimated from 4 characters per token in 500" in str(short)
    assert "s per step, if rows are full" in str(full)
    one = {"per_device_train_batch_size": 1}
    assert planned(rows, training=one).memory == planned("", training=one).memory, "a row may be as long as the limit"


def test_rows_shared_out_by_tokens_take_fewer_micro_batches(rows: Path) -> None:
    training = {"per_device_train_batch_size": 1}
    by_tokens = planned(rows, training=training)
    by_number = planned(rows, training=training, batch={"global_size": 64, "balance": "rows"})
    assert by_tokens.speed is not None
    assert by_number.speed is not None
    assert by_number.speed.step_seconds > 7 * by_tokens.speed.step_seconds


@pytest.mark.parametrize(
    ("sections", "steps", "told"),
    [
        ({}, 48, "3 epochs of 1,000 rows"),
        ({"training": {"num_train_epochs": 1}}, 16, "1 epoch of 1,000 rows"),
        ({"training": {"num_train_epochs": 0.5}}, 8, "0.5 epochs of"),
        ({"training": {"dataloader_drop_last": True}}, 45, "3 epochs of"),
        ({"training": {"max_steps": 7}}, 7, "training.max_steps"),
        ({"batch": {"global_tokens": 16384}}, 9, "3 epochs of 1,000 rows, about 20 packed"),
    ],
)
def test_the_steps_of_a_run(rows: Path, sections: dict[str, Any], steps: int, told: str) -> None:
    time = planned(rows, **sections).time
    assert time is not None
    assert time.steps == steps
    assert told in str(time)


def test_price_is_of_every_gpu_for_an_hour(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = planned(rows, price=2.5, training={"max_steps": 100_000})
    assert made.time is not None
    assert made.time.hours is not None
    assert made.speed is not None
    assert made.time.hours == made.speed.step_seconds * 100_000 / 3600
    assert made.time.cost == pytest.approx(made.time.hours * 8 * 2.5)
    assert f"{made.time.cost:,.2f} for 8 GPUs at 2.50 an hour each" in str(made)
    words = ["plan", "model.name=unsloth/Llama-3.1-8B-Instruct", "--hardware", "2xH100", "training.max_steps=500"]
    found = json.loads(out(capsys, *words, "--price", "3", "--json"))["run"]
    assert found["steps"] == 500
    assert found["estimated_cost"] == pytest.approx(found["estimated_hours"] * 2 * 3, rel=0.01)
    assert json.loads(out(capsys, *words, "--json"))["run"]["estimated_cost"] is None
    assert planned("").time is None, "nobody knows how many rows there will be"


def test_a_large_file_is_counted_from_its_first_rows(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unsloth_accel.data.length_estimate.COUNTED", 1000)
    time = planned(rows).time
    assert time is not None
    assert time.counted == "3 epochs of about 1,000 rows"


@pytest.mark.parametrize(
    ("hours", "text"), [(50, "2.1 days"), (3, "3.0 hours"), (1.5, "90.0 minutes"), (0.01, "36 seconds")]
)
def test_hours_read_well(hours: float, text: str) -> None:
    assert hours_text(hours) == text
