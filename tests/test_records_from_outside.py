"""A strategy, a method and a model family that code outside the package adds: one record and one file each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import CONFIG, ROOT, write_weights

OUTSIDE = ROOT / "tests" / "outside"


def said(*words: str | Path, plugins: str = "toy_strategy,toy_method,toy_family") -> subprocess.CompletedProcess[str]:
    """What `unsloth-accel WORDS` says where the toys are added."""
    command = [sys.executable, "-m", "unsloth_accel.cli", *map(str, words)]
    path = os.pathsep.join([str(ROOT), str(OUTSIDE)])
    environment = {**os.environ, "UNSLOTH_ACCEL_PLUGINS": plugins, "PYTHONPATH": path}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def run(tmp_path: Path, description: dict[str, Any]) -> Path:
    """A run of the toy method on a model of the toy family, by the toy strategy."""
    model = tmp_path / "model"
    (model / "config.json").write_text(json.dumps({**CONFIG, "model_type": "toy_llama"}), encoding="utf-8")
    write_weights(model)
    values = {
        **description,
        "method": "toy_method",
        "distributed": {"strategy": "toy_strategy", "num_processes": 4},
        "training": {"toy_weight": 0.5, "max_steps": 2},
    }
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return file


def test_a_plan_knows_them(run: Path) -> None:
    done = said("plan", run, "--hardware", "4xH100", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert (plan["method"], plan["strategy"]) == ("toy_method", "toy_strategy")
    assert plan["model"]["model_type"] == "toy_llama"
    # Two processes compute the same rows, so four have two shares of the batch.
    assert plan["global_batch_size"] == 8 == 2 * plan["per_device_batch_size"] * plan["gradient_accumulation_steps"]
    assert plan["environment"]["TOY_STRATEGY"] == "1"
    usual = said("plan", run, "--hardware", "4xH100", "distributed.strategy=auto")
    assert "toy_strategy  it is a toy, only taken when asked for." in usual.stdout
    assert ["method", "toy_method"] in [line.split() for line in usual.stdout.splitlines()]


def test_pairs_cost_what_the_record_says(run: Path) -> None:
    """The toy method reads two sequences for each row."""
    plain = run.with_name("sft.yaml")
    text = (
        run.read_text(encoding="utf-8").replace("method: toy_method", "method: sft").replace("  toy_weight: 0.5\n", "")
    )
    plain.write_text(text, encoding="utf-8")
    words = ("--hardware", "4xH100", "--json", "distributed.strategy=ddp")
    pairs, single = (json.loads(said("plan", file, *words).stdout) for file in (run, plain))
    assert pairs["memory_gib"]["activations"] == pytest.approx(2 * single["memory_gib"]["activations"], rel=0.01)


def test_config_and_validate_know_them(run: Path, tmp_path: Path) -> None:
    config = tmp_path / "accelerate.yaml"
    done = said("config", "--strategy", "toy_strategy", "--gpus", "4", "--out", config)
    assert done.returncode == 0, done.stderr
    text = config.read_text(encoding="utf-8")
    assert "TOY_STRATEGY=1 accelerate launch" in text
    assert yaml.safe_load(text)["distributed_type"] == "MULTI_GPU"
    assert said("validate", run).returncode == 0
    layer = tmp_path / "fsdp2.yaml"
    said("config", "--strategy", "fsdp2", "--gpus", "2", "--decoder-layer", "ToyDecoderLayer", "--out", layer)
    assert said("validate", layer).returncode == 0
    assert "ToyDecoderLayer" in said("validate", layer, plugins="").stdout
    run.write_text(run.read_text(encoding="utf-8").replace("toy_weight", "toy_wait"), encoding="utf-8")
    wrong = said("validate", run)
    assert wrong.returncode == 1
    assert "did you mean training.toy_weight?" in wrong.stdout


def test_doctor_knows_them() -> None:
    done = said("doctor", "--quick")
    assert "adds distributed.strategy toy_strategy, method toy_method, model_type toy_llama" in done.stdout
    assert "toy_strategy" in next(line for line in done.stdout.splitlines() if "can run" in line)
    broken = said("doctor", "--quick", plugins="no_such_toy")
    assert "no_such_toy" in broken.stdout
    assert broken.returncode == 1


def test_launch_knows_them(run: Path) -> None:
    done = said("launch", run, "--dry-run", "distributed.device=cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "-m toy_method" in done.stdout
    assert "TOY_STRATEGY=1" in done.stdout


def test_what_is_wrong_is_told(run: Path) -> None:
    odd = said("plan", run, "--hardware", "3xH100", "distributed.num_processes=3", "batch.global_size=6")
    assert odd.returncode == 2
    assert "distributed.num_processes=4" in odd.stderr
    unknown = said("plan", run, "--hardware", "4xH100", "method=stf", "training={}")
    assert "method='stf'" in unknown.stderr
    assert "sft" in unknown.stderr
    gone = said("plan", run, "--hardware", "4xH100", plugins="no_such_toy")
    assert gone.returncode == 2
    assert "UNSLOTH_ACCEL_PLUGINS='no_such_toy'" in gone.stderr
    chats = run.with_name("chats.jsonl")
    chats.write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n' * 8)
    rows = said("launch", run, "--dry-run", "distributed.device=cpu", f"data.path={chats}")
    assert "holds rows of messages, which toy_method doesn't train" in rows.stderr


@pytest.mark.slow
def test_the_method_trains(tiny: Path, run: Path, tmp_path: Path) -> None:
    """In processes of its own, which know it from the same variable."""
    words = (f"model.name={tiny}", "distributed={device: cpu, num_processes: 1, strategy: auto}", "batch.global_size=2")
    done = said("launch", run, *words, f"data.path={ROOT / 'README.md'}", "model.max_seq_length=32")
    assert done.returncode == 2, "a README is no data"
    rows = tmp_path / "texts.jsonl"
    rows.write_text("".join(json.dumps({"text": f"number {n}"}) + "\n" for n in range(8)), encoding="utf-8")
    done = said("launch", run, *words, f"data.path={rows}", "model.max_seq_length=32")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    out = tmp_path / "out"
    # The method's field and callback, the strategy's adapter.
    assert (out / "toy.txt").read_text(encoding="utf-8") == "0.5 2 Accelerator"
    assert yaml.safe_load((out / "run.yaml").read_text(encoding="utf-8"))["method"] == "toy_method"
    assert json.loads((out / "plan.json").read_text(encoding="utf-8"))["method"] == "toy_method"
