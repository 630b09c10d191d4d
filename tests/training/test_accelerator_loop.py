"""A training loop of one's own: examples/accelerate_loop.py, launched as its first lines say."""

import json
import math
import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fork_server
import pytest
from conftest import ROOT, SCRIPTS, accelerate_launch, adapter, variable_rows

from unsloth_accel.config.accelerate_config import AccelerateConfig

LOOP = "examples/accelerate_loop.py"
TOLERANCE = 1e-5
STEPS = 8


@pytest.fixture(scope="module")
def options(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two epochs in float32 of 26 rows of 9 to 96 tokens, eight rows per step: an epoch's last step has two, which is
    none for the second rank. Seven held-out rows, an odd number for two ranks."""
    directory = tmp_path_factory.mktemp("rows")
    rows = variable_rows(directory / "rows.jsonl", [9 + (37 * i) % 88 for i in range(26)])
    held_out = variable_rows(directory / "eval.jsonl", [9 + (53 * i) % 88 for i in range(7)])
    words = ["--model", tiny, "--data", rows, "--eval-data", held_out, "--dtype", "float32"]
    return [*map(str, words), "--steps", str(STEPS), "--learning-rate", "1e-2", "--max-grad-norm", "0.5"]


@pytest.fixture(scope="module")
def alone(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], dict[str, Any]]:
    """The figures and the adapter of one process that takes four micro-batches of two rows per step."""
    out = tmp_path_factory.mktemp("alone")
    command = [sys.executable, LOOP, *options, "--per-device", "2", "--accumulation", "4", "--output", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = fork_server.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 0, done.stderr
    return figures(done.stdout), adapter(out)


def figures(printed: str) -> list[float]:
    """Held-out loss before and after; loss, gradient norm, learning rate and tokens of each step."""
    lines = [line for line in printed.splitlines() if line.startswith(("held-out loss", "step "))]
    return [float(number) for line in lines for number in re.findall(r"\d+(?:\.\d+)?", line)]


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "accumulation"), [("ddp", 1), ("fsdp2_native", 2)])
def test_two_processes_train_like_one(
    strategy: Any,
    accumulation: int,
    alone: tuple[list[float], dict[str, Any]],
    options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = AccelerateConfig(strategy=strategy, num_processes=2, device="cpu")
    config.write(tmp_path / "accelerate.yaml")
    arguments = [*options, "--per-device", str(4 // accumulation), "--accumulation", str(accumulation)]
    arguments += ["--output", str(tmp_path)]
    monkeypatch.setenv("PYTHONPATH", str(SCRIPTS / "plain_trl"))
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    done = accelerate_launch("--config_file", tmp_path / "accelerate.yaml", LOOP, *arguments, forked=True)
    if strategy == "fsdp2_native" and find_spec("triton") is None:
        assert done.returncode != 0
        assert "Unsloth's sharding imports triton" in done.stderr
        assert "Traceback" not in done.stderr.split("unsloth_accel:")[0]
        return
    assert done.returncode == 0, done.stderr
    assert ("native FSDP2 sharded 2 blocks" in done.stdout) == (strategy == "fsdp2_native")
    seen, ours = figures(done.stdout), adapter(tmp_path)
    expected, theirs = alone
    assert len(seen) == len(expected) == 1 + STEPS * 5 + 1
    assert max(abs(a - b) for a, b in zip(seen, expected, strict=True)) <= TOLERANCE
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) <= TOLERANCE
    assert max(float(ours[name].abs().max()) for name in ours if "lora_B" in name) > 1e-3, "it moved"


@pytest.mark.slow
def test_a_loop_that_does_not_synchronise_is_stopped(tiny: Path) -> None:
    """However its objects are prepared; a loop whose ranks are in step is not, and its schedule is that of one
    process. The last takes its loss from the model inside DDP: nothing is averaged, and nobody would notice."""
    config = ROOT / "accelerate_configs" / "cpu_ddp.yaml"
    done = accelerate_launch("--config_file", config, SCRIPTS / "loop_around_the_wrapper.py", tiny, forked=True)
    line = next((line for line in done.stdout.splitlines() if line.startswith("{")), None)
    assert line is not None, done.stderr
    seen = json.loads(line)
    assert {how for how, told in seen["tripled"].items() if "gradients of the first step differ" not in told} == set()
    assert set(seen["alike"].values()) == {"trained"}
    assert seen["drawn"]["order"].startswith("step 8: rank 1 draws the rows of this epoch in another order than rank 0")
    labels = "what the collator makes of rows 0, 2, 4, 7: labels is 'int64 (4, 4), fingerprint"
    assert seen["drawn"]["labels"].startswith(f"step 0: the ranks would not train the same run: loader 2: {labels}")
    assert seen["drawn"]["alike"] == "trained"
    alone = [0.0, *(0.05 * (1 + math.cos(math.pi * step / 5)) for step in range(5))]
    assert all(found == pytest.approx(alone) for found in seen["rates"].values()), seen["rates"]
    assert done.returncode != 0
    assert "gradients of the first step differ between ranks" in done.stderr
    assert "stepped" not in done.stdout


def test_an_optimizer_without_its_sharded_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would go on with the whole weights, which nobody reads any more."""
    import torch

    from unsloth_accel.adapters import first_step
    from unsloth_accel.adapters.fsdp2 import native
    from unsloth_accel.errors import ConfigError
    from unsloth_accel.training.accelerator_loop import _refuse_apart

    def refused(*objects: Any, fsdp2: bool = False) -> bool:
        models = [one for one in objects if isinstance(one, torch.nn.Module)]
        optimizers = [one for one in objects if isinstance(one, torch.optim.Optimizer)]
        try:
            _refuse_apart(SimpleNamespace(is_fsdp2=fsdp2), models, optimizers)  # type: ignore[arg-type]
        except ConfigError:
            return True
        return False

    monkeypatch.setattr(native, "requested", lambda: False)  # which imports Unsloth
    one, two = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    ones, twos = torch.optim.SGD(one.parameters()), torch.optim.SGD(two.parameters())
    assert not any(refused(*objects) for objects in ([one], [ones], [one, two, ones, twos]))
    assert all(refused(*objects, fsdp2=True) for objects in ([one], [ones], [one, two, ones]))
    assert not any(refused(*objects, fsdp2=True) for objects in ([], [one, ones]))
    monkeypatch.setattr(native, "requested", lambda: True)
    monkeypatch.setattr(first_step, "_models", {one})
    assert all(refused(*objects) for objects in ([twos], [ones, twos], [one, two, ones]))
    assert not any(refused(*objects) for objects in ([], [one], [ones], [two, twos]))
