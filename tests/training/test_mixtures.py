"""Mixtures of experts in two processes, by DDP and divided, each loaded whole: the run of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Run, adapter, steps, variable_rows
from other_models import FUSED
from trained_runs import run_script, train_family

TOLERANCE = 1e-5
LATER = 1e-4
"""Bound on what follows the first step, a hundredth of what it moves a weight by: Adam enlarges rounding."""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("mixtures")
    run_script("write_other_families.py", directory, *FUSED)
    return directory


@pytest.mark.slow
@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("family", FUSED)
def test_a_mixture_is_trained_by_two_processes_as_by_one(
    family: str, checkpoints: Path, cli: Run, tmp_path: Path
) -> None:
    """Also where a rank's rows, of six tokens, leave experts without one."""
    rows = variable_rows(tmp_path / "rows.jsonl", [5, 5, 5, 5, 48, 23, 31, 11])
    for strategy, processes in (("single", 1), ("ddp", 2), ("fsdp2_native", 2)):
        train_family(cli, checkpoints / family, rows, strategy, processes, train_sampling_strategy="sequential")
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
