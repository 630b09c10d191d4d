"""The README and docs/ are true: their commands exist and run, their figures are those of benchmarks/results/."""

import configparser
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

from benchmarks import (
    fsdp2_report,
    gpu_checks,
    grpo_example,
    kept,
    pairs_report,
    preferences,
    row_sharing,
    strategies,
    strategies_page,
    tables,
)
from benchmarks.memory import HELD_OUT
from benchmarks.memory_report import measured, measured_kept, memory_page, speed_page
from benchmarks.tables import RESULTS
from unsloth_accel.config.read_run import from_dict
from unsloth_accel.files import filled
from unsloth_accel.launch.arguments import parse

READMES = ("README.md", "README_CN.md")
DETAILS = "docs/details_CN.md"
"""What README_CN.md leaves out, as measured.md, run.md and others do for README.md."""


def blocks(file: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    found = re.findall(rf"```{language}\n(.*?)```", (ROOT / file).read_text(encoding="utf-8"), flags=re.DOTALL)
    assert found
    return found


def commands(file: str) -> list[str]:
    lines = [line.split("#")[0].strip() for block in blocks(file, "bash") for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.mark.parametrize("file", READMES)
def test_a_readme_is_read_in_five_minutes(file: str) -> None:
    assert len((ROOT / file).read_text(encoding="utf-8").splitlines()) <= 170


@pytest.mark.parametrize("file", ["docs/measured.md", DETAILS])
def test_tables_are_what_the_results_say(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    assert filled(text, tables.MARKS, tables.table(file)) == text, "run python -m benchmarks.tables"
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


def test_what_grpo_learned_is_what_is_shown() -> None:
    text = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
    report: dict[str, Any] = json.loads((RESULTS / "grpo-cpu.json").read_text(encoding="utf-8"))
    assert filled(text, grpo_example.MARKS, grpo_example.table(report)) == text, "run make docs"
    rewards = [(found["before"]["reward"], found["after"]["reward"]) for found in report.values()]
    assert len(rewards) == len(grpo_example.SEEDS)
    assert max(before for before, _ in rewards) <= 0.4
    assert min(after for _, after in rewards) >= 0.8
    # On two cores that nothing else uses a run takes half of its processor seconds.
    assert max(found["processor_seconds"] for found in report.values()) / 2 <= 6 * 60


def test_what_preferences_learned_is_what_is_shown() -> None:
    text = (ROOT / "docs" / "preferences.md").read_text(encoding="utf-8")
    report: dict[str, Any] = json.loads((RESULTS / "preferences-cpu.json").read_text(encoding="utf-8"))
    made = filled(text, preferences.MARKS, preferences.table(report))
    assert made == text, "run python -m benchmarks.preferences --table"
    for found in report.values():
        assert found["after"].get("pair_accuracy", 1) >= 0.9
        assert found["curve"][-1]["loss"] < found["curve"][0]["loss"]


def test_preferences_on_two_gpus_are_what_is_shown() -> None:
    text = pairs_report.PAGE.read_text(encoding="utf-8")
    report: dict[str, Any] = json.loads(pairs_report.RESULT.read_text(encoding="utf-8"))
    assert pairs_report.written(text, report) == text, "run python -m benchmarks.pairs_report"
    apart = [found["difference"] for found in report["cells"].values() if "difference" in found]
    assert all(one["ranks_equal"] and one["same_rows"] for one in apart)


def test_both_languages_give_the_same_commands() -> None:
    assert commands("README.md") == commands("README_CN.md")
    assert blocks("README.md", "text") == blocks("README_CN.md", "text")
    assert [line for block in blocks("README.md", "yaml") for line in block.splitlines() if not line.startswith("#")][
        -1
    ] == "output_dir: runs/llama-1b"


@pytest.mark.parametrize(
    "file",
    [
        "README.md",
        "CONTRIBUTING.md",
        DETAILS,
        *(
            f"docs/{name}.md"
            for name in ("install", "migrating", "notebook-to-two-gpus", "plan", "run", "script", "verify")
        ),
    ],
)
def test_every_command_exists(file: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in commands(file):
        words = command.split()
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, flags=re.MULTILINE), command
        elif words[:2] == ["unsloth-accel", "launch"]:
            parse(words[2:])
        elif words[0] == "unsloth-accel":
            importlib.import_module(f"unsloth_accel.cli.{words[1]}").parser().parse_intermixed_args(words[2:])
        else:
            assert words[0] in ("source", "python", "accelerate", "pip", ".venv/bin/python"), command
        for word in words:
            if word.startswith(("examples/", "accelerate_configs/")):
                assert (ROOT / word).exists(), command


def test_pip_installs_what_make_does() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    gpu, cpu, unsloth = (command for command in commands("README.md") if command.startswith("pip"))
    assert (gpu, cpu) == ('pip install ".[gpu]"', 'pip install -c constraints.txt ".[cpu]"')
    assert {"gpu", "cpu"} <= set(setup["options.extras_require"])
    beside = " ".join(re.findall(r"^(?:UNSLOTH|SHARDING)_CPU := (.+)$", makefile, flags=re.MULTILINE))
    assert unsloth == f"pip install -c constraints.txt --no-deps {beside}"
    for file in READMES:
        (named,) = re.findall("^.*`quickstart`[,、].*$", (ROOT / file).read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert set(re.findall("`([a-z]+)`", named)) <= set(setup["options.extras_require"])


def headings(page: Path) -> set[str]:
    """The anchors that a page's headings make."""
    found = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize(
    "file", [page.relative_to(ROOT).as_posix() for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))]
)
def test_links_lead_somewhere(file: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / file).read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith("https://"):
            path, _, anchor = link.partition("#")
            page = (ROOT / file).parent / path
            assert page.exists(), link
            assert not anchor or anchor in headings(page), link


@pytest.mark.parametrize("file", [*READMES, "docs/run.md"])
def test_the_readmes_run_is_a_valid_description(file: str) -> None:
    (text,) = blocks(file, "yaml")
    assert from_dict(yaml.safe_load(text)).batch.global_size == 64
    assert yaml.safe_load(text) == yaml.safe_load(blocks("README.md", "yaml")[0])


@pytest.mark.parametrize("file", READMES)
def test_a_run_is_shown_before_it_is_used(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    assert text.index("# run.yaml") < min(text.index(f"{word} run.yaml") for word in ("preview", "launch", "plan"))


@pytest.mark.parametrize("file", ["docs/run.md", DETAILS])
def test_the_mistakes_are_reported_as_shown(file: str, cli: Run, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(blocks("README.md", "yaml")[0], encoding="utf-8")
    shown = next(block for block in blocks(file, "text") if "lora.r=high" in block)
    command, *expected = shown.strip().splitlines()
    done = cli("launch", tmp_path / "run.yaml", *command.split()[4:])
    assert sorted(done.stderr.strip().splitlines()) == sorted(expected)


def test_the_pages_of_predictions_are_what_the_results_say() -> None:
    pages = {"memory.md": memory_page(), "speed.md": speed_page(), "fsdp2.md": fsdp2_report.page()}
    pages["gpu-checks.md"] = gpu_checks.page(json.loads((ROOT / gpu_checks.OUT).read_text(encoding="utf-8")))
    measured = [json.loads(file.read_text(encoding="utf-8")) for file in strategies.measured(ROOT)]
    pages["strategies.md"] = strategies_page.page(*measured)
    batches = (ROOT / "docs" / "batches.md").read_text(encoding="utf-8")
    pages["batches.md"] = row_sharing.with_tables(batches)
    for name, page in pages.items():
        text = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert text == page, "run make docs"


@pytest.mark.parametrize(("file", "page"), zip(READMES, ("docs/faults.md", DETAILS), strict=True))
def test_the_faults_are_as_many_as_said(file: str, page: str) -> None:
    parts = (ROOT / page).read_text(encoding="utf-8").split("\n\n")
    _head, _line, *rows = next(part for part in parts if "MULTI_CPU" in part).strip().splitlines()
    (said,) = re.findall(r"\(docs/faults\.md\)\D*(\d+)", (ROOT / file).read_text(encoding="utf-8"))
    assert int(said) == len(rows)


@pytest.mark.parametrize("file", READMES)
def test_the_headline_figures_are_the_measured_ones(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    planned, fsdp2 = re.findall(r"^- .*H[12]00.*$", text, flags=re.MULTILINE)
    report = json.loads((RESULTS / "strategies-2xH200.json").read_text(encoding="utf-8"))
    group, kept = next(iter(report["chosen_kept"].items()))
    assert "H200" in planned
    assert re.findall(r"\d\.\d\d", planned) == [
        f"{report['ratios'][f'{group}-{strategy}-k{kept}']['of_one_gpu']:.2f}" for strategy in ("ddp", "fsdp2")
    ]
    assert "H100" in fsdp2
    found = fsdp2_report.newest()
    assert re.findall(r"0\.\d\d", fsdp2) == [f"{found[key]:.2f}" for key in ("of_one", "linear")]


@pytest.mark.parametrize("file", ["docs/measured.md", DETAILS])
def test_the_figures_of_fsdp2_are_the_measured_ones(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    paragraph = next(part for part in text.split("\n\n") if "(gpu-checks.md)" in part)
    measured = fsdp2_report.newest()
    assert re.findall(r"0\.\d\d", paragraph) == [f"{measured[key]:.2f}" for key in ("of_one", "linear", "of_ddp")]


@pytest.mark.parametrize("file", ["docs/measured.md", DETAILS, "docs/batches.md"])
def test_the_figures_of_variable_rows_are_the_measured_ones(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    paragraph = next(part for part in text.split("\n\n") if "results/variable-2xH100.json" in part)
    report = json.loads((ROOT / "benchmarks/results/variable-2xH100.json").read_text(encoding="utf-8"))
    ways = report["comparison"]
    assert f"{ways['tokens']['tokens_per_second']:,}" in paragraph
    assert f"{ways['tokens']['ratio']:.2f}" in paragraph
    assert str(int(report["tokens_per_row"]["median"])) in paragraph


def plan_lines(words: list[str], directory: Path) -> list[str]:
    """What `unsloth-accel plan` says with `words`, in `directory`."""
    environment = {**os.environ, "COLUMNS": "112"}
    command = cli_command("plan", *words)
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=True)
    return [line.rstrip() for line in done.stdout.splitlines()]


def test_the_plan_shown_is_the_plan_made() -> None:
    shown = next(block for block in blocks("docs/plan.md", "text") if block.startswith("$ unsloth-accel plan"))
    command, *expected = shown.splitlines()
    assert plan_lines(command.split()[3:], ROOT) == expected


@pytest.mark.parametrize("file", READMES)
def test_the_part_of_a_plan_shown_is_of_the_plan_made(file: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(blocks(file, "yaml")[0], encoding="utf-8")
    shown = next(block for block in blocks(file, "text") if block.startswith("$ unsloth-accel plan"))
    command, _, output = shown.partition("\n")
    made = "\n".join(["", *plan_lines(command.split()[3:], tmp_path), ""])
    places = [made.find(f"\n{part}") for part in output.split("…\n")]
    assert len(places) > 1
    assert places[0] > -1
    assert places == sorted(set(places)), "each part after the one before"


@pytest.mark.parametrize("file", [*READMES, DETAILS, "docs/plan.md"])
def test_the_error_of_the_estimate_is_the_measured_one(file: str) -> None:
    errors = [abs(found.error) for found in (*measured(HELD_OUT), *measured_kept(kept.HELD_OUT))]
    text = (ROOT / file).read_text(encoding="utf-8")
    assert f"{100 * statistics.median(errors):.1f} %" in text
    assert f"{100 * max(errors):.1f} %" in text
    assert str(len(errors)) in text
    assert f"{len(errors)} " in text


@pytest.mark.parametrize("file", [*READMES, "docs/report.md"])
def test_the_picture_shown_is_there_and_small(file: str) -> None:
    (picture,) = re.findall(r"!\[.+\]\((.+)\)", (ROOT / file).read_text(encoding="utf-8"))
    assert 10_000 < ((ROOT / file).parent / picture).stat().st_size < 200_000
