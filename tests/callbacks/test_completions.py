"""Completions that teach nothing are told, and some of every log are kept."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from unsloth_accel.callbacks.completions import KEPT, PATIENCE, Completions
from unsloth_accel.callbacks.rank_log import RankLog

torch = pytest.importorskip("torch")


class Trainer:
    """What `Completions` asks of TRL's trainer."""

    def __init__(self) -> None:
        self.model = SimpleNamespace(training=True)
        self.accelerator = SimpleNamespace(device="cpu", gather=lambda tensor: tensor)
        self._logs: dict[str, Any] = {
            "prompt": ["q"] * 6,
            "completion": [[{"role": "assistant", "content": f"answer {number}"}] for number in range(6)],
            "advantages": [0.1, -2.0, 0.0, 1.5, 0.2, 0.3],
            "rewards": defaultdict(list, {"right": [0.5, 0.0, float("nan"), 1.0, 0.5, 0.5]}),
        }

    def _generate_and_score_completions(self) -> None: ...
    def _generate(self) -> str:
        return "written"

    def _calculate_rewards(self) -> None: ...


def logged(callback: Completions, steps: int, **figures: float | None) -> list[dict[str, Any]]:
    state = SimpleNamespace(global_step=0, is_world_process_zero=True, log_history=[])
    args = SimpleNamespace(process_index=0, max_completion_length=64)
    callback.on_train_begin(args, state, None)  # type: ignore[arg-type]
    found = []
    for step in range(1, steps + 1):
        state.global_step = step
        callback.on_step_end(args, state, None)  # type: ignore[arg-type]
        found.append({"loss": 0.0, **figures})
        callback.on_log(args, state, None, logs=found[-1])  # type: ignore[arg-type]
    return found


def made(tmp_path: Path) -> tuple[Trainer, RankLog, Completions]:
    trainer, log = Trainer(), RankLog(None, 0)
    return trainer, log, Completions(trainer, log, tmp_path / "completions.jsonl")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("completions/clipped_ratio", "were cut at 64 tokens.*larger training.max_completion_length"),
        ("frac_reward_zero_std", "had the same reward: nothing is learned.*num_generations"),
    ],
)
def test_what_teaches_nothing_is_told_once_with_what_helps(tmp_path: Path, name: str, told: str) -> None:
    _, log, callback = made(tmp_path)
    logged(callback, PATIENCE - 1, **{name: 1.0})
    assert log.warnings == []
    logged(callback, 3 * PATIENCE, **{name: 1.0})
    (line,) = log.warnings
    assert line["step"] == PATIENCE
    assert re.search(told, line["message"])
    logged(callback, 3 * PATIENCE, **{name: 0.99})
    assert len(log.warnings) == 1


def test_completions_without_any_reward_are_told(tmp_path: Path) -> None:
    _, log, callback = made(tmp_path)
    logged(callback, 3 * PATIENCE)
    logged(callback, 3 * PATIENCE, reward=0.0)
    logged(callback, 3 * PATIENCE, reward=1.0)
    assert log.warnings == []
    for none in (None, float("nan")):
        logged(callback, PATIENCE, reward=none, frac_reward_zero_std=0.0)
    messages = [line["message"] for line in log.warnings]
    assert len(messages) == 2
    assert all(re.search(r"no completion had a reward: nothing is learned.*on_error=stop", one) for one in messages)


def test_an_evaluation_has_the_reward_that_older_trl_only_logs(tmp_path: Path) -> None:
    """TRL 1.0: `logs = {**logs, **metrics}`, so that what `evaluate` returns lacks it."""
    _, _, callback = made(tmp_path)
    state = SimpleNamespace(log_history=[{"eval_loss": 0.0, "eval_reward": 0.5, "step": 2}])
    metrics = {"eval_loss": 0.1}
    callback.on_evaluate(None, state, None, metrics=metrics)  # type: ignore[arg-type]
    assert metrics == {"eval_loss": 0.1, "eval_reward": 0.5}
    callback.on_save(None, state, None)  # type: ignore[arg-type]
    callback.on_evaluate(None, SimpleNamespace(log_history=[]), None, metrics={})  # type: ignore[arg-type]


def test_best_and_worst_are_kept_of_every_log(tmp_path: Path) -> None:
    _, _, callback = made(tmp_path)
    logged(callback, 2)
    lines = [json.loads(line) for line in (tmp_path / "completions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == [1] * KEPT + [2] * KEPT
    assert [line["completion"] for line in lines[:2]] == ["answer 3", "answer 1"]
    assert lines[0]["rewards"] == {"right": 1.0}
    assert None in [line["rewards"]["right"] for line in lines]  # NaN is no JSON


def test_the_seconds_of_a_step_are_divided(tmp_path: Path) -> None:
    trainer, _, callback = made(tmp_path)
    assert trainer._generate() == "written"
    (first, *_) = logged(callback, 1)
    assert {f"{part}_seconds" for part in ("generating", "scoring", "updating")} <= {*first}
    assert first["updating_seconds"] >= 0
