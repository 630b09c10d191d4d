from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from unsloth_accel.callbacks import heartbeat
from unsloth_accel.callbacks.heartbeat import SIZE, Beat, Heartbeat, read_beat, write_beat


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT", 0.01)


def until(true: Any) -> None:
    """A busy machine may take its time."""
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_beats_and_leaves_nothing_behind(tmp_path: Path, quick: None) -> None:
    path = tmp_path / "heartbeat-3.json"
    beats: list[Beat] = []
    made = Heartbeat(path, 3, lambda beat, passed: beats.append(beat))
    made.start()
    until(lambda: len(beats) > 2)
    assert path.stat().st_size == SIZE
    said = read_beat(path)
    assert said is not None
    assert (said.rank, said.phase, said.working) == (3, "", True)
    made.phase, made.step = "training", 7
    until(lambda: beats[-1].step == 7 and beats[-1].phase == "training")
    made.stop()
    assert not path.exists()


def test_a_disk_that_takes_nothing_stops_no_heart(tmp_path: Path, quick: None) -> None:
    beats: list[Beat] = []

    def look(beat: Beat, passed: float) -> None:
        beats.append(beat)
        raise RuntimeError("nothing that fails here reaches the training")

    made = Heartbeat(tmp_path / "nowhere" / "heartbeat-0.json", 0, look)
    made.start()
    until(lambda: len(beats) > 2)
    (tmp_path / "nowhere").mkdir()
    until(made.path.exists)
    made.stop()


def test_what_counts_as_progress(tmp_path: Path) -> None:
    """By hand, without its thread; the one that trains stands still all the while."""
    made, done = Heartbeat(tmp_path / "heartbeat-0.json", 0), threading.Event()
    training = threading.Thread(target=done.wait)
    training.start()
    made.thread = training.ident or 0

    def after(seconds: float) -> tuple[float, float]:
        made.write(seconds)
        return made.beat.idle, made.beat.still

    try:
        time.sleep(0.1)
        made.write(0.0)
        assert after(2.0) == (2.0, 2.0)
        made.progress()
        assert after(1.0) == (0.0, 0.0)
        assert after(1.0) == (1.0, 1.0)
        made.phase = "saving"  # another part of the run has a time of its own
        assert after(1.0) == (0.0, 2.0)
    finally:
        done.set()
        training.join()


def test_a_machine_that_slept_makes_nobody_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    passed: list[float] = []
    made = Heartbeat(tmp_path / "heartbeat-0.json", 0, lambda beat, seconds: passed.append(seconds))
    plain, slept = time.monotonic, [0.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: plain() + slept[0])
    made.start()
    until(lambda: len(passed) > 1)
    slept[0], count = 3600.0, len(passed)
    until(lambda: len(passed) > count + 2)
    made.stop()
    assert max(passed) < 60


def test_half_of_one_is_none(tmp_path: Path) -> None:
    path = tmp_path / "heartbeat-0.json"
    assert read_beat(path) is None
    write_beat(path, Beat(rank=0, host="here", pid=1, started=1.0))
    assert read_beat(path) is not None
    path.write_bytes(path.read_bytes()[:40])
    assert read_beat(path) is None


def test_a_second_training_compiles_anew(tmp_path: Path) -> None:
    """In a script that trains twice: its first step is a first step again, and the slowest is its own."""
    made = Heartbeat(tmp_path / "heartbeat-0.json", 0, whole_run=False)
    made.training(0)
    for step in (1, 2):
        made.stepped(step, 500.0)
    made.trained()
    made.training(0)
    assert (made.steps, made.slowest) == (0, 0.0)
