"""The scripts to copy, as their first lines say."""

import sys
from pathlib import Path

import fork_server
import pytest
from conftest import ROOT, accelerate_launch

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("processes", [1, 2])
def test_pairs_of_answers_by_a_plain_script(processes: int, tiny: Path, tmp_path: Path) -> None:
    options = ["--model", str(tiny), "--output", str(tmp_path), "--max-steps", "2"]
    if processes == 1:
        command = [sys.executable, "examples/dpo.py", *options, "--accumulation", "2"]
        done = fork_server.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    else:
        config = "accelerate_configs/cpu_ddp.yaml"
        done = accelerate_launch("--config_file", config, "examples/dpo.py", *options, forked=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"8 rows per step = 4 × {3 - processes} × {processes} " in done.stdout + done.stderr
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "adapter" / "ref").exists(), "TRL's copy is loaded in the place of the trained one"
