"""After a failure: one traceback on the console, the first rank's, and what the others said in their logs."""

import json
import os
import shutil
import sys
from pathlib import Path

import fork_server
import pytest
from conftest import CPU_DDP, ROOT, SCRIPTS, cli_command, write_small_run, write_yaml

from unsloth_accel.adapters import environment
from unsloth_accel.artifacts.run_directory import ERRORS
from unsloth_accel.errors import ConfigError, Problem, UnslothAccelError
from unsloth_accel.launch import rank_errors
from unsloth_accel.launch.rank_errors import TELLER, collecting, in_a_line, is_told, report_error, reports_in, tell
from unsloth_accel.report.at_end import reported

BESIDES = 15
"""Most lines beside the traceback."""


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def parts(printed: str) -> tuple[list[str], list[str]]:
    """The lines of the one traceback in what a launch printed after it failed, and those beside it."""
    assert printed.count("Traceback (most recent call last):") == 1
    before, _, rest = printed.partition("Traceback (most recent call last):\n")
    lines = rest.splitlines()
    end = next(index for index, line in enumerate(lines) if not line.startswith(" ")) + 1
    return lines[:end], [*before.splitlines(), *lines[end:]]


def test_one_traceback_is_told_and_all_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report_error(tmp_path, 1, raised(KeyError("input_idz")))
    report_error(tmp_path, 0, raised(RuntimeError("connection closed by peer")))
    first, other = reports_in(tmp_path)
    assert (first["rank"], other["rank"]) == (1, 0)
    tell([first, other], first, tmp_path, is_run=True, several=True)
    told, besides = parts(capsys.readouterr().err)
    assert told[-1] == "KeyError: 'input_idz'"
    assert besides == [f"rank 1 failed first; what rank 0 said is in {tmp_path / 'logs' / 'rank-0.log'}"]
    for rank, said in ((0, "RuntimeError: connection closed by peer"), (1, "KeyError: 'input_idz'")):
        assert (tmp_path / "logs" / f"rank-{rank}.log").read_text(encoding="utf-8").splitlines()[-1] == said


def test_a_lost_connection_is_never_the_first_where_there_is_another_error(tmp_path: Path) -> None:
    """A script that ends its process group in a `finally` tells its own error after its peer has fallen."""
    report_error(tmp_path, 0, RuntimeError("[1] is setting up NCCL communicator: remote process exited"))
    report_error(tmp_path, 2, RuntimeError("pair.cc:553 Connection closed by peer [127.0.0.1]:25499"))
    report_error(tmp_path, 1, KeyError("input_idz"))
    assert [report["rank"] for report in reports_in(tmp_path)] == [1, 0, 2]


def test_our_own_errors_need_no_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What they came of is in the log."""
    error = UnslothAccelError("out of memory. Fix: a larger GPU.")
    assert report_error(tmp_path, 0, error, raised(MemoryError("no room for 2 GiB"))) == 1
    (report,) = reports_in(tmp_path)
    tell([report], report, tmp_path, is_run=True, several=False)
    assert capsys.readouterr().err == ""
    assert "MemoryError: no room for 2 GiB" in (tmp_path / "logs" / "rank-0.log").read_text(encoding="utf-8")
    refused = raised(ConfigError(Problem(key="a", consequence="b.", fix="c")))
    assert report_error(tmp_path, 0, refused, refused) == 2
    (report,) = reports_in(tmp_path)
    assert report["every_rank"]
    assert report["traceback"] == ""


def test_a_long_error_is_one_line_below_its_traceback(tmp_path: Path) -> None:
    report_error(tmp_path, 0, raised(RuntimeError("missing keys:\n" + "\n".join(f"layer.{i}" for i in range(9999)))))
    (report,) = reports_in(tmp_path)
    line = in_a_line(report)
    assert line.startswith("RuntimeError: missing keys: layer.0 layer.1 ")
    assert "\n" not in line
    assert len(line) == 400
    assert len(report["traceback"]) == 2**16


def test_only_a_rank_whose_launcher_lives_leaves_it_to_that(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert not is_told()
    with collecting(None) as place:
        assert os.environ[TELLER] == str(os.getpid())
        assert not is_told(), "this process is the launcher"
        monkeypatch.setattr(rank_errors.os, "getppid", os.getpid)
        assert is_told()
        report_error(place, 0, raised(RuntimeError("no")))
        assert place.is_dir()
    assert not place.exists()
    assert TELLER not in os.environ
    with collecting(tmp_path) as place:
        assert place == tmp_path
    assert tmp_path.is_dir()


@pytest.mark.slow
@pytest.mark.parametrize(("config", "failing"), [("several", "0 1"), ("several", "1"), ("one", "0")])
def test_a_script_that_fails(config: str, failing: str, tmp_path: Path) -> None:
    one = {"distributed_type": "NO", "num_processes": 1, "use_cpu": True, "mixed_precision": "no"}
    file = CPU_DDP if config == "several" else write_yaml(tmp_path / "one.yaml", one)
    words = ["launch", "--config_file", file, "--num_cpu_threads_per_process", "1", SCRIPTS / "failing_ranks.py"]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = cli_command(*words, *failing.split())
    done = fork_server.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, env=variables)
    assert done.returncode == 1
    told, besides = parts(done.stderr)
    rank = besides[-1].removeprefix("unsloth-accel: rank ").partition(" ")[0]
    assert rank in failing.split()
    assert told[-1] == f"RuntimeError: the disk of rank {rank} is gone"
    assert besides[-1] == (
        f"unsloth-accel: rank {rank} failed: RuntimeError: the disk of rank {rank} is gone and with it all rows"
    )
    assert len(besides) <= BESIDES
    kept = [Path(line.rpartition(" is in ")[2]) for line in besides if "; what rank " in line]
    for file in kept:  # of a rank that came to say something before it was ended
        said = "gone" if failing == "0 1" else "onnection"
        assert said in file.read_text(encoding="utf-8")
        assert sorted(path.name for path in file.parents[1].rglob("*")) == ["logs", "rank-0.log", "rank-1.log"]
        shutil.rmtree(file.parents[1])


def test_a_rank_that_falls_before_it_knows_its_run_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An import that fails, of a broken installation, was told nowhere."""
    out = tmp_path / "run"
    told = []
    monkeypatch.setattr(environment, "is_told", lambda: True)
    monkeypatch.setattr("sys.excepthook", lambda *what: told.append(what))
    environment.show_own_errors_plainly()
    error = raised(ImportError("a broken installation"))
    monkeypatch.delenv(ERRORS, raising=False)
    sys.excepthook(type(error), error, error.__traceback__)  # where nobody looks: `verify` has it in its log
    assert len(told) == 1
    with reported(out):
        sys.excepthook(type(error), error, error.__traceback__)
        (report,) = reports_in(out)
    assert "ImportError: a broken installation" in report["traceback"]
    assert len(told) == 1


@pytest.mark.slow
def test_a_run_of_which_one_rank_fails(tiny: Path, tmp_path: Path) -> None:
    """Its peer falls over the connection, which is in its log; the report has it all."""
    run, out = write_small_run(tmp_path, tiny, 41, max_steps=6), tmp_path / "run"
    faults = os.pathsep.join([str(SCRIPTS / "faults"), str(ROOT)])
    variables = {**os.environ, "PYTHONPATH": faults, "TRAINING_FAULT": "raises"}
    done = fork_server.run(
        cli_command("launch", run), cwd=ROOT, capture_output=True, text=True, timeout=400, env=variables
    )
    assert done.returncode == 1
    told, besides = parts(done.stderr.partition("rank 1 failed first")[2])
    assert told[-1] == "KeyError: 'input_idz'"
    assert besides[-1] == "unsloth-accel: rank 1 failed: KeyError: 'input_idz'"
    after = done.stdout.rpartition("  loss ")[2].splitlines()[1:]
    assert len(besides) + len(after) <= BESIDES
    assert (out / "logs" / "rank-1.log").read_text(encoding="utf-8").splitlines()[-1] == "KeyError: 'input_idz'"
    assert json.loads((out / "errors" / "launch.json").read_text(encoding="utf-8"))["ended"]
    shutil.rmtree(out)
