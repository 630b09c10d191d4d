"""The reference of preferences beforehand: what a plan says it takes, and saves."""

import json
from pathlib import Path
from typing import Any

import pytest
from plans import SMALL

from unsloth_accel.config.read_run import from_dict
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.planning.plan import Plan
from unsloth_accel.planning.planner import plan

TWO = "2xH100-80GB"


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    """80 pairs of full sides, in steps of 8 an epoch of 10."""
    row = json.dumps({"prompt": "Why? " * 200, "chosen": "Because. " * 2000, "rejected": "No. " * 4000})
    (tmp_path / "pairs.jsonl").write_text(f"{row}\n" * 80, encoding="utf-8")
    return str(tmp_path / "pairs.jsonl")


def planned(data: str, hardware: str = TWO, method: str = "dpo", **training: Any) -> Plan:
    values = {"method": method, "model": {"name": SMALL}, "data": {"path": data}, "training": training}
    values |= {"batch": {"global_size": 8}, "distributed": {"strategy": "ddp"} if hardware == TWO else {}}
    return plan(from_dict(values, to_plan=True), Hardware.parse(hardware))


def told(made: Plan) -> str:
    return next((reason for reason in made.reasons if "the reference reads" in reason), "")


def test_several_epochs_are_worth_a_word(pairs: str) -> None:
    made = planned(pairs, num_train_epochs=3)
    assert "the reference reads the 240 rows of 30 steps." in told(made)
    assert "reads each of 80 rows once, at the beginning of each launch: about" in told(made)
    assert made.speed
    beforehand = planned(pairs, num_train_epochs=3, precompute_ref_log_probs=True)
    assert beforehand.speed
    assert beforehand.speed.step_seconds < 0.95 * made.speed.step_seconds
    saved = 1 - (20 * beforehand.speed.step_seconds + 10 * made.speed.step_seconds) / (30 * made.speed.step_seconds)
    for one in (made, beforehand):
        assert f"{saved:.0%} less time in all" in told(one), "one pass of three is left"


def test_one_epoch_is_not(pairs: str) -> None:
    assert not told(planned(pairs, num_train_epochs=1))
    assert not told(planned(pairs, max_steps=7))
    asked = told(planned(pairs, max_steps=5, precompute_ref_log_probs=True))
    assert "where without it would read the 40 rows of 5 steps: about" in asked
    assert "more time in all" in asked
    assert "no less time in all" in told(planned(pairs, num_train_epochs=1, precompute_ref_log_probs=True))


def test_where_no_seconds_are_known_rows_are_counted(pairs: str) -> None:
    made = planned(pairs, "cpu", num_train_epochs=2)
    assert "the reference reads the 160 rows of 20 steps." in told(made)
    assert "about" not in told(made)


def test_other_methods_have_nothing_to_say_of_it(pairs: str) -> None:
    assert not told(planned(pairs, method="orpo", num_train_epochs=3))
    assert not told(planned("", num_train_epochs=3)), "the number of rows is not known"


def test_kto_counts_answers(pairs: str) -> None:
    assert "reads each of 160 rows once" in told(planned(pairs, method="kto", num_train_epochs=3))
