"""What commands print fits the console at any width, with every figure whole."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import MODEL, out
from conftest import ROOT
from rich.cells import cell_len
from verified_runs import chosen

from unsloth_accel.cli import doctor, tables, validate, verify
from unsloth_accel.doctor import Result
from unsloth_accel.verify.runs import Trained
from unsloth_accel.verify.table import as_text
from unsloth_accel.verify.verdict import TOLERANCES, compare
from unsloth_accel.verify.verification import StrategyOutcome, Verification

WIDTHS = (40, 60, 80, 160)
FIGURE = re.compile(r"\d[\d.,]*\d|\d")
ESCAPES = re.compile(r"\x1b\[[\d;]*m")
PLAN = ("plan", "--hardware", "4xH100", "model.name=unsloth/Llama-3.3-70B-Instruct", "batch.global_size=64")
RESULTS = [
    Result(name="CUDA_VISIBLE_DEVICES", detail="0,1: 2 of 8 GPUs"),
    Result(
        name="disk, models",
        status="error",
        detail="/a/very/long/directory/that/is/wider/than/a/narrow/terminal can't be written: Read-only file system",
        fix="mount it for writing",
        reference="accelerate#1",
    ),
    Result(name="torch", status="warning", detail="2.13.0 of 1,234 GiB " * 12, fix="pip install"),
]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """What a function prints on a terminal of so many characters, line by line."""

    def printed(width: int, function: Callable[..., Any], *arguments: Any) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
        function(*arguments)
        return ESCAPES.sub("", capsys.readouterr().out).splitlines()

    return printed


def figures(lines: list[str]) -> list[str]:
    return sorted(FIGURE.findall(re.sub(r"\s+", " ", " ".join(lines))))


@pytest.mark.parametrize("words", [PLAN, ("estimate", MODEL), ("estimate", MODEL, "--gpus", "64")], ids=lambda w: w[0])
def test_tables_at_every_width(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    piped = out(capsys, *words).splitlines()
    assert all(line == line.rstrip() for line in piped)
    told = set(figures(piped))
    assert len(told) > 20
    for width in WIDTHS:
        monkeypatch.setenv("COLUMNS", str(width))
        lines = out(capsys, *words).splitlines()
        assert max(map(cell_len, lines)) <= width, width
        assert not any("…" in line for line in lines), width
        assert all(line == line.rstrip() for line in lines), width
        # A name too long for the line is broken; figures of tables and sentences are not.
        assert {figure for figure in told if "." in figure} <= set(figures(lines)), width


@pytest.mark.parametrize("width", WIDTHS)
def test_doctor_on_a_terminal(width: int, terminal: Callable[..., list[str]]) -> None:
    lines = terminal(width, tables.print_lines, doctor.entries(RESULTS), doctor.COLOURS)
    assert max(map(cell_len, lines)) <= width
    for figure in ("1,234", "2.13.0"):
        assert any(figure in line for line in lines)
    assert lines[-1] == "1 error, 1 warning in 3 results"


def test_doctor_where_a_program_reads(capsys: pytest.CaptureFixture[str]) -> None:
    tables.print_lines(doctor.entries(RESULTS))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7, "a line each"
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize("width", WIDTHS)
def test_validate_on_a_terminal(width: int, terminal: Callable[..., list[str]]) -> None:
    file = str(ROOT / "tests" / "rules" / "fsdp-unknown-key" / "bad.yaml")
    lines = terminal(width, validate.run, [file])
    assert max(map(cell_len, lines)) <= width
    said = " ".join(line.strip() for line in lines)
    assert "15 error" in said
    assert "[fsdp-unknown-key]" in said


@pytest.mark.parametrize("width", WIDTHS)
def test_verify_on_a_terminal(
    width: int,
    terminal: Callable[..., list[str]],
    description: dict[str, Any],
    one: Trained,
    tmp_path: Path,
) -> None:
    ranks = [{"rank": rank, "adapter": "x", "loading": 12.25 + rank} for rank in range(8)]
    many = replace(one, ranks=ranks)
    plans = chosen(description, tmp_path / "v", strategies=["ddp"], num_processes=2)
    compared = compare(many, many, TOLERANCES["fp32"])
    names = ("ddp", "fsdp2", "fsdp2_native", "fsdp1")
    found = Verification(
        settings=plans,
        precision="fp32",
        tolerance=TOLERANCES["fp32"],
        single=one,
        outcomes=[StrategyOutcome(plan=plans.others[0], name=n, trained=many, comparison=compared) for n in names],
    )
    lines = terminal(width, verify.show_verified, found)
    assert max(map(cell_len, lines)) <= width
    assert not any("…" in line for line in lines)
    text = as_text(found).splitlines()
    assert all(line == line.rstrip() for line in text)
    assert {figure for figure in figures(text) if "." in figure} <= set(figures(lines))


def test_square_brackets_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    tables.console().print("markers [user] and [/assistant]", style="bold")
    assert capsys.readouterr().out == "markers [user] and [/assistant]\n"
