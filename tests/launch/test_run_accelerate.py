import os
import subprocess
import time
from pathlib import Path

import pytest
from conftest import CPU_DDP, ROOT, SCRIPTS, cli_command, write_checkpoint, write_yaml

from unsloth_accel.config.run_config import RunConfig


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "status", "words"),
    [
        ("raise --debug", 1, "rank 1 failed with exit status 1; its own error is above."),
        ("raise", 1, "rank 1 failed with exit status 1; its own error is above."),
        ("exit", 7, "rank 1 failed with exit status 7"),
        ("kill", 137, "rank 1 was ended by SIGKILL; out of memory is the usual reason."),
    ],
)
def test_a_failing_rank_ends_all_and_its_status_arrives(how: str, status: int, words: str) -> None:
    how, *flags = how.split()
    command = cli_command("launch", "--config_file", CPU_DDP, *flags, SCRIPTS / "one_rank_fails.py", how)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == status
    assert words in done.stderr
    if how == "raise":
        assert "RuntimeError: the disk of rank 1 is gone" in done.stderr
    assert_ended(done.stdout)


def test_the_rank_that_fell_first_is_named(tmp_path: Path) -> None:
    """Not its peer, which fell over the connection it left and had time to say so."""
    from unsloth_accel.launch.rank_errors import report_error, reports_in
    from unsloth_accel.launch.run_accelerate import _failure

    report_error(tmp_path, 0, RuntimeError("connection closed by peer"))
    reports = reports_in(tmp_path)
    killed = _failure({1: -9, 0: 1}, reports)
    assert "rank 1 was ended by SIGKILL" in str(killed)
    assert (killed.exit_status, killed.first, killed.ended) == (137, 1, {"1": -9, "0": 1})
    assert "rank 1 was ended by SIGABRT" in str(_failure({1: -6, 0: 1}, reports))
    of_its_own = [{**reports[0], "message": "KeyError: 'input_idz'"}]
    assert "rank 0 failed: KeyError" in str(_failure({1: -6, 0: 1}, of_its_own)), "NCCL's watchdog ended rank 1"
    ended = _failure({0: 1, 1: -15}, reports)
    assert str(ended) == "rank 0 failed: RuntimeError: connection closed by peer"
    assert (ended.exit_status, ended.first) == (1, 0)
    asked = _failure({1: -15, 0: -15}, [])
    assert (str(asked), asked.exit_status) == ("rank 1 was ended by SIGTERM.", 143)
    left = _failure({0: 143, 1: 7}, [])
    assert (str(left), left.exit_status) == ("rank 1 failed with exit status 7; its own error is above.", 7)
    silent = _failure({1: -15, 2: 3}, [])
    assert "rank 2 failed with exit status 3" in str(silent)
    without_a_word = _failure({0: 1, 1: 7}, reports)
    assert (without_a_word.exit_status, without_a_word.first) == (7, 1), "its peer fell over its connection"


def test_a_run_that_is_stopped_before_its_ranks_listen_is_told_what_it_has(tmp_path: Path, planned: RunConfig) -> None:
    import signal as signals

    from unsloth_accel.callbacks.stop_request import Stopped
    from unsloth_accel.launch.rank_errors import report_error
    from unsloth_accel.launch.run_accelerate import _stopped

    def told(output_dir: Path | None = tmp_path) -> str:
        return str(_stopped(tmp_path, signals.SIGTERM, output_dir))

    assert told(None) == "stopped by SIGTERM; all ranks ended."
    assert told() == "stopped by SIGTERM; all ranks ended; there is no whole checkpoint."
    write_checkpoint(tmp_path / "checkpoint-2", planned)
    assert told() == "stopped by SIGTERM; all ranks ended; checkpoint-2 is whole: go on with training.resume=true."
    report_error(tmp_path, 0, Stopped("ended by SIGTERM after its adapter was saved.", signals.SIGTERM))
    assert told() == "stopped by SIGTERM; all ranks ended. Rank 0: ended by SIGTERM after its adapter was saved."


@pytest.mark.slow
@pytest.mark.parametrize(("signal", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129), ("SIGQUIT", 131)])
@pytest.mark.parametrize("config", ["cpu_ddp.yaml", "one process"])
def test_stopping_the_launch_ends_all_ranks(signal: str, status: int, config: str, tmp_path: Path) -> None:
    import signal as signals

    file = ROOT / "accelerate_configs" / config
    environ = dict(os.environ)
    if config == "one process":
        file = write_yaml(tmp_path / "one.yaml", {"distributed_type": "NO", "num_processes": 1, "use_cpu": True})
        environ["RANK"] = "0"  # the script asks for it
    command = cli_command("launch", "--config_file", file, SCRIPTS / "one_rank_fails.py", "nothing")
    with subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ
    ) as run:
        assert run.stdout is not None
        started = "".join(run.stdout.readline() for _ in range(1 if config == "one process" else 2))
        assert len(alive(started)) == started.count("\n")
        run.send_signal(signals.Signals[signal])
        _, errors = run.communicate(timeout=300)
    assert run.returncode == status, errors
    assert f"stopped by {signal}; all ranks ended." in errors
    assert_ended(started)


def alive(output: str) -> list[int]:
    """Those of the processes that said `started PID` which still run."""
    numbers = [int(line.split()[1]) for line in output.splitlines() if line.startswith("started ")]
    assert numbers
    return [number for number in numbers if Path(f"/proc/{number}").exists()]


def assert_ended(output: str) -> None:
    deadline = time.monotonic() + 60
    while alive(output):
        assert time.monotonic() < deadline
        time.sleep(0.05)
