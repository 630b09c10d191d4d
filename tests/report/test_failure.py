"""Why a run failed, as its report says it."""

import json
from pathlib import Path
from typing import Any

import pytest
import run_directories as made
from report_pages import Tags, html_of

from unsloth_accel.report.failure import Failure, failure
from unsloth_accel.report.run_record import read_run_record

TRACEBACK = "Traceback (most recent call last):\n  File 'torch/utils/data/dataloader.py', line 1\nKeyError: 'input_idz'"
GONE = "RuntimeError: Connection closed by peer"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two ranks that logged 60 steps, and no error."""
    made.crashed(tmp_path / "run")
    (tmp_path / "run" / "errors" / "rank-1.json").unlink()
    return tmp_path / "run"


def why(run: Path, launch: dict[str, Any] | None = None, **ranks: dict[str, Any]) -> Failure:
    """What is said after these errors were left: the launcher's, and of ranks by `rank_N`."""
    told = {name.replace("_", "-"): {"rank": int(name[-1]), "exit_status": 1, **one} for name, one in ranks.items()}
    for number, (name, error) in enumerate((told | ({"launch": launch} if launch else {})).items()):
        written = json.dumps({"time": made.START + 99 + number, **error})
        (run / "errors" / f"{name}.json").write_text(written, encoding="utf-8")
    found = failure(read_run_record(run))
    assert found is not None
    return found


def test_the_rank_that_fell_first_is_shown_with_its_traceback(run: Path) -> None:
    launch = {"message": "rank 1 failed: KeyError: 'input_idz'", "exit_status": 1, "first": 1, "ended": {"1": 1}}
    found = why(
        run,
        launch,
        rank_1={"message": "KeyError: 'input_idz'", "traceback": TRACEBACK},
        rank_0={"message": GONE, "traceback": f"Traceback\n{GONE}"},
    )
    assert (found.first, found.traceback) == (1, TRACEBACK)
    assert [(one.rank, one.step, one.how, one.said, one.first) for one in found.ranks] == [
        (0, "60", "exit status 1", GONE, False),
        (1, "60", "exit status 1", "KeyError: 'input_idz'", True),
    ]
    described = run / "run.planned.yaml"
    assert [command for _, command in found.tries] == [
        f"unsloth-accel preview {described}",
        f"unsloth-accel launch {described} --num_processes 1 output_dir={run}-again",
        "",
    ]
    words = Tags(html_of(run)).text
    for part in ("What failed", "Traceback of rank 1, which failed first", "torch/utils/data", "What to try"):
        assert part in words


@pytest.mark.parametrize(
    ("status", "how", "command"),
    [(-9, "SIGKILL", "sudo dmesg -T"), (-11, "SIGSEGV", "PYTHONFAULTHANDLER=1 unsloth-accel launch")],
)
def test_a_rank_that_was_killed_left_no_traceback(run: Path, status: int, how: str, command: str) -> None:
    """And its peers', over the connection, is not shown for its."""
    launch = {"message": f"rank 1 was ended by {how}.", "first": 1, "ended": {"1": status, "0": -15}}
    found = why(run, launch, rank_0={"message": GONE, "traceback": f"Traceback\n{GONE}"})
    assert (found.first, found.traceback) == (1, "")
    assert [(one.how, one.said) for one in found.ranks] == [("SIGTERM", GONE), (how, "")]
    assert found.tries[0][1].startswith(command)


def test_without_a_launcher_of_ours_the_first_that_wrote_is_the_first(run: Path) -> None:
    found = why(run, rank_0={"message": "ImportError: libcudart.so.12", "traceback": "ImportError: libcudart.so.12"})
    assert (found.first, found.traceback) == (0, "ImportError: libcudart.so.12")
    assert [one.how for one in found.ranks] == ["exit status 1", ""]
    assert found.tries[0][1] == "unsloth-accel doctor"


def test_what_is_no_error_of_ours_breaks_nothing(run: Path) -> None:
    launch = {"message": 5, "first": "x", "ended": {"y": [], "1": "z"}}
    found = why(run, launch, rank_0={"message": None, "traceback": [1], "exit_status": 10**400, "time": "then"})
    assert len(found.ranks) == 2
    assert "What failed" in html_of(run)


def test_a_finished_run_has_no_failure(two: Path) -> None:
    assert failure(read_run_record(two)) is None
    assert "What failed" not in html_of(two)
