"""The examples of the interface as a new user runs them: by plain python, then by the command that it prints."""

import re
import shlex
import sys
from pathlib import Path

import fork_server
import pytest
from conftest import ROOT, Run, accelerate_launch

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("uncompiled")]
OPTIONS = {
    "quick_start": ["--max-steps", "2", "--per-device", "1"],
    "advanced_config": ["--max-steps", "2", "--global-batch", "2"],
    "direct_trainer_usage": ["--rows", "4", "--per-device", "1"],
    "grpo_multi_gpu": ["--max-steps", "1", "--per-device", "2", "--answers", "2", "--max-new-tokens", "4"],
}
SAID = {
    "quick_start": "'num_processes': 2, 'rank': 0, 'strategy': 'ddp'",
    "advanced_config": "ranks in step after the first step",
    "direct_trainer_usage": '"steps": 2, ',
    "grpo_multi_gpu": "ranks in step after the first step",
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_example_trains_alone_and_by_the_command_that_it_prints(
    name: str, tiny: Path, tmp_path: Path, cli: Run
) -> None:
    script = f"examples/{name}.py"
    words = [script, "--model", str(tiny), "--output", str(tmp_path), *OPTIONS[name]]
    alone = fork_server.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert alone.returncode == 0, alone.stdout + alone.stderr
    adapter = tmp_path / "adapter" / "adapter_model.safetensors"
    adapter.unlink()
    lines = [line.split() for line in alone.stdout.splitlines() if re.match("  (unsloth-accel|accelerate) ", line)]
    assert [line[:2] for line in lines] == [
        ["unsloth-accel", "config"],
        ["unsloth-accel", "launch"],
        ["accelerate", "launch"],
    ]
    assert lines[2][4:] == shlex.join(words).split()
    config = tmp_path / "ddp.yaml"
    assert cli(*[str(config) if word == "ddp.yaml" else word for word in lines[0][1:]], forked=True).returncode == 0
    done = accelerate_launch("--config_file", config, *words, forked=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert SAID[name] in done.stdout
    assert adapter.is_file()


def test_the_installation_is_verified(tiny: Path) -> None:
    """The training is launched by `launch=True` of enable_multi_gpu, here with weights that are divided."""
    words = ["--skip-doctor", "--model", str(tiny), "--strategy", "fsdp2_native"]
    command = [sys.executable, "examples/verify_installation.py", *words]
    done = fork_server.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ranks in step after the first step: each of 2 trains its own part of the weights" in done.stdout
    assert "'num_processes': 2, 'rank': 0, 'strategy': 'fsdp2_native', 'adapted_trainers': 1" in done.stdout
    assert "all is well: two processes trained" in done.stdout
