"""Callbacks in real runs of two processes, of which rank 1 is slow, computes NaN, or comes to hold other weights."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import fork_server
import pytest
from conftest import ROOT, SCRIPTS, cli_command, variable_rows, write_yaml

from unsloth_accel.report.run_record import read_lines

pytestmark = pytest.mark.slow
SLEEP = 0.4
"""Seconds per step, as in train_with_fault.py."""


def train(tiny: Path, out: Path, fault: str, steps: int, **training: Any) -> subprocess.CompletedProcess[str]:
    from unsloth_accel.hardware.hardware import Hardware
    from unsloth_accel.planning.planner import plan

    rows = variable_rows(out / "rows.jsonl", [9 + (37 * i) % 88 for i in range(64)])
    described = write_yaml(
        out / "described.yaml",
        {
            "model": {"name": str(tiny), "max_seq_length": 96, "dtype": "float32"},
            "data": {"path": str(rows)},
            "batch": {"global_size": 8},
            "training": {"max_steps": steps, "bf16": False, "per_device_train_batch_size": 4, **training},
            "distributed": {"num_processes": 2, "device": "cpu", "strategy": "ddp"},
            "logging": {"report_to": "tensorboard", "rank_sync_steps": 0 if fault.startswith("slow") else 3},
            "output_dir": str(out),
        },
    )
    from unsloth_accel.config.read_run import load

    decided = plan(load(described), Hardware.detect())
    decided.write(out)
    variables = {**os.environ, **decided.accelerate_config.environment, "FAULT": fault}
    flags = ["--config_file", str(out / "accelerate.yaml")]
    command = cli_command("launch", *flags, SCRIPTS / "train_with_fault.py", out / "run.planned.yaml")
    return fork_server.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=variables)


def lines(out: Path, rank: int, event: str) -> list[dict[str, Any]]:
    return [line for line in read_lines(out / "logs" / f"rank-{rank}.jsonl") if line["event"] == event]


def test_a_slow_rank_is_named_with_its_cause(tiny: Path, tmp_path: Path) -> None:
    """Slow in its loader up to step 13, then in its forward pass, its optimizer and a callback for ten steps each: the
    other rank waits as long, and each time is told with its share."""
    done = train(tiny, tmp_path, "slow@13", 44)
    assert done.returncode == 0, done.stdout + done.stderr
    steps = {rank: {line["step"]: line for line in lines(tmp_path, rank, "step")} for rank in (0, 1)}
    assert sorted(steps[0]) == sorted(steps[1]) == list(range(1, 45))
    parts = ("data_seconds", "compute_seconds", "callbacks_seconds", "wait_seconds")
    for first, slow in ((4, parts[0]), (15, parts[1]), (25, parts[1]), (36, parts[2])):
        middle = range(first, first + 8)
        median = {
            (rank, name): sorted(steps[rank][step][name] for step in middle)[len(middle) // 2]
            for rank in (0, 1)
            for name in (*parts, "seconds")
        }
        assert median[1, slow] > SLEEP
        assert median[1, slow] - median[0, slow] > 0.8 * SLEEP
        assert median[0, "wait_seconds"] > 0.8 * SLEEP > 2 * median[1, "wait_seconds"]
        for rank in (0, 1):
            whole = sorted(sum(steps[rank][s][name] for name in parts) / steps[rank][s]["seconds"] for s in middle)
            assert whole[len(whole) // 2] > 0.8
            assert whole[-1] < 1.01, "no time is told twice"
    summary = json.loads((tmp_path / "logs" / "summary.json").read_text(encoding="utf-8"))
    assert [(found["rank"], found["cause"]) for found in summary["stragglers"]] == [
        (1, cause) for cause in ("data", "unknown", "optimizer", "callbacks")
    ]
    assert done.stderr.count("rank 1 (") == 4, "once per episode, on one console"
    assert [line["source"] for line in summary["warnings"]] == ["straggler"] * 4
    slept = 43 * SLEEP / sum(line["seconds"] for line in steps[0].values())
    assert summary["ranks"][0]["wait_share"] > 0.7 * slept > 2 * summary["ranks"][1]["wait_share"]
    assert summary["steps"] == 44
    assert summary["mfu"] is None
    assert "CPU" in summary["mfu_why"]
    # Every row of the two epochs and a bit, each byte a token with one to end the row.
    logged = [json.loads(text) for text in (tmp_path / "logs" / "steps.jsonl").read_text().splitlines()]
    assert summary["tokens"] == logged[-1]["num_input_tokens_seen"]
    reported = [json.loads(text) for text in (tmp_path / "reported.jsonl").read_text().splitlines()]
    compared = [line for line in reported if "tokens_per_second" in line]
    assert 2 <= len(compared) < 44  # steps of less than half a second share an exchange
    assert all({"data_share", "callbacks_share", "wait_share", "host_gib", "loss"} <= line.keys() for line in compared)
    assert lines(tmp_path, 1, "start")[0]["world_size"] == 2
    assert lines(tmp_path, 1, "end")[0]["status"] == "finished"
    assert {"loading", "tokenising"} <= {line["name"] for line in lines(tmp_path, 1, "phase")}


def test_nan_on_one_rank_stops_all_and_keeps_the_last_good_checkpoint(tiny: Path, tmp_path: Path) -> None:
    """Logged every fifth step only: step 4, which is NaN, is the one to be saved."""
    done = train(tiny, tmp_path, "nan@4", 12, logging_steps=5, save_strategy="steps", save_steps=2)
    assert done.returncode == 1
    assert done.stderr.count("diverged at step 4: trained weights are NaN or infinite") == 1
    assert "The last good checkpoint is" in done.stderr
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    for rank in (0, 1):
        (error,) = lines(tmp_path, rank, "error")
        assert (error["source"], error["step"]) == ("divergence", 4)
        assert error["last_good"].endswith("checkpoint-2")
        assert lines(tmp_path, rank, "end")[0]["status"] == "failed"


def test_ranks_that_differ_are_stopped(tiny: Path, tmp_path: Path) -> None:
    done = train(tiny, tmp_path, "desync@5", 12)
    assert done.returncode == 1
    assert done.stderr.count("trainable weights after step 6 (last seen equal after step 3) differ between ranks") == 1
    for rank in (0, 1):
        (error,) = lines(tmp_path, rank, "error")
        assert (error["source"], error["step"]) == ("rank_sync", 6)
