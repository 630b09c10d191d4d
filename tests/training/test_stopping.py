"""A real run of two processes that is stopped twice and gone on with: nothing of it is lost, and nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fork_server
import psutil
import pytest
from conftest import ROOT, Run, adapter, cli_command, steps, write_small_run

from unsloth_accel.artifacts.checkpoints import checkpoints

pytestmark = pytest.mark.slow
STEPS = 200
ORPHANS = 120.0
"""Seconds within which ranks end whose launcher is gone."""


@pytest.fixture(scope="module")
def described(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that says nothing of checkpoints."""
    place = tmp_path_factory.mktemp("described")
    return write_small_run(place, tiny, 41, max_steps=STEPS)


def launched(described: Path, log: Path, *words: str, before: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        command = [*before, *cli_command("launch", described, *words)]
        return subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)


def wait_for(what: Callable[[], Any], seconds: float, log: Path) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.05)
    raise AssertionError(log.read_text(encoding="utf-8"))


def made(out: Path) -> int:
    return len(steps(out)) if (out / "logs" / "steps.jsonl").is_file() else 0


def ranks_of(launcher: subprocess.Popen[bytes]) -> list[psutil.Process]:
    found = [one for one in psutil.Process(launcher.pid).children() if "LOCAL_RANK" in one.environ()]
    assert len(found) == 2
    return found


def test_a_run_that_is_stopped_goes_on_to_the_bit(described: Path, tmp_path: Path, cli: Run) -> None:
    """Under nohup, which a closed terminal doesn't end, with a SIGTERM to the launcher; then its launcher is killed;
    then it runs to its end, and once more, where nothing is left to do."""
    straight, out, log = tmp_path / "straight", tmp_path / "run", tmp_path / "printed.txt"
    words = (f"output_dir={out}", "--resume-if-any")
    command = cli_command("launch", described, f"output_dir={straight}")
    done = fork_server.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "a checkpoint every 15 minutes, the newest 2 kept: " in done.stdout
    assert not checkpoints(straight), "a run shorter than that writes none"

    launcher = launched(described, log, *words, before=("nohup",))
    wait_for(lambda: made(out) > 5, 300, log)
    ranks = ranks_of(launcher)
    for process in (launcher.pid, *(one.pid for one in ranks)):
        os.kill(process, signal.SIGHUP)
    at = made(out)
    wait_for(lambda: made(out) > at + 5, 300, log)
    launcher.terminate()
    assert launcher.wait(300) == 128 + signal.SIGTERM
    assert not [one for one in ranks if one.is_running()]
    (first,) = checkpoints(out)
    told = f"stopped by SIGTERM after step {first.name[11:]}; {first.name} is whole: go on with training.resume=true."
    assert f"unsloth-accel: {told}" in log.read_text(encoding="utf-8")
    reports = [json.loads((out / "errors" / f"rank-{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]
    assert [(one["message"], one["exit_status"]) for one in reports] == [(told, 143)] * 2

    with fork_server.forked():
        launcher = launched(described, log, *words)
    at = made(out)
    wait_for(lambda: made(out) > at + 5, 300, log)
    ranks = ranks_of(launcher)
    launcher.kill()
    launcher.wait()
    _, alive = psutil.wait_procs(ranks, timeout=ORPHANS)
    assert not alive
    second = checkpoints(out)[-1]
    assert int(second.name[11:]) > at
    end = (out / "logs" / "rank-1.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    assert f"stopped by the end of its launcher after step {second.name[11:]}; {second.name} is whole" in end
    assert (out / "report.html").is_file(), "which nobody else makes now"

    done = fork_server.run(
        cli_command("launch", described, *words), cwd=ROOT, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"going on from {second}" in done.stdout
    assert [step["step"] for step in steps(out)] == [*range(1, STEPS + 1)]
    assert [step["loss"] for step in steps(out)] == [step["loss"] for step in steps(straight)]
    ours, theirs = adapter(out), adapter(straight)
    assert all(ours[name].equal(theirs[name]) for name in theirs)

    again = cli("launch", described, *words)
    assert (again.returncode, again.stdout) == (
        0,
        f"nothing is left to do: {out / 'adapter'} is there (training.resume=if_any)\n",
    )
