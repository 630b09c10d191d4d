"""GRPO, trained for real in two processes: as in one on the same completions, watched, saved and gone on with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import fork_server
import pytest
import yaml
from conftest import CPU_DDP, ROOT, SCRIPTS, cli_command, steps, write_yaml

pytestmark = pytest.mark.slow
TOLERANCE = 1e-5
EVENS = """
def evens(completions, completion_ids, answer, **columns):
    assert all(int(one) >= 0 for one in answer)
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]
"""


@pytest.fixture(scope="module")
def described(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps with a checkpoint after two, and held-out prompts; four completions to each of four."""
    place = tmp_path_factory.mktemp("grpo")
    (place / "my_rewards.py").write_text(EVENS, encoding="utf-8")
    rows = [
        {"prompt": f"What is {number} {'and zero ' * (number % 4)}times two?", "answer": 2 * number}
        for number in range(21)
    ]
    for name, some in (("rows", rows[:16]), ("eval", rows[16:])):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
    values = {
        "method": "grpo",
        "model": {"name": str(tiny), "max_seq_length": 128, "dtype": "float32"},
        "data": {"path": str(place / "rows.jsonl"), "eval_path": str(place / "eval.jsonl")},
        "rewards": {"functions": [f"{place / 'my_rewards.py'}:evens"]},
        "batch": {"global_size": 16},
        "training": {
            # AdamW's first steps go as far for the smallest gradient, whose sign may be a processor's rounding.
            "learning_rate": 1e-3,
            "bf16": False,
            "num_generations": 4,
            "max_completion_length": 16,
            "per_device_train_batch_size": 4,
            "max_steps": 4,
            "save_strategy": "steps",
            "save_steps": 2,
        },
        "distributed": {"device": "cpu", "num_processes": 2},
        "output_dir": str(place / "two"),
    }
    return write_yaml(place / "run.yaml", values)


def command(*words: str | Path) -> str:
    done = fork_server.run(cli_command(*words), cwd=ROOT, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_two_processes_train_watch_save_and_go_on(described: Path, tmp_path: Path) -> None:
    told, two = command("launch", described), described.parent / "two"
    assert "16 completions per step, 4 to each of 4 prompts" in told
    logged = steps(two)
    assert [line["step"] for line in logged] == [1, 2, 3, 4]
    for name in (
        "reward",
        "frac_reward_zero_std",
        "completions/clipped_ratio",
        "generating_seconds",
        "scoring_seconds",
    ):
        assert all(name in line for line in logged)
    assert all(line["generating_seconds"] > 0 for line in logged)
    kept = [json.loads(line) for line in (two / "logs" / "completions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {line["step"] for line in kept} == {1, 2, 3, 4}
    assert all(0 <= reward <= 1 for line in kept for reward in line["rewards"].values())
    assert all("times two?" in line["prompt"] and line["rewards"] for line in kept)
    assert "Completions that were trained on" in (two / "report.html").read_text(encoding="utf-8")
    results = json.loads((two / "results.json").read_text(encoding="utf-8"))
    before, after = (results[when]["reward"] for when in ("before", "after"))
    assert 0 <= before <= 1
    assert f"held-out reward    {before:.4f} before → {after:.4f} after" in told
    assert f"step 4/4  reward {logged[-1]['reward']:.4f}  loss " in told
    assert "held-out loss" not in told
    assert "trained_tokens" not in results["data"]
    again = tmp_path / "again"
    shutil.copytree(two / "checkpoint-2", again / "checkpoint-2")
    words = ["training.resume=true", "evaluation.loss=false", "training.eval_strategy=epoch"]
    told = command("launch", described, f"output_dir={again}", *words, "training.early_stopping_patience=5")
    assert "stops early: when eval_reward is no better" in told
    results = json.loads((again / "results.json").read_text(encoding="utf-8"))
    assert [(one["step"], 0 <= one["reward"] <= 1) for one in results["evaluations"]] == [(4, True)]
    assert [line["step"] for line in steps(again)] == [3, 4]
    # Out of memory with more than two rows on one rank: the longest step shows it, and the steps are the same.
    out = tmp_path / "out-of-memory"
    same = {**yaml.safe_load(described.read_text(encoding="utf-8")), "output_dir": str(out)}
    run = write_yaml(tmp_path / "same.yaml", same)
    told = command("launch", "--config_file", CPU_DDP, SCRIPTS / "out_of_memory.py", run, "--rows", "2")
    assert "rank 1: out of memory in the rehearsal, with 4 rows (" in told
    assert "4 rows" in told.partition("rehearsed the longest step with ")[2]
    assert told.count("The step is done again") == 1, "what was learned before step 1 is kept"
    for name in ("loss", "grad_norm", "reward", "entropy", "completions/mean_length"):
        pairs = [(a[name], b[name]) for a, b in zip(steps(out), logged, strict=True)]
        # Entropy is near 6, and float32's rounding with it; loss and gradient norm are below 1.
        assert max(abs(a - b) / max(1, abs(b)) for a, b in pairs) <= TOLERANCE


def test_verify_trains_both_on_the_same_completions(described: Path, tmp_path: Path) -> None:
    told, kept = tmp_path / "verify.json", tmp_path / "kept"
    command("verify", described, "--strategy", "ddp", "--steps", "2", "--json", told, "--keep", kept)
    found = json.loads(told.read_text(encoding="utf-8"))["runs"]["ddp"]
    assert found["same"], found["faults"]
    ours, theirs = (steps(kept / name) for name in ("single", "ddp"))
    for name in ("loss", "grad_norm", "reward", "completions/mean_length"):
        assert max(abs(a[name] - b[name]) for a, b in zip(ours, theirs, strict=True)) <= TOLERANCE
    assert found["difference"]["adapter_absolute"] <= TOLERANCE
    # Not by chance: each rank alone would have written others.
    assert len((kept / "completions.jsonl").read_text(encoding="utf-8").splitlines()) == 2
    assert all(
        line["generating_seconds"] < 0.5 * other["generating_seconds"] for line, other in zip(theirs, ours, strict=True)
    )


def test_a_script_needs_one_line(tiny: Path, tmp_path: Path) -> None:
    script = (SCRIPTS / "grpo_support.py", tiny, tmp_path / "out")
    told = command("launch", "--config_file", CPU_DDP, *script)
    assert "2 processes, ddp: 8 rows per step" in told  # adapted, and so guarded
    kept = (tmp_path / "out" / "logs" / "completions.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["step"] for line in kept} == {1, 2}
