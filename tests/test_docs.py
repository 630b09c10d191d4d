"""The README is true: its commands exist and run, its figures are those of benchmarks/results/."""

import importlib
import json
import os
import re
import statistics
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, Run, cli_command

from benchmarks import fsdp2_report, gpu_checks, strategies
from benchmarks.memory import HELD_OUT
from benchmarks.memory_report import measured, memory_page, speed_page
from benchmarks.tables import RESULTS, filled
from unsloth_accel.config.read_run import from_dict
from unsloth_accel.launch.arguments import parse

READMES = ("README.md", "README_CN.md")


def blocks(file: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    found = re.findall(rf"```{language}\n(.*?)```", (ROOT / file).read_text(encoding="utf-8"), flags=re.DOTALL)
    assert found
    return found


def commands(file: str) -> list[str]:
    lines = [line.split("#")[0].strip() for block in blocks(file, "bash") for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.mark.parametrize("file", READMES)
def test_tables_are_what_the_results_say(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    assert filled(file, text) == text, "run python -m benchmarks.tables"
    assert text.count(" s/step") == 4


@pytest.mark.parametrize("file", READMES)
def test_the_quickstarts_figures_are_those_of_its_result(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    result: dict[str, Any] = json.loads((RESULTS / "quickstart-cpu.json").read_text(encoding="utf-8"))
    before, after = result["before"], result["after"]
    assert f"held-out loss      {before['loss']:.4f} before → {after['loss']:.4f} after" in text
    assert f"held-out accuracy  {before['accuracy']:.1%} before → {after['accuracy']:.1%} after" in text
    assert f"{after['rows']} rows" in text
    shown = after["answers"][1]
    assert shown["question"] in text
    assert f"after   {shown['answer']}  (right)" in text
    assert " ".join(before["answers"][1]["answer"].split()) in text


def test_both_languages_give_the_same_commands() -> None:
    assert commands("README.md") == commands("README_CN.md")
    assert [line for block in blocks("README.md", "yaml") for line in block.splitlines() if not line.startswith("#")][
        -1
    ] == "output_dir: runs/llama-1b"


def test_every_command_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in commands("README.md") + commands("CONTRIBUTING.md"):
        words = command.split()
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, flags=re.MULTILINE), command
        elif words[:2] == ["unsloth-accel", "launch"]:
            parse(words[2:])
        elif words[0] == "unsloth-accel":
            importlib.import_module(f"unsloth_accel.cli.{words[1]}").parser().parse_intermixed_args(words[2:])
        else:
            assert words[0] in ("source", "python", "accelerate", ".venv/bin/python"), command
        for word in words:
            if word.startswith(("examples/", "accelerate_configs/")):
                assert (ROOT / word).exists(), command


@pytest.mark.parametrize("file", READMES)
def test_the_readmes_run_is_a_valid_description(file: str) -> None:
    (text,) = blocks(file, "yaml")
    assert from_dict(yaml.safe_load(text)).batch.global_size == 64


def test_the_readmes_mistakes_are_reported_as_shown(cli: Run, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(blocks("README.md", "yaml")[0], encoding="utf-8")
    shown = next(block for block in blocks("README.md", "text") if "lora.r=high" in block)
    command, *expected = shown.strip().splitlines()
    done = cli("launch", tmp_path / "run.yaml", *command.split()[4:])
    assert sorted(done.stderr.strip().splitlines()) == sorted(expected)


def test_the_pages_of_predictions_are_what_the_results_say() -> None:
    pages = {"memory.md": memory_page(), "speed.md": speed_page(), "fsdp2.md": fsdp2_report.page()}
    pages["gpu-checks.md"] = gpu_checks.page(json.loads((ROOT / gpu_checks.OUT).read_text(encoding="utf-8")))
    measured = [json.loads(file.read_text(encoding="utf-8")) for file in strategies.measured(ROOT)]
    pages["strategies.md"] = strategies.page(*measured)
    for name, page in pages.items():
        text = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert text == page, "run make docs"


@pytest.mark.parametrize("file", READMES)
def test_the_figures_of_fsdp2_are_the_measured_ones(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    paragraph = next(part for part in text.split("\n\n") if "docs/gpu-checks.md" in part)
    measured = fsdp2_report.newest()
    assert re.findall(r"0\.\d\d", paragraph) == [f"{measured[key]:.2f}" for key in ("of_one", "linear", "of_ddp")]


@pytest.mark.parametrize("file", [*READMES, "docs/batches.md"])
def test_the_figures_of_variable_rows_are_the_measured_ones(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    paragraph = next(part for part in text.split("\n\n") if "results/variable-2xH100.json" in part)
    report = json.loads((ROOT / "benchmarks/results/variable-2xH100.json").read_text(encoding="utf-8"))
    ways = report["comparison"]
    assert f"{ways['tokens']['tokens_per_second']:,}" in paragraph
    assert f"{ways['tokens']['ratio']:.2f}" in paragraph
    assert str(int(report["tokens_per_row"]["median"])) in paragraph


@pytest.mark.parametrize("file", READMES)
def test_the_plan_shown_is_the_plan_made(file: str) -> None:
    shown = next(block for block in blocks(file, "text") if block.startswith("$ unsloth-accel plan"))
    command, *expected = shown.splitlines()
    environment = {**os.environ, "COLUMNS": "112"}
    words = cli_command(*command.split()[2:])
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert [line.rstrip() for line in done.stdout.splitlines()] == expected


@pytest.mark.parametrize("file", READMES)
def test_the_error_of_the_estimate_is_the_measured_one(file: str) -> None:
    errors = [abs(found.error) for found in measured(HELD_OUT)]
    text = (ROOT / file).read_text(encoding="utf-8")
    assert f"{100 * statistics.median(errors):.1f} %" in text
    assert f"{100 * max(errors):.1f} %" in text
    assert f"{len(errors)} " in text


@pytest.mark.parametrize("file", ["README.md", "README_CN.md"])
def test_the_picture_shown_is_there_and_small(file: str) -> None:
    (picture,) = re.findall(r"!\[.+\]\((.+)\)", (ROOT / file).read_text(encoding="utf-8"))
    assert 10_000 < (ROOT / picture).stat().st_size < 200_000
