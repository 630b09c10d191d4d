import re
import subprocess
import sys
from pathlib import Path

import pytest
import run_directories as made
from conftest import ROOT, Run, cli_command
from processor_time import calm_seconds

from unsloth_accel.cli.main import main
from unsloth_accel.report import svg


def test_a_directory_of_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, told in ((tmp_path, "has no run's files"), (tmp_path / "no", "no such directory")):
        assert main(["report", str(path)]) == 2
        error = capsys.readouterr().err
        assert told in error
        assert "Fix: " in error


def test_the_command(two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(two)]) == 0
    assert capsys.readouterr().out == f"wrote {two / 'report.html'}\n"
    assert main(["report", str(two), "--out", str(tmp_path / "new" / "x.html")]) == 0
    assert (tmp_path / "new" / "x.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert main(["report", str(two), "--out", "/proc/no/x.html"]) == 2
    assert "can't be written" in capsys.readouterr().err
    for words in ([str(two), str(two)], ["--compare", str(two)]):
        assert main(["report", *words]) == 2
        assert "Fix: unsloth-accel report" in capsys.readouterr().err
    assert main(["report", "--compare", str(two), str(two)]) == 0
    assert (two / "compared-with-two.html").is_file()


def test_a_long_run_is_small_and_quick(tmp_path: Path) -> None:
    directory = made.eight_gpus(tmp_path)
    code = "import sys; from unsloth_accel.cli.main import main; main(sys.argv[1:]);"
    code += "assert not {'torch', 'transformers', 'accelerate'} & {*sys.modules}"
    command = [sys.executable, "-c", code, "report", str(directory)]
    assert calm_seconds(lambda: subprocess.run(command, cwd=ROOT, check=True), times=3) < 2
    path = directory / "report.html"
    assert path.stat().st_size < 1_000_000
    lines = re.findall(r'points="([^"]*)"', path.read_text(encoding="utf-8"))
    assert 500 < max(len(points.split()) for points in lines) <= svg.MOST_POINTS


def test_report_is_shown_with_open(two: Path, cli: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The default browser is a command here, as $BROWSER lets it be."""
    said = tmp_path / "said"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {said}\n', encoding="utf-8")
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{browser} %s")
    done = subprocess.run(cli_command("report", two, "--open"), cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"wrote {two / 'report.html'}\n"
    assert said.read_text(encoding="utf-8").strip() == (two / "report.html").as_uri()
