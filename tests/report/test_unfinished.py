import json
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import run_directories as made

from unsloth_accel.errors import LaunchError
from unsloth_accel.report.at_end import reported
from unsloth_accel.report.figures import figures
from unsloth_accel.report.run_record import read_run_record

KILLED = "rank 1 was ended by SIGKILL; out of memory is the usual reason."


def failed(directory: Path, since: float, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The summary of a launch that was started at `since` and failed."""
    monkeypatch.setattr("unsloth_accel.report.at_end.time", SimpleNamespace(time=lambda: since))
    with pytest.raises(LaunchError), reported(directory):
        raise LaunchError(KILLED, 137)
    told: dict[str, Any] = json.loads((directory / "logs" / "summary.json").read_text(encoding="utf-8"))
    return told


def test_a_failed_run_has_a_summary_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what its ranks had logged, and of how it ended; as `launch` leaves it."""
    directory = made.crashed(tmp_path)
    told = failed(directory, made.START - 1, monkeypatch)
    assert (told["status"], told["message"], told["steps"]) == ("failed", KILLED, 60)
    ranks = [rank.steps for rank in read_run_record(directory).ranks]
    assert told["tokens"] == sum(line["tokens"] for steps in ranks for line in steps)
    slowest = max(sum(line["seconds"] for line in steps) for steps in ranks)
    assert told["tokens_per_second"] == pytest.approx(told["tokens"] / slowest, abs=0.1)
    assert [rank["rank"] for rank in told["ranks"]] == [0, 1]
    for rank, steps in zip(told["ranks"], ranks, strict=True):
        assert rank["peak_gib"] == max(line["allocated_gib"] for line in steps)
        waited = sum(line["wait_seconds"] for line in steps) / sum(line["seconds"] for line in steps)
        assert rank["wait_share"] == pytest.approx(waited, abs=1e-4)
    assert figures(read_run_record(directory)).tokens_per_second == told["tokens_per_second"]


def test_a_failed_attempt_counts_its_own_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run that went on at step 41 an hour later, where ranks don't know their wait."""
    directory = made.resumed(tmp_path)
    (directory / "logs" / "summary.json").unlink()
    for path in (directory / "logs").glob("rank-*.jsonl"):
        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub(r'"wait_seconds": [0-9.e-]+', '"wait_seconds": null', text), encoding="utf-8")
    told = failed(directory, made.START + 3000, monkeypatch)
    assert told["steps"] == 40
    assert {rank["wait_share"] for rank in told["ranks"]} == {None}
    assert all(0 < rank["compute_share"] < 1 for rank in told["ranks"])


def test_a_run_that_fails_after_training_keeps_its_summary(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = json.loads((two / "logs" / "summary.json").read_text(encoding="utf-8"))
    assert failed(two, made.START, monkeypatch) == before | {"status": "failed", "message": KILLED}


def test_an_earlier_attempts_summary_is_left_alone(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished run, started again, that fails before it trains."""
    before = json.loads((two / "logs" / "summary.json").read_text(encoding="utf-8"))
    assert failed(two, time.time() + 10, monkeypatch) == before


def test_where_nothing_was_logged_there_is_no_summary(tmp_path: Path) -> None:
    with pytest.raises(LaunchError), reported(tmp_path):
        raise LaunchError("rank 0 failed: it could not load the model", 1)
    assert not (tmp_path / "logs").exists()
