"""The command plan, as a user types it."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import MODEL, NATIVE, out
from conftest import ROOT, Run, cli_command
from processor_time import calm_seconds

from unsloth_accel.cli.main import main

KEYS = {
    "strategy",
    "num_processes",
    "num_machines",
    "global_batch_size",
    "per_device_batch_size",
    "gradient_accumulation_steps",
    "mixed_precision",
    "memory_gib",
    "reasons",
    "rejected",
    "accelerate_config",
    "environment",
}


def test_plan_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    found: dict[str, Any] = json.loads(
        out(capsys, "plan", "--hardware", "8xH100-80GB", "--json", MODEL, "batch.global_size=64")
    )
    assert found.keys() >= KEYS
    terms = dict(found["memory_gib"])
    assert terms.pop("total") == pytest.approx(sum(terms.values()), abs=0.01)
    product = found["per_device_batch_size"] * found["gradient_accumulation_steps"] * found["num_processes"]
    assert product == found["global_batch_size"] == 64
    assert all(option.keys() == {"strategy", "reason"} for option in found["rejected"])
    assert found["accelerate_config"]["distributed_type"] == "MULTI_GPU"


def test_plan_answers_at_once(cli: Run) -> None:
    """0.6 s of a processor is the target, where it takes 0.35."""
    words = ("plan", "--hardware", "8xH100-80GB", "--json", MODEL, "batch.global_size=64")
    assert calm_seconds(lambda: cli(*words).check_returncode()) < 0.6


def test_planning_imports_no_torch() -> None:
    code = (
        "import sys, unsloth_accel as ua; ua.plan('examples/configs/quickstart.yaml', hardware='2xT4').to_dict();"
        "print([name for name in ('torch', 'transformers', 'accelerate', 'unsloth') if name in sys.modules])"
    )
    command = [cli_command()[0], "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_plan_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    text = out(capsys, "plan", MODEL, "--hardware", "4x4090", "batch.global_size=64", "model.load_in_4bit=true")
    for words in ("strategy", "ddp", "memory per GPU", "activations", "because", "rejected", "fsdp1"):
        assert words in text


def test_plan_writes_both_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out(capsys, "plan", "examples/configs/quickstart.yaml", "--hardware", "2xT4", "--write", str(tmp_path))
    run = yaml.safe_load((tmp_path / "run.planned.yaml").read_text(encoding="utf-8"))
    config = yaml.safe_load((tmp_path / "accelerate.yaml").read_text(encoding="utf-8"))
    assert run["distributed"].items() >= {"strategy": "ddp", "num_processes": 2, "device": "cuda"}.items()
    assert config["num_processes"] == 2
    assert config["mixed_precision"] == "fp16"


def test_a_written_plan_says_what_its_yaml_cannot(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Without the variables accelerate.yaml alone is plain DDP."""
    words = ("--hardware", "2x8xH100", "model.name=unsloth/Llama-3.3-70B-Instruct", "batch.global_size=64")
    words += ("distributed.strategy=fsdp2_native",)
    told = out(capsys, "plan", *words, "--write", str(tmp_path))
    assert "without data.path and output_dir" in told
    text = (tmp_path / "accelerate.yaml").read_text(encoding="utf-8")
    assert f"{NATIVE} accelerate launch" in text
    assert "--machine_rank 1 -m unsloth_accel.training.sft run.planned.yaml" in text


def test_the_examples_of_plan_and_estimate_work(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unsloth_accel.cli import config, estimate
    from unsloth_accel.cli import plan as plan_command

    quickstart = (ROOT / "examples" / "configs" / "quickstart.yaml").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    text = quickstart.replace("./models", f"{ROOT}/models").replace("examples/data", f"{ROOT}/examples/data")
    Path("run.yaml").write_text(text, encoding="utf-8")
    for module in (plan_command, estimate, config):
        for line in module.EXAMPLES.splitlines()[1:]:
            out(capsys, *line.split()[1:])


def test_a_price_that_leads_to_no_sum_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", MODEL, "batch.global_size=16", "--hardware", "2x4090", "--price", "0.4"]
    assert main(words) == 0
    assert "--price=0.4: nothing can be said of the money: the run's steps are unknown." in capsys.readouterr().err
    assert main([*words, "training.max_steps=100"]) == 0
    said = capsys.readouterr()
    assert "for 2 GPUs at 0.40 an hour each" in said.out
    assert "--price" not in said.err


def test_what_is_refused_is_not_warned_of_besides(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", MODEL, "batch.global_size=16", "lora.target_modules=[q_prj]"]) == 2
    assert capsys.readouterr().err.count("matches no module") == 1
