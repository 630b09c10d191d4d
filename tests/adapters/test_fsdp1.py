from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fork_server
import pytest
import torch
from conftest import ROOT, SCRIPTS


@pytest.mark.parametrize(
    ("optim", "own", "save_strategy", "only_model", "refused"),
    [
        ("adamw_torch_fused", None, "steps", False, True),
        ("adamw_torch_fused", None, "no", False, False),
        ("adamw_torch_fused", None, "steps", True, False),
        ("adamw_torch", None, "steps", False, False),
        ("adamw_torch", True, "steps", False, True),
        ("adamw_torch_fused", False, "steps", False, False),
    ],
)
def test_fsdp1_refuses_an_optimizer_whose_state_it_can_not_save(
    optim: str, own: bool | None, save_strategy: str, only_model: bool, refused: bool
) -> None:
    from unsloth_accel.adapters.fsdp1 import refuse_fused
    from unsloth_accel.errors import ConfigError

    args = SimpleNamespace(optim=optim, save_strategy=save_strategy, save_only_model=only_model)
    given = None if own is None else torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))], fused=own)
    trainer: Any = SimpleNamespace(args=args, optimizer=given)
    if not refused:
        refuse_fused(trainer)
        return
    with pytest.raises(ConfigError, match=r"end at its first checkpoint\. Fix: optim='adamw_torch'"):
        refuse_fused(trainer)


@pytest.mark.slow
def test_an_fsdp1_adapter_is_saved_and_restored(tiny: Path, tmp_path: Path) -> None:
    """With torch's own FSDP1; accelerate has none on a CPU. PEFT alone saves nothing and restores nothing."""
    script = [str(SCRIPTS / "fsdp1_adapter.py"), str(tiny), str(tmp_path)]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", *script]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = fork_server.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, env=variables)
    assert done.returncode == 0, done.stderr
    for kind in ("flat", "orig"):
        assert f"{kind}, PEFT alone: saved 0, restored 0 of 8" in done.stdout
        assert f"{kind}, mended: saved 8, restored 8 of 8" in done.stdout
