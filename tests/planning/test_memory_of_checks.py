"""The memory estimate held to what the checks on GPUs measured (benchmarks/results/gpu-checks.json)."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import published_shapes, random_checkpoint
from benchmarks.checks import FULL_ROWS, Place
from benchmarks.family_checks import MEMORY
from benchmarks.gpu_checks import OUT, ROOT
from unsloth_accel.config.read_run import from_dict
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.planning.memory_estimate import MemoryEstimate
from unsloth_accel.planning.planner import plan

CHECKS: dict[str, dict[str, Any]] = json.loads((ROOT / OUT).read_text(encoding="utf-8"))["checks"]
PROMPT, COMPLETION = 57, 128
"""Tokens of each row of `grpo-run-*`."""


def memory_of(check: dict[str, Any]) -> dict[str, Any]:
    """The measured memory by strategy; a check that fails because of it has its figures in the message."""
    told = check.get("error", "").partition("its memory is not what was planned: ")[2]
    found: dict[str, Any] = (ast.literal_eval(told) if told else check.get("figures", {})).get("memory", {})
    return found


FAMILIES = [
    pytest.param(name.split("-")[1], strategy, max(memory["measured"]), id=f"{name}-{strategy}")
    for name, check in CHECKS.items()
    if name.startswith("family-")
    for strategy, memory in memory_of(check).items()
]


def estimated(
    directory: Path, config: dict[str, Any], strategy: str, method: str = "sft", **changes: Any
) -> MemoryEstimate:
    """The plan's estimate for the run of a check, of a model with `config`."""
    (directory / "model").mkdir()
    (directory / "model" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    values = Place(directory, "check").values("run", strategy, **changes)
    values["model"]["name"] = str(directory / "model")
    memory = plan(from_dict(values | {"method": method}, to_plan=True), Hardware.parse("2xH200")).memory
    assert memory is not None
    return memory


def test_there_are_checks_that_measured_memory() -> None:
    assert {strategy for one in FAMILIES for strategy in one.values[1:2]} == {"single", "ddp", "fsdp2", "fsdp2_native"}


@pytest.mark.parametrize(("shape", "strategy", "peak"), FAMILIES)
def test_published_families(shape: str, strategy: str, peak: float, tmp_path: Path) -> None:
    config = published_shapes.config_values(shape)
    found = estimated(tmp_path, config, strategy, model={"keep_activations": 0}, **FULL_ROWS)
    assert found.allocated == pytest.approx(peak, rel=MEMORY)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_completions(strategy: str, tmp_path: Path) -> None:
    """A plan counts `model.max_seq_length` tokens a row, 256 in that check: for as many as rows had, it holds."""
    measured = CHECKS[f"grpo-run-{strategy}"]["figures"]["gib"]
    generated = {"num_generations": 8, "max_completion_length": COMPLETION, "per_device_train_batch_size": 32}
    found = estimated(
        tmp_path,
        random_checkpoint.config_values("1.5B"),
        strategy,
        "grpo",
        model={"max_seq_length": PROMPT + COMPLETION},
        batch={"global_size": 64},
        rewards={"functions": ["length"]},
        training=generated,
    )
    assert found.allocated == pytest.approx(measured["training"], rel=0.05)
