"""Runs made before the modules moved (tests/fixtures/runs_3238b35) are read, reported, continued and merged."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import fork_server
import pytest
from conftest import ROOT, SCRIPTS, cli_command, steps
from old_runs import HERE, KINDS, PLACE, placed, straight

from unsloth_accel.artifacts import checkpoints
from unsloth_accel.artifacts.resume_facts import resume_problems
from unsloth_accel.cli.main import main
from unsloth_accel.config.promise import PROMISED_IN_COMMENT
from unsloth_accel.config.read_run import from_dict, load
from unsloth_accel.config.run_config import RunConfig
from unsloth_accel.errors import errors
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.planning.planner import plan
from unsloth_accel.report import numbers
from unsloth_accel.report.figures import figures
from unsloth_accel.report.run_record import Recorded, read_run_record

CPU = Hardware(cpu_cores=2, host_memory_gib=8, reason="no driver")
FINISHED = tuple(kind for kind in KINDS if kind != "interrupted")
DECIDED_SINCE = (
    *("model.keep_activations=0", "training.weight_decay=0.0", "training.warmup_steps=0"),
    *("training.seed=42", "batch.rehearse=false"),
)
"""What a plan decides now, on a CPU, and was left to the Trainer: its own defaults."""
FAILURE = "rank 1 failed: RuntimeError: the third step fails on this rank (injected)"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the runs were started, as far as they can tell: all of them, and the working directory."""
    monkeypatch.chdir(placed(tmp_path, *KINDS))
    return tmp_path


def continued(kind: str, *overrides: str) -> RunConfig:
    """The run with two steps more, every `auto` decided, as a launch that resumes it compares it."""
    run = load(Path(kind, "run.yaml"), ["training.max_steps=4", *overrides])
    return from_dict(plan(run, CPU).resolved())


def json_of(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def text_of(page: Path) -> str:
    """What the body of a page says."""
    body = page.read_text(encoding="utf-8").split("<body", 1)[1].split("<script", 1)[0]
    return " ".join(re.sub(r"<[^>]*>", " ", body).split())


def test_the_files_name_no_machine() -> None:
    """But for the placeholder, which `placed` fills."""
    for path in HERE.rglob("*"):
        held = path.read_bytes() if path.is_file() else b""
        assert not re.search(rb"/(tmp|home|root|work)/", held), path
        assert all(host == b"host-1" for host in re.findall(rb'"host": "([^"]*)"', held)), path


@pytest.mark.parametrize("kind", KINDS)
def test_its_checkpoint_is_whole(kind: str, place: Path) -> None:
    (found,) = checkpoints.find_checkpoints(kind)
    newest, broken = checkpoints.newest(kind)
    assert newest == found
    assert (found.step, found.fault, found.has_adapter, broken) == (2, None, True, [])
    assert found.made_with["distributed.strategy"] == ("ddp" if kind == "interrupted" else kind)
    assert found.made_with["model.name"] == found.adapter_config["base_model_name_or_path"] == str(place / "model")
    assert not [path for path in (place / kind).rglob("*") if path.is_file() and PLACE.encode() in path.read_bytes()]


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state_1.pth", "adapter_model.safetensors", "tokenizer.json"])
def test_what_its_record_holds_is_compared(name: str, place: Path) -> None:
    """A whole checkpoint is found whole because sizes agree, not because they are not looked at."""
    file = place / "ddp" / "checkpoint-2" / name
    file.write_bytes(file.read_bytes() + b" ")
    newest, (broken,) = checkpoints.newest("ddp")
    assert newest is None
    assert broken.fault == f"{name} has {file.stat().st_size} of its {file.stat().st_size - 1} bytes"


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_run_may_go_on(kind: str, place: Path) -> None:
    said = [(problem.key, problem.severity) for problem in resume_problems(continued(kind))]
    assert said == ([] if kind == "interrupted" else [("training.resume", "warning")])


@pytest.mark.parametrize(
    ("kind", "override", "key"),
    [
        ("single", "lora.r=4", "lora.r"),
        ("interrupted", "training.seed=1", "training.seed"),
        ("ddp", "data.path=data/held-out.jsonl", "data.path"),
        ("fsdp2_native", "model.max_seq_length=64", "model.max_seq_length"),
        ("ddp", "distributed.strategy=fsdp2_native", "distributed.strategy"),
    ],
)
def test_another_run_may_not(kind: str, override: str, key: str, place: Path) -> None:
    """What it was made with is read and compared."""
    assert [problem.key for problem in errors(resume_problems(continued(kind, override)))] == [key]


@pytest.mark.parametrize("kind", FINISHED)
def test_a_finished_run_has_no_steps_left(kind: str, place: Path) -> None:
    (problem,) = resume_problems(continued(kind, "training.max_steps=2"))
    assert (problem.key, problem.severity) == ("training.max_steps", "error")


@pytest.mark.parametrize("kind", KINDS)
def test_its_description_plans_what_it_planned(kind: str, place: Path) -> None:
    """And the files that would be written for it are those that lie there."""
    decided = plan(load(Path(kind, "run.yaml")), CPU)
    before = json_of(place / kind / "plan.json")
    now = json.loads(json.dumps(decided.to_dict()))
    of_this_machine = ("hardware", "environment", "memory_gib", "reasons")
    assert {key: now[key] for key in before if key not in of_this_machine} == {
        key: value for key, value in before.items() if key not in of_this_machine
    }
    decided.write(place / "again")
    assert load(place / "again" / "run.planned.yaml") == load(place / kind / "run.yaml", DECIDED_SINCE)
    written = (place / "again" / "accelerate.yaml").read_text().splitlines(keepends=True)
    promised = [line for line in written if line.startswith(PROMISED_IN_COMMENT)]
    figures = f"rows_per_step={decided.batch.global_size} keep_activations=0"
    assert promised == [f"{PROMISED_IN_COMMENT} {figures}\n"], "which old files lack"
    rest = "".join(line for line in written if line not in promised)
    before = (place / kind / "accelerate.yaml").read_text()
    assert rest == before.replace("run.yaml", "run.planned.yaml"), "but for the name, which a user's own file may have"


@pytest.mark.parametrize("kind", KINDS)
def test_it_validates(kind: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", kind]) == 0
    told = capsys.readouterr().out
    assert f"{kind}/run.yaml: nothing to correct" in told
    assert f"{kind}/accelerate.yaml: " in told
    assert "error" not in told


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_that_it_left_is_read(kind: str, place: Path) -> None:
    found = read_run_record(kind)
    assert found.plan == json_of(place / kind / "plan.json")
    assert found.run["output_dir"] == kind
    assert found.planned_yaml == (place / kind / "run.yaml").read_text(encoding="utf-8")
    assert found.accelerate_yaml == (place / kind / "accelerate.yaml").read_text(encoding="utf-8")
    assert found.summary == json_of(place / kind / "logs" / "summary.json")
    assert [line["loss"] for line in found.steps] == [line["loss"] for line in straight(kind)[:2]]
    assert found.checkpoint == Path(kind, "checkpoint-2")
    ranks = [(rank.number, len(rank.steps), rank.end["status"], rank.starts) for rank in found.ranks]
    assert found.attempts == 1
    if kind == "interrupted":
        assert ranks == [(0, 3, "failed", 1), (1, 2, "failed", 1)]
        assert (found.results, found.adapter) == ({}, None)
        assert [(error.get("rank"), error["exit_status"]) for error in found.errors] == [(None, 1), (1, 1), (0, 1)]
        return
    assert ranks == [(number, 2, "finished", 1) for number in range(found.plan["num_processes"])]
    assert found.results == json_of(place / kind / "results.json")
    assert (found.adapter, found.errors) == (Path(kind, "adapter"), ())


@pytest.mark.parametrize("kind", FINISHED)
def test_its_report_has_its_figures(kind: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", kind]) == 0
    assert capsys.readouterr().out == f"wrote {kind}/report.html\n"
    results, summary = json_of(place / kind / "results.json"), json_of(place / kind / "logs" / "summary.json")
    found = figures(read_run_record(kind))
    training = results["training"]
    assert (found.status, found.message, found.model, found.device) == ("finished", "", "model", "cpu")
    assert (found.strategy, found.processes) == (training["strategy"], training["processes"])
    assert (found.steps, found.tokens) == (training["steps"], training["tokens"]) == (2, 712)
    assert (found.loss_first + found.loss_last) / 2 == pytest.approx(training["loss"], abs=1e-6)
    before, after = results.get("before", {}), results["after"]
    assert found.held_loss == (before.get("loss"), after["loss"])
    assert found.held_accuracy == (before.get("accuracy"), after["accuracy"])
    assert found.held_rows == after["rows"] == 2
    assert found.tokens_per_second == summary["tokens_per_second"]
    assert found.step_seconds == summary["step_seconds_median"]
    said = text_of(place / kind / "report.html")
    assert f"finished {kind} " in said
    assert f"{found.loss_first:.2f} → {found.loss_last:.2f} first and last" in said
    held = f"{before['loss']:.2f} → {after['loss']:.2f} before and after" if before else f"{after['loss']:.2f} after"
    assert f"held-out loss {held} training" in said
    assert f"{results['after']['answers'][0]['question']}" in said
    assert f"tokens per second {numbers.figure(summary['tokens_per_second'])} " in said


def test_the_interrupted_runs_report_says_why(place: Path) -> None:
    found = figures(read_run_record("interrupted"))
    summary = json_of(place / "interrupted" / "logs" / "summary.json")
    assert (found.status, found.message) == ("failed", FAILURE) == (summary["status"], summary["message"])
    assert (found.steps, found.tokens) == (3, summary["tokens"])
    assert main(["report", "interrupted"]) == 0
    said = text_of(place / "interrupted" / "report.html")
    assert f"no mixed precision {FAILURE} training loss" in said
    assert "training.resume=true" in said


def test_a_secret_that_it_wrote_is_not_shown(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Which its version did; nor is one that a command has reason to speak of."""
    token = "hf_aSecretThatNobodyShouldSee"
    for kind in ("single", "ddp"):
        file = place / kind / "run.yaml"
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace("training:\n", f"training:\n  hub_token: {token}\n"), encoding="utf-8")
        assert token in file.read_text(encoding="utf-8")
        assert main(["report", kind]) == 0
    assert main(["report", "--compare", "single", "ddp", "--out", "compared.html"]) == 0
    (place / "wrong.yaml").write_text(f"training: {{hub_token: [{token}]}}\n", encoding="utf-8")
    for words in (["wrong.yaml"], ["wrong.yaml", "--json"]):
        assert main(["validate", *words]) == 1
    told = capsys.readouterr()
    assert "training.hub_token" in told.out
    assert token not in told.out + told.err
    for page in ("single/report.html", "ddp/report.html", "compared.html"):
        assert token not in (place / page).read_text(encoding="utf-8")


@pytest.mark.parametrize(("first", "second"), [("single", "ddp"), ("fsdp2_native", "interrupted")])
def test_two_are_compared(first: str, second: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--compare", first, second, "--out", "compared.html"]) == 0
    assert capsys.readouterr().out == "wrote compared.html\n"
    said = text_of(place / "compared.html")
    for kind in (first, second):
        assert kind in said
        assert numbers.figure(figures(read_run_record(kind)).tokens_per_second) in said


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["single", "interrupted", "fsdp2_native"])
def test_it_goes_on_as_if_nothing_had_been(kind: str, place: Path) -> None:
    """Steps 3 and 4 by today's code have the losses of a straight run by that time's; `interrupted` is one of ddp."""
    command = cli_command("launch", f"{kind}/run.yaml", "training.resume=true", "training.max_steps=4")
    paths = [str(SCRIPTS / "plain_trl"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    variables["TORCH_COMPILE_DISABLE"] = "1"  # two steps aren't worth the 20 s that compiling them takes
    done = fork_server.run(command, cwd=place, capture_output=True, text=True, timeout=400, env=variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"going on from {kind}/checkpoint-2" in done.stdout
    expected, found = straight(kind), [line for line in steps(place / kind) if "loss" in line]
    assert [line["step"] for line in found] == [1, 2, 3, 4]
    for wanted, seen in zip(expected, found, strict=True):
        assert seen["loss"] == pytest.approx(wanted["loss"], abs=1e-4)
        assert seen["grad_norm"] == pytest.approx(wanted["grad_norm"], abs=1e-4)
        assert seen["learning_rate"] == pytest.approx(wanted["learning_rate"])
        assert seen["num_input_tokens_seen"] == wanted["num_input_tokens_seen"]
    assert [checkpoint.step for checkpoint in checkpoints.find_checkpoints(place / kind)] == [2, 4]
    recorded: Recorded = read_run_record(place / kind)
    told = figures(recorded)
    assert (told.status, told.steps, recorded.attempts, recorded.errors) == ("finished", 4, 2, ())
    assert json_of(place / kind / "results.json")["training"]["steps"] == 2
    assert (place / kind / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_its_adapter_is_merged(place: Path) -> None:
    """In float32: each adapted weight is the base's and its update."""
    import torch
    from safetensors.torch import load_file

    base = load_file(place / "model" / "model.safetensors")
    for kind in FINISHED:
        assert main(["merge", kind, "--dtype", "float32"]) == 0
        merged = load_file(place / kind / "merged" / "model.safetensors")
        lora = load_file(place / kind / "adapter" / "adapter_model.safetensors")
        adapted = [name for name in lora if name.endswith("lora_A.weight")]
        assert len(adapted) == 14
        for name in adapted:
            update = 4 / 2 * lora[name.replace("lora_A", "lora_B")] @ lora[name]
            weight = name.removeprefix("base_model.model.").replace("lora_A.", "")
            assert float(update.abs().max()) > 1e-3
            assert torch.allclose(merged[weight], base[weight] + update, atol=1e-6)
