"""enable_multi_gpu with the trainers that Unsloth makes on GPUs, which have a `train` of their own."""

import json
import os
import sys
from pathlib import Path

import fork_server
import pytest
from conftest import ROOT, SCRIPTS


@pytest.mark.slow
def test_unsloths_own_grpo_trainer_is_adapted(tiny: Path, tmp_path: Path) -> None:
    """Its `train` holds the Trainer's of its making, so that one put into the Trainer's place isn't called."""
    out = tmp_path / "out"
    out.mkdir()
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, str(SCRIPTS / "unsloth_grpo.py"), str(tiny), str(out)]
    own = {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "TORCH_COMPILE_DISABLE": "1"}
    environment = {**os.environ, **own}
    done = fork_server.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((out / "found.json").read_text(encoding="utf-8"))
    assert found["trainer"] == "UnslothGRPOTrainer"
    assert found["own_train"], "else this test shows nothing"
    assert found["adapted"] == found["guards"] == 1
    assert found["watched"] == found["observed"] == 1, "by enable_grpo_support and by enable_multi_gpu"
    assert found["batch"] == 2
    assert found["steps"] == 2
    assert found["late"], "a class that was made after enable_multi_gpu"
    assert all(found["wrapped"]), found["wrapped"]
    assert all(found["wrapped_once"])
    assert all(found["restored"]), found["restored"]
    assert "ranks in step" in done.stdout
