"""A strategy, method, model family and reward that code outside the package adds: one record and one file each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import fork_server
import pytest
import yaml
from conftest import CONFIG, ROOT, write_weights

OUTSIDE = ROOT / "tests" / "outside"
TOYS = "toy_strategy,toy_method,toy_family"
COMMANDS = """\
import contextlib, io, json, sys
from unsloth_accel.cli.main import main

for words in json.load(sys.stdin):
    told, wrong = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(wrong):
        status = main(words)
    print(json.dumps([status, told.getvalue(), wrong.getvalue()]))
"""
"""Several commands in one process, since starting one takes longer than what it does."""


class Said(NamedTuple):
    status: int
    told: str
    wrong: str


def environment(plugins: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), str(OUTSIDE)])
    return {**os.environ, "UNSLOTH_ACCEL_PLUGINS": plugins, "PYTHONPATH": path, "COLUMNS": "200"}


def said(*commands: tuple[str | Path, ...], plugins: str = TOYS) -> list[Said]:
    """What each of `commands` of `unsloth-accel` says where the toys are added."""
    given = json.dumps([[str(word) for word in words] for words in commands])
    command = [sys.executable, "-c", COMMANDS]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(plugins), input=given, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [Said(*json.loads(line)) for line in done.stdout.splitlines()]


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


def test_plan_launch_and_doctor_know_them(run: Path) -> None:
    planned, usual, dry, doctor = said(
        ("plan", run, "--hardware", "4xH100", "--json"),
        ("plan", run, "--hardware", "4xH100", "distributed.strategy=auto"),
        ("launch", run, "--dry-run", "distributed.device=cpu"),
        ("doctor", "--quick"),
    )
    assert planned.status == 0, planned.wrong
    plan = json.loads(planned.told)
    assert (plan["method"], plan["strategy"]) == ("toy_method", "toy_strategy")
    assert plan["model"]["model_type"] == "toy_llama"
    # Two processes compute the same rows, so four have two shares of the batch.
    assert plan["global_batch_size"] == 8 == 2 * plan["per_device_batch_size"] * plan["gradient_accumulation_steps"]
    assert plan["environment"]["TOY_STRATEGY"] == "1"
    assert "toy_strategy  it is a toy, only taken when asked for." in usual.told
    assert ["method", "toy_method"] in [line.split() for line in usual.told.splitlines()]
    assert dry.status == 0, dry.told + dry.wrong
    assert "-m toy_method" in dry.told
    assert "TOY_STRATEGY=1" in dry.told
    assert "adds distributed.strategy toy_strategy, method toy_method, model_type toy_llama" in doctor.told
    assert "toy_strategy" in next(line for line in doctor.told.splitlines() if "can run" in line)


def test_pairs_cost_what_the_record_says(run: Path) -> None:
    """The toy method reads two sequences for each row."""
    plain = run.with_name("sft.yaml")
    text = (
        run.read_text(encoding="utf-8").replace("method: toy_method", "method: sft").replace("  toy_weight: 0.5\n", "")
    )
    plain.write_text(text, encoding="utf-8")
    words = ("--hardware", "4xH100", "--json", "distributed.strategy=ddp")
    found = [json.loads(one.told) for one in said(("plan", run, *words), ("plan", plain, *words))]
    pairs, single = (plan["memory_gib"]["activations"] for plan in found)
    assert pairs == pytest.approx(2 * single, abs=0.0015)  # both are rounded to three digits


def test_config_and_validate_know_them(run: Path, tmp_path: Path) -> None:
    config, layer, wrong = tmp_path / "accelerate.yaml", tmp_path / "fsdp2.yaml", tmp_path / "wrong.yaml"
    wrong.write_text(run.read_text(encoding="utf-8").replace("toy_weight", "toy_wait"), encoding="utf-8")
    made, checked, with_layer, layers, misspelt = said(
        ("config", "--strategy", "toy_strategy", "--gpus", "4", "--out", config),
        ("validate", run),
        ("config", "--strategy", "fsdp2", "--gpus", "2", "--decoder-layer", "ToyDecoderLayer", "--out", layer),
        ("validate", layer),
        ("validate", wrong),
    )
    assert (made.status, checked.status, with_layer.status, layers.status) == (0, 0, 0, 0)
    text = config.read_text(encoding="utf-8")
    assert "TOY_STRATEGY=1 accelerate launch" in text
    assert yaml.safe_load(text)["distributed_type"] == "MULTI_GPU"
    assert misspelt.status == 1
    assert "did you mean training.toy_weight?" in misspelt.told
    (unknown,) = said(("validate", layer), plugins="")
    assert "ToyDecoderLayer" in unknown.told


def test_what_is_wrong_is_told(run: Path) -> None:
    chats = run.with_name("chats.jsonl")
    chats.write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n' * 8)
    odd, unknown, rows = said(
        ("plan", run, "--hardware", "3xH100", "distributed.num_processes=3", "batch.global_size=6"),
        ("plan", run, "--hardware", "4xH100", "method=stf"),
        ("launch", run, "--dry-run", "distributed.device=cpu", f"data.path={chats}"),
    )
    assert odd.status == 2
    assert "distributed.num_processes=2, or distributed.num_processes=auto and 4 such GPUs" in odd.wrong
    assert "method='stf'" in unknown.wrong
    assert "sft" in unknown.wrong
    assert "holds rows of messages, which toy_method doesn't train" in rows.wrong
    gone, doctor = said(("plan", run, "--hardware", "4xH100"), ("doctor", "--quick"), plugins="no_such_toy")
    assert gone.status == 2
    assert "UNSLOTH_ACCEL_PLUGINS='no_such_toy': ModuleNotFoundError: No module named 'no_such_toy'" in gone.wrong
    assert doctor.status == 1
    assert "no_such_toy" in doctor.told


@pytest.mark.slow
def test_the_method_trains(tiny: Path, run: Path, tmp_path: Path) -> None:
    """In a process of its own, which knows it from the same variable."""
    rows = tmp_path / "texts.jsonl"
    rows.write_text("".join(json.dumps({"text": f"number {n}"}) + "\n" for n in range(8)), encoding="utf-8")
    words = [
        *("launch", run, f"model.name={tiny}", "distributed={device: cpu, num_processes: 1, strategy: auto}"),
        *("batch.global_size=2", f"data.path={rows}", "model.max_seq_length=32"),
    ]
    command = [sys.executable, "-m", "unsloth_accel.cli", *map(str, words)]
    done = fork_server.run(command, cwd=ROOT, env=environment(TOYS), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    out = tmp_path / "out"
    # The method's field and callback, the strategy's adapter.
    assert (out / "toy.txt").read_text(encoding="utf-8") == "0.5 2 Accelerator"
    assert yaml.safe_load((out / "run.planned.yaml").read_text(encoding="utf-8"))["method"] == "toy_method"
    assert json.loads((out / "plan.json").read_text(encoding="utf-8"))["method"] == "toy_method"


def test_a_reward_from_outside_is_checked_and_made(tmp_path: Path, description: dict[str, Any]) -> None:
    Path(description["data"]["path"]).write_text('{"prompt": "a", "solution": "1"}\n' * 8, encoding="utf-8")
    functions = ["toy_letter", {"name": "toy_letters", "arguments": {"letters": "a"}}]
    values = {**description, "method": "grpo", "rewards": {"functions": functions}}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    (checked,) = said(("validate", path), plugins="toy_reward")
    assert "did you mean toy_letters?" in checked.told
    assert "toy_letters takes no letters; every process fails. Fix: did you mean letter?" in checked.told
    assert "'toy_letters': needs letter; every process fails" in checked.told
    assert "toy_letters reads the column toy_column, which no row has" in checked.told
    code = "from unsloth_accel.config.rewards_config import RewardFunction as F, RewardsConfig as R\n"
    code += "from unsloth_accel.rewards import reward_functions\n"
    code += "(one,), _ = reward_functions(R((F('toy_letters', 1.0, {'letter': 'a', 'most': 2}),)))\n"
    code += "print(one(['p'] * 2, ['aaa', 'b'], [[0]] * 2))"
    done = fork_server.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment("toy_reward"), capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "[2.0, 0.0]", done.stderr
