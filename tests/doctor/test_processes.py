import os
import subprocess
import time
from pathlib import Path
from typing import Any

import fork_server
import psutil
import pytest
from doctor_machines import Place, device, machine

from unsloth_accel.doctor import (
    Result,
    processes,
)


def script(tmp_path: Path, body: str) -> Path:
    """A stand-in for all_reduce.py: `say(**values)` leaves a word as it does."""
    path = tmp_path / "stand_in.py"
    path.write_text(
        "import json, os, sys, time\n"
        "rank = int(os.environ['RANK'])\n"
        "values = {'rank': rank}\n"
        "def say(**more):\n"
        "    values.update(more)\n"
        "    with open(f'{sys.argv[1]}/rank-{rank}.json', 'w') as file:\n"
        "        json.dump(values, file)\n" + body,
        encoding="utf-8",
    )
    return path


def ran(*ranks: dict[str, Any], status: int | None = 0, output: str = "") -> processes.LaunchOutcome:
    return processes.LaunchOutcome(status=status, output=output, ranks=ranks)


def judged(monkeypatch: pytest.MonkeyPatch, outcome: processes.LaunchOutcome, device: Any = "cuda") -> Result:
    monkeypatch.setattr(processes, "_launch", lambda *_: outcome)
    return processes.check_processes(device, 2, {}, 30)


RIGHT = {"stage": "done", "world": 2, "right": True, "bus_gb_s": 329.4}


def test_a_right_sum_is_told_with_its_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    found = judged(monkeypatch, ran({**RIGHT, "rank": 0}, {**RIGHT, "rank": 1, "bus_gb_s": 328.0}))
    assert (found.status, found.detail) == ("ok", "2 processes, exact sum, 328 GB/s bus bandwidth")


def test_a_wrong_sum_names_the_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    found = judged(monkeypatch, ran({**RIGHT, "rank": 0}, {**RIGHT, "rank": 1, "right": False}))
    assert found.status == "error"
    assert "rank 1 got a wrong sum" in found.detail


@pytest.mark.parametrize("ranks", [[{"rank": 0, "world": 1}], [{"rank": 0, "world": 1}, {"rank": 1, "world": 1}]])
def test_processes_that_form_no_group_are_an_error(monkeypatch: pytest.MonkeyPatch, ranks: list[Any]) -> None:
    found = judged(monkeypatch, ran(*ranks))
    assert found.status == "error"
    assert "train alone" in found.detail


@pytest.mark.parametrize(
    ("device", "stages", "said", "fix"),
    [
        ("cuda", ["formed", "formed"], "never ended", "NCCL_P2P_DISABLE=1"),
        ("cuda", ["formed", "done"], "never ended", "NCCL_P2P_DISABLE=1"),
        ("cuda", ["imported", "formed"], "no way to each other", "NCCL_SOCKET_IFNAME=lo"),
        ("cpu", ["imported", "imported"], "no way to each other", "GLOO_SOCKET_IFNAME=lo"),
        ("cpu", ["started", "imported"], "importing torch", "--timeout"),
        ("cpu", ["started"], "no process", "--timeout"),
    ],
)
def test_a_hang_is_told_by_its_place(
    monkeypatch: pytest.MonkeyPatch, device: str, stages: list[str], said: str, fix: str
) -> None:
    ranks = [{"rank": rank, "stage": stage} for rank, stage in enumerate(stages)]
    found = judged(monkeypatch, ran(*ranks, status=None), device)
    assert found.status == "error"
    assert f"stopped after 30 s: {found.detail.split(': ')[1]}" == found.detail
    assert said in found.detail
    assert fix in found.fix


def test_a_failure_is_told_in_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    output = (
        "[rank0]: Traceback (most recent call last):\n"
        "[rank0]: torch.distributed.DistBackendError: NCCL error, unhandled system error\n"
        "W1122 torch/elastic: Sending process 7 closing signal SIGTERM\n"
        "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n"
    )
    found = judged(monkeypatch, ran(status=1, output=output))
    assert "status 1: torch.distributed.DistBackendError: NCCL error" in found.detail
    assert "NCCL_DEBUG=INFO" in found.fix


def test_gloo_always_and_nccl_only_between_gpus(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def check(*words: Any) -> Result:
        asked.append(words[:2])
        return Result(name="", detail="")

    monkeypatch.setattr(processes, "check_processes", check)
    list(processes.all_reduce(machine(place)))
    place.torch("2.13.0+cu130", "13.0")
    list(processes.all_reduce(machine(place, device(0))))
    assert asked == [("cpu", 2)] * 2
    list(processes.all_reduce(machine(place, *(device(i) for i in range(4)))))
    assert asked[2:] == [("cpu", 2), ("cuda", 4)]


@pytest.mark.slow
def test_a_hang_is_ended_with_all_its_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time begins here when both have started, which a busy machine may take a minute for."""
    ids = tmp_path / "ids"
    ids.mkdir()
    body = f"say(stage='imported')\nopen(f'{ids}/{{os.getpid()}}', 'w').close()\ntime.sleep(600)\n"
    wait = subprocess.Popen.wait

    def wait_from_then_on(launch: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        deadline = time.monotonic() + 300
        while timeout and len([*ids.iterdir()]) < 2 and launch.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        return wait(launch, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", wait_from_then_on)
    with fork_server.forked():
        found = processes.check_processes("cpu", 2, os.environ, 1, script(tmp_path, body))
    assert "stopped after 1 s: the processes started and found no way to each other" in found.detail
    assert "GLOO_SOCKET_IFNAME" in found.fix
    started = [int(path.name) for path in ids.iterdir()]
    assert len(started) == 2
    _, alive = psutil.wait_procs([psutil.Process(one) for one in started if psutil.pid_exists(one)], timeout=60)
    assert alive == []


@pytest.mark.slow
def test_a_failing_process_is_told(tmp_path: Path) -> None:
    body = "say(stage='imported')\nif rank == 1:\n    raise RuntimeError('no route to host')\ntime.sleep(600)\n"
    found = processes.check_processes("cpu", 2, os.environ, 100, script(tmp_path, body))
    assert found.status == "error"
    assert "RuntimeError: no route to host" in found.detail
    assert found.fix


@pytest.mark.slow
def test_a_machine_with_a_stray_variable_still_sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """WORLD_SIZE and MASTER_PORT of another launch don't reach the test's processes, nor do the user's own modules."""
    (tmp_path / "random.py").write_text("raise SystemExit('imported: random.py')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    stray = {**os.environ, "WORLD_SIZE": "8", "RANK": "5", "MASTER_ADDR": "192.0.2.1", "MASTER_PORT": "1"}
    found = processes.check_processes("cpu", 2, stray, 100)
    assert (found.status, found.detail) == ("ok", "2 processes, exact sum")
