"""enable_multi_gpu: its arguments, what it puts around upstream names, and that it goes without a trace."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fork_server
import pytest
from conftest import ROOT

import unsloth_accel as ump
from unsloth_accel.errors import ConfigError, LaunchError
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.multigpu import launched_count
from unsloth_accel.multigpu.gone import GONE
from unsloth_accel.multigpu.launched_count import launch_commands, settled_count
from unsloth_accel.multigpu.whole_groups import whole_groups

FOUR, T4, CPU = Hardware.parse("4xA100-80GB"), Hardware.parse("2xT4"), Hardware.parse("cpu")


@pytest.fixture(autouse=True)
def no_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "UNSLOTH_ACCEL_PROMISE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("arguments", "key", "fix"),
    [
        ({"num_gpus": 0}, "num_gpus", "num_gpus=2, or leave it out"),
        ({"num_gpus": "two"}, "num_gpus", "2"),
        ({"batch_size_per_gpu": True}, "batch_size_per_gpu", "2"),
        ({"gradient_accumulation_steps": -1}, "gradient_accumulation_steps", "2"),
        ({"ddp_backend": "horovod"}, "ddp_backend", "leave it out"),
        ({"enable_memory_optimization": "yes"}, "enable_memory_optimization", "True"),
        ({"enable_gradient_checkpointing": "unsloth"}, "enable_gradient_checkpointing", "True"),
        ({"find_unused_parameters": 1}, "find_unused_parameters", "True"),
        ({"strategy": "zero3"}, "strategy", "fsdp2"),
        ({"strategy": "ddpp"}, "strategy", "did you mean ddp?"),
        ({"debug": None}, "debug", "False"),
        ({"launch": "now"}, "launch", "False"),
        ({"device_ids": [0, 1]}, "device_ids", "CUDA_VISIBLE_DEVICES"),
        ({"batch_size_per_gpus": 2}, "batch_size_per_gpus", "batch_size_per_gpu"),
    ],
)
def test_a_wrong_argument_is_refused_with_what_does_it(arguments: dict[str, Any], key: str, fix: str) -> None:
    with pytest.raises(ConfigError) as error:
        ump.enable_multi_gpu(**arguments)
    ump.disable_multi_gpu()
    assert [problem.key for problem in error.value.problems] == [key]
    assert fix in error.value.problems[0].fix
    assert not ump.is_multi_gpu_enabled()


def test_a_backend_that_torch_has_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.is_mpi_available", lambda: False)
    with pytest.raises(ConfigError, match="was built without it"):
        ump.enable_multi_gpu(ddp_backend="mpi")
    ump.disable_multi_gpu()


def test_several_gpus_want_a_launch() -> None:
    """With the commands, in which the script and its arguments are; one GPU and a CPU train."""
    with pytest.raises(LaunchError) as error:
        settled_count(2, hardware=FOUR)
    assert error.value.exit_status == 2
    said = str(error.value)
    assert "unsloth-accel config --strategy ddp --gpus 2 --mixed-precision bf16 --out ddp.yaml" in said
    assert "\n  unsloth-accel launch --config_file ddp.yaml" in said
    assert "\n  accelerate launch --config_file ddp.yaml" in said
    assert error.value._render_traceback_() == [f"LaunchError: {said}"], "a notebook's line"
    with pytest.raises(LaunchError, match="4 processes"):
        settled_count(None, hardware=FOUR)
    with pytest.raises(LaunchError, match="--strategy fsdp2 "):
        settled_count(2, strategy="fsdp2", hardware=FOUR)
    with pytest.raises(ConfigError, match="4 GPUs can be seen"):
        settled_count(5, hardware=FOUR)
    assert "--mixed-precision fp16" in launch_commands(launched_count.config_for(2, None, T4))[0]
    assert settled_count(1, hardware=FOUR) == 1
    for hardware in (FOUR, CPU):
        with pytest.raises(ConfigError, match=r"strategy='single'.*num_gpus=1, or strategy=ddp"):
            settled_count(2, strategy="single", hardware=hardware)
    with pytest.raises(ConfigError, match="is no whole number"):
        settled_count("2", hardware=FOUR)  # type: ignore[arg-type]


def test_a_strategy_of_one_process_is_said_to_do_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert settled_count(None, strategy="fsdp2", hardware=CPU) == 1
    assert "strategy=fsdp2: one process trains" in capsys.readouterr().out


def test_a_cpu_trains_and_says_how_two_of_them_would(capsys: pytest.CaptureFixture[str]) -> None:
    assert settled_count(2, hardware=CPU) == 1
    assert "--gpus 2 --cpu --out ddp.yaml" in capsys.readouterr().out
    assert settled_count(2, strategy="fsdp2", hardware=CPU) == 1
    said = capsys.readouterr().out  # a command that the config it names would refuse is no help
    assert "has no FSDP on a CPU; this one process trains" in said
    assert "unsloth-accel" not in said
    with pytest.raises(ConfigError, match=r"has no FSDP on a CPU.* Fix: strategy=ddp, or num_gpus=1"):
        settled_count(2, strategy="fsdp2", launch=True, hardware=CPU)
    assert settled_count(2, strategy="fsdp2_native", hardware=CPU) == 1


def test_the_status_tells_of_one_process() -> None:
    assert ump.get_multi_gpu_status()["strategy"] is None
    ump.enable_multi_gpu(num_gpus=1)
    assert ump.get_multi_gpu_status()["strategy"] == "single"
    ump.disable_multi_gpu()


def test_a_launch_is_made_from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """And this process ends with its status."""
    ran: list[list[str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        return subprocess.CompletedProcess(command, 7)

    monkeypatch.setattr(launched_count.subprocess, "run", run)
    monkeypatch.setattr(launched_count, "script_words", lambda: ["train.py", "--steps", "2"])
    with pytest.raises(SystemExit) as left:
        settled_count(2, launch=True, hardware=FOUR)
    assert left.value.code == 7
    assert ran[0][-3:] == ["train.py", "--steps", "2"]
    monkeypatch.setattr(launched_count, "script_words", list)
    with pytest.raises(ConfigError, match="notebook"):
        settled_count(2, launch=True, hardware=FOUR)


def test_other_numbers_than_the_launchs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert settled_count(2) == settled_count(None) == 2
    with pytest.raises(ConfigError, match="launch is of ddp"):  # torchrun's, which has no other
        settled_count(2, strategy="fsdp2")
    with pytest.raises(ConfigError, match=r"num_gpus=4: 2 processes launched.*Fix: num_gpus=2"):
        settled_count(4)
    promise = {"num_processes": 2, "strategy": "ddp"}
    monkeypatch.setenv("UNSLOTH_ACCEL_PROMISE", json.dumps(promise))
    assert settled_count(2, strategy="ddp") == 2
    with pytest.raises(ConfigError, match="launch is of ddp"):
        settled_count(2, strategy="fsdp2")


@pytest.mark.parametrize(
    ("per_device", "accumulation", "ranks", "expected"), [(1, 1, 2, 4), (4, 1, 2, 1), (3, 1, 1, 8), (2, 3, 2, 4)]
)
def test_a_steps_rows_are_whole_groups(per_device: int, accumulation: int, ranks: int, expected: int) -> None:
    class Args:
        num_generations = 8
        generation_batch_size = steps_per_generation = None
        per_device_train_batch_size = per_device
        gradient_accumulation_steps = accumulation

    args, told = Args(), []
    Args.per_device_train_batch_size, Args.gradient_accumulation_steps = per_device, accumulation
    whole_groups(args, ranks, told.append)
    assert args.gradient_accumulation_steps == expected
    assert bool(told) == (expected != accumulation)


PROGRAM = """
import json, logging, os, sys, warnings
import unsloth_accel as ump
from unsloth import FastLanguageModel
import transformers
from transformers import Trainer, TrainingArguments
import trl
import accelerate, peft, torch, unsloth
trainers = [trl.SFTTrainer, trl.GRPOTrainer, trl.RLOOTrainer, trl.SFTConfig, trl.GRPOConfig]
def below(kind):
    return {kind}.union(*map(below, kind.__subclasses__()))
kinds = below(Trainer) | below(TrainingArguments) | {accelerate.Accelerator, accelerate.PartialState, peft.PeftModel}
kinds |= {unsloth.FastLanguageModel, unsloth.FastModel, unsloth.FastVisionModel}
kinds |= {torch.nn.parallel.DistributedDataParallel, torch.nn.Module, torch.utils.data.DataLoader}
modules = [transformers, transformers.trainer, trl, unsloth, accelerate, torch.distributed, sys, os, logging, warnings]
def now():
    names = {f"{o.__name__}.{n}": v for o in kinds | {*modules} for n, v in vars(o).items() if not n.startswith("_abc")}
    return names | {f"environment {n}": v for n, v in os.environ.items()}
def differ(one, other):
    return sorted(n for n in one | other if one.get(n) is not other.get(n) and one.get(n) != other.get(n))
before = now()
asked = dict(num_gpus=2, batch_size_per_gpu=3, gradient_accumulation_steps=2, find_unused_parameters=True, debug=True)
ump.enable_grpo_support()
ump.enable_multi_gpu(**asked)
ump.enable_multi_gpu(**asked)
found = {"replaced": differ(before, now())}
found["debug"] = [os.environ["TORCH_DISTRIBUTED_DEBUG"], torch.distributed.get_debug_level().name]
args = TrainingArguments(output_dir=sys.argv[1], per_device_train_batch_size=8)
found["args"] = [args.per_device_train_batch_size, args.gradient_accumulation_steps, args.ddp_find_unused_parameters]
found["status"] = ump.get_multi_gpu_status()
try:
    ump.enable_multi_gpu(num_gpus=1)
except ump.ConfigError as error:
    found["again"] = sorted(problem.key for problem in error.problems)
ump.disable_multi_gpu()
found["left"] = differ(before, now())
found["debug off"] = torch.distributed.get_debug_level().name
found["off"] = [ump.is_multi_gpu_enabled(), ump.get_active_config(), ump.get_grpo_status()["enabled"]]
# A model that isn't Unsloth's, and a Trainer that was made before.
class Plain(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
    def forward(self, x, labels=None):
        return {"loss": (self.layer(x) - labels).pow(2).mean()}
rows = [{"x": torch.ones(2), "labels": torch.zeros(1)} for _ in range(8)]
def trainer():
    args = TrainingArguments(output_dir=sys.argv[1], max_steps=1, report_to="none", save_strategy="no", use_cpu=True)
    return Trainer(model=Plain(), args=args, train_dataset=rows)
old = trainer()
ump.enable_multi_gpu(batch_size_per_gpu=2, enable_memory_optimization=True)
new = trainer()
new.train()
found["rows"] = new.args.per_device_train_batch_size
found["callbacks"] = sorted(type(one).__name__ for one in new.callback_handler.callbacks)
old.train()
found["made before"] = old.args.per_device_train_batch_size
ump.disable_multi_gpu()
found["left after a training"] = differ(before, now())
ump.enable_multi_gpu(enable_gradient_checkpointing=True, enable_memory_optimization=False)
other = trainer()
try:
    other.train()
except ump.ConfigError as error:
    found["checkpointing"] = str(error)
print("FOUND " + json.dumps(found))
"""


REPLACED = {"Trainer.train", "Trainer.evaluate", "Trainer.predict", "TrainingArguments.__post_init__"}
REPLACED |= {"FastLanguageModel.from_pretrained", "FastLanguageModel.get_peft_model", "GRPOTrainer.__init__"}


@pytest.mark.slow
def test_it_acts_and_goes_without_a_trace(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = fork_server.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("FOUND "))[6:])
    assert {*found["replaced"]} > REPLACED
    assert found["debug"] == ["INFO", "INFO"], "torch has read its variable before, when it was imported"
    assert found["debug off"] == "OFF"
    assert found["args"] == [3, 2, True]
    assert found["status"]["enabled"]
    assert found["status"]["config"]["batch_size_per_gpu"] == 3
    assert {"num_gpus", "batch_size_per_gpu", "debug"} <= {*found["again"]}
    assert found["left"] == [], "of what enable_multi_gpu had put in place"
    assert found["left after a training"] == []
    assert found["off"] == [False, None, False]
    assert found["rows"] == found["made before"] == 2
    assert {"Guard", "MemoryWatch", "RankSync", "Throughput"} <= {*found["callbacks"]}
    assert "the model isn't Unsloth's" in done.stdout
    assert "was made before enable_multi_gpu" in done.stdout
    assert "Unsloth finds no decoder blocks in this model" in found["checkpointing"]


def test_a_name_that_is_not_carried_over_says_what_does_its_work() -> None:
    for line in (
        "from unsloth_accel import enable_selekt",
        "from unsloth_accel.multigpu.core import DDPManager",
        "from unsloth_accel.multigpu.utils import MultiGPULogger",
    ):
        with pytest.raises(ImportError, match=r"of unsloth-multigpu is not carried over\. Fix: "):
            exec(line)
    assert not hasattr(ump, "nothing")
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec("from unsloth_accel.multigpu.core import nothing")
    page = (ROOT / "docs" / "migrating.md").read_text(encoding="utf-8")
    assert all(f"`{name}" in page for name in GONE)
