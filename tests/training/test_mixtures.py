"""Mixtures of experts in two processes, by DDP and divided, each loaded whole: the run of one process."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import fork_server
import pytest
from conftest import ROOT, SCRIPTS, Run, adapter, steps, variable_rows, write_yaml
from other_models import FUSED

TOLERANCE = 1e-5
LATER = 1e-4
"""Bound on what follows the first step, a hundredth of what it moves a weight by: Adam enlarges rounding."""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("mixtures")
    words = [str(SCRIPTS / "write_other_families.py"), str(directory), *FUSED]
    joined = os.pathsep.join((str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "PYTHONPATH": joined}
    fork_server.run([sys.executable, *words], cwd=ROOT, check=True, capture_output=True, env=environment)
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("family", FUSED)
def test_a_mixture_is_trained_by_two_processes_as_by_one(
    family: str, checkpoints: Path, cli: Run, tmp_path: Path
) -> None:
    """Also where a rank's rows, of six tokens, leave experts without one."""
    rows = variable_rows(tmp_path / "rows.jsonl", [5, 5, 5, 5, 48, 23, 31, 11])
    for strategy, processes in (("single", 1), ("ddp", 2), ("fsdp2_native", 2)):
        values = {
            "model": {"name": str(checkpoints / family), "max_seq_length": 64, "dtype": "float32"},
            "lora": {"r": 4},
            "data": {"path": str(rows)},
            "batch": {"global_size": 4, "rehearse": "false"},
            "distributed": {"strategy": strategy, "num_processes": processes, "device": "cpu"},
            "training": {
                "max_steps": 2,
                "learning_rate": 1e-2,
                "bf16": False,
                "per_device_train_batch_size": 2,
                "train_sampling_strategy": "sequential",
                # Else a gradient that is zero but for rounding moves its weight by the learning rate, up or down.
                "adam_epsilon": 1e-4,
            },
            "logging": {"progress": False},
            "output_dir": str(tmp_path / strategy),
        }
        done = cli("launch", write_yaml(tmp_path / f"{strategy}.yaml", values), forked=True)
        assert done.returncode == 0, done.stdout + done.stderr
    one = adapter(tmp_path / "single")
    assert max(float(tensor.abs().max()) for name, tensor in one.items() if "lora_B" in name) > 1e-4
    for strategy in ("ddp", "fsdp2_native"):
        several = adapter(tmp_path / strategy)
        assert several.keys() == one.keys()
        assert max(float((tensor - several[name]).abs().max()) for name, tensor in one.items()) < LATER
        for a, b in zip(steps(tmp_path / "single"), steps(tmp_path / strategy), strict=True):
            allowed = TOLERANCE if a["step"] == 1 else LATER
            assert abs(a["loss"] - b["loss"]) < allowed
            assert abs(a["grad_norm"] - b["grad_norm"]) < allowed
