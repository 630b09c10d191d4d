"""The longest step, computed before the first one and dropped: real runs in processes of their own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fork_server
import pytest
from conftest import ROOT, SCRIPTS, Run, adapter, cli_command, steps, variable_rows, write_yaml

from unsloth_accel.config.read_run import load
from unsloth_accel.report.run_record import read_lines

pytestmark = pytest.mark.slow
TOLD = ("loss", "grad_norm", "num_tokens", "num_input_tokens_seen", "mean_token_accuracy", "entropy", "learning_rate")
Launched = Callable[..., Path]


@pytest.fixture(scope="module")
def described(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps of eight rows of 9 to 96 bytes, with dropout; the longest micro-batch is not in the first step."""
    place = tmp_path_factory.mktemp("described")
    return write_yaml(
        place / "run.yaml",
        {
            "model": {"name": str(tiny), "max_seq_length": 96, "dtype": "float32"},
            "lora": {"dropout": 0.1},
            "data": {"path": str(variable_rows(place / "rows.jsonl", [9 + (37 * i) % 88 for i in range(41)]))},
            "batch": {"global_size": 8, "rehearse": "true"},
            "training": {
                "max_steps": 6,
                "learning_rate": 1e-2,
                "bf16": False,
                "per_device_train_batch_size": 2,
                "save_strategy": "no",
            },
            "distributed": {"num_processes": 2, "device": "cpu"},
            "output_dir": "overridden",
        },
    )


@pytest.fixture
def launched(described: Path, tmp_path: Path) -> Launched:
    """Launch the run with these overrides; returns its directory."""

    def launch(name: str, *overrides: str) -> Path:
        command = cli_command("launch", described, f"output_dir={tmp_path / name}", *overrides)
        done = fork_server.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stdout + done.stderr
        (tmp_path / f"{name}.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
        return tmp_path / name

    return launch


def assert_same(one: Path, other: Path) -> None:
    """All that was logged, and the saved adapters, to the bit."""
    import torch

    ours, theirs = ([{key: line.get(key) for key in ("step", *TOLD)} for line in steps(run)] for run in (one, other))
    assert ours == theirs
    assert len({line["loss"] for line in ours}) == len(ours) > 1
    first, second = adapter(one), adapter(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def rehearsed(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "results.json").read_text(encoding="utf-8"))["rehearsal"]
    return found


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param((), id="accumulation"),
        pytest.param(("batch.on_out_of_memory=stop", "batch.balance=rows"), id="DDP's own averaging"),
        pytest.param(("data.streaming=true", "distributed.num_processes=1"), id="streamed"),
    ],
)
def test_a_run_is_the_same_to_the_bit(overrides: tuple[str, ...], launched: Launched, described: Path) -> None:
    held_out = f"data.eval_path={described.with_name('rows.jsonl')}"
    on = launched("on", *overrides, held_out, "training.eval_strategy=epoch")
    off = launched("off", *overrides, held_out, "training.eval_strategy=epoch", "batch.rehearse=false")
    assert_same(on, off)
    results = json.loads((off / "results.json").read_text(encoding="utf-8"))
    assert "rehearsal" not in results
    assert results["evaluations"] == json.loads((on / "results.json").read_text(encoding="utf-8"))["evaluations"]
    found = rehearsed(on)
    assert found["tokens"] >= 96
    assert found["evaluated"][1] >= 96
    assert found["peak_gib"] is None
    lines = [line for line in read_lines(on / "logs" / "rank-0.jsonl") if line["event"] in ("rehearsal", "phase")]
    assert [line["event"] for line in lines if line.get("name", "rehearsing") == "rehearsing"] == ["phase", "rehearsal"]
    printed = on.with_suffix(".txt").read_text(encoding="utf-8")
    assert printed.count("\nrehearsed ") == 1
    assert printed.index("\nrehearsed ") < printed.index("\nstep 1/6")


@pytest.fixture
def short_of_memory(described: Path, tmp_path: Path, cli: Run) -> Callable[..., Any]:
    """Launch the run with these overrides, with rank 1 short of memory in this way."""
    from unsloth_accel.hardware.hardware import Hardware
    from unsloth_accel.planning.planner import plan

    def launch(*arguments: str, overrides: tuple[str, ...] = ()) -> Any:
        run = tmp_path / "short"
        plan(load(described, [f"output_dir={run}", *overrides]), Hardware.detect()).write(run)
        script = [SCRIPTS / "rehearsal_out_of_memory.py", run / "run.planned.yaml", *arguments]
        return cli("launch", "--config_file", run / "accelerate.yaml", *script, forked=True)

    return launch


def test_rows_that_do_not_fit_are_halved_before_the_first_step(short_of_memory: Any, tmp_path: Path) -> None:
    """Rank 1 alone has too little memory; both ranks begin with what fits it."""
    done = short_of_memory("--trained", "150")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "short"
    found = rehearsed(run)
    assert found["parts"] == 2
    assert "out of memory: each micro-batch in 2 parts" in found["told"]
    assert "rank 1: out of memory in the rehearsal, with 2 rows (" in done.stderr + done.stdout
    # Only in the rehearsal, not in a step.
    assert (run / "logs" / "rank-1.log").read_text(encoding="utf-8").count("OUT OF MEMORY") == 1
    assert len(steps(run)) == 6


def test_blocks_recompute_before_rows_are_halved(short_of_memory: Any, described: Path, tmp_path: Path) -> None:
    """No held-out loss is asked for, so it doesn't matter that no evaluation would fit."""
    held_out = f"data.eval_path={described.with_name('rows.jsonl')}"
    unasked = (held_out, "evaluation.loss=false", "training.eval_strategy=no")
    done = short_of_memory("--kept", "1", "--evaluated", "1", overrides=("model.keep_activations=2", *unasked))
    assert done.returncode == 0, done.stderr
    run = tmp_path / "short"
    found = rehearsed(run)
    assert (found["keep_activations"], found["parts"]) == ([2, 0], 1), "one less than fits"
    assert "blocks that keep their activations 2 → 0" in found["told"]
    assert found["evaluated"] == [0, 0]
    assert (run / "logs" / "rank-1.log").read_text(encoding="utf-8").count("OUT OF MEMORY") == 1
    assert json.loads((run / "results.json").read_text(encoding="utf-8"))["training"]["keep_activations"] == 0


def test_an_evaluation_that_does_not_fit_takes_fewer_rows(
    short_of_memory: Any, described: Path, tmp_path: Path
) -> None:
    held_out = f"data.eval_path={described.with_name('rows.jsonl')}"
    overrides = (held_out, "training.eval_strategy=epoch", "training.per_device_eval_batch_size=8")
    done = short_of_memory("--evaluated", "200", overrides=overrides)
    assert done.returncode == 0, "the held-out loss before training is computed with as many rows as fit:" + done.stderr
    run = tmp_path / "short"
    found = rehearsed(run)
    assert (found["eval_batch_size"], found["evaluated"][0], found["parts"]) == (2, 2, 1)
    assert "2 rows per device in an evaluation instead of 8" in found["told"]
    assert (run / "logs" / "rank-1.log").read_text(encoding="utf-8").count("OUT OF MEMORY") == 2  # 8, 4
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    assert results["evaluations"]
    assert results["before"]["loss"] > 0


def test_what_cannot_be_corrected_ends_the_run_with_what_helps(short_of_memory: Any, tmp_path: Path) -> None:
    done = short_of_memory("--trained", "150", overrides=("batch.on_out_of_memory=stop",))
    assert done.returncode == 1
    assert "out of memory in the rehearsal of step " in done.stderr
    assert ", the longest, with 2 rows (" in done.stderr
    assert "Fix: training.per_device_train_batch_size=1 (the global batch stays)" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "short" / "logs" / "steps.jsonl").exists()
