from pathlib import Path

import pytest

from unsloth_accel.errors import LaunchError
from unsloth_accel.report.at_end import reported, tell
from unsloth_accel.report.figures import figures
from unsloth_accel.report.run_record import read_run_record


def test_a_launch_that_fails_has_a_report_and_leaves_its_word(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LaunchError), reported(two):
        raise LaunchError("rank 1 was ended by SIGKILL; out of memory is the usual reason.", 137)
    assert capsys.readouterr().out == f"report    {two / 'report.html'}\n"
    found = figures(read_run_record(two))
    assert (found.status, found.message) == (
        "failed",
        "rank 1 was ended by SIGKILL; out of memory is the usual reason.",
    )
    assert "rank 1 was ended by SIGKILL" in (two / "report.html").read_text(encoding="utf-8")


def test_a_report_that_cannot_be_made_costs_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with reported(tmp_path / "no"):
        pass
    said = capsys.readouterr().out
    assert said.startswith("report    not made: ConfigError: ")
    assert len(said.splitlines()) == 1
    tell(tmp_path / "no")
