"""MultiGPUTrainer and AggregationMethod, in real processes, against one process."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fork_server
import pytest
import torch
from conftest import ROOT, SCRIPTS

from unsloth_accel.errors import ConfigError
from unsloth_accel.multigpu.aggregation import AggregationMethod
from unsloth_accel.multigpu.core import MultiGPUTrainer

TOLERANCE = 1e-6
SCRIPT = str(SCRIPTS / "direct_trainer.py")


def ran(ranks: int, place: Path) -> dict[str, Any]:
    out = place / f"{ranks}.json"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *launcher, SCRIPT, str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = fork_server.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return ran(1, tmp_path_factory.mktemp("alone"))


def apart(one: list[float], other: list[float]) -> float:
    return float((torch.tensor(one) - torch.tensor(other)).abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_step_as_the_method_says(ranks: int, alone: dict[str, Any], tmp_path: Path) -> None:
    """Uneven rows on each rank; the weights after a step are those that one process computes without any ranks."""
    found = ran(ranks, tmp_path)
    expected = alone["expected"][str(ranks)]
    assert found["weights"].keys() == expected.keys() == {method.value for method in AggregationMethod}
    for method, weights in expected.items():
        assert apart(found["weights"][method], weights) <= TOLERANCE, method
    others = ("mean", "sum", "median") if ranks == 3 else ("mean", "sum")
    for method in others:  # the methods differ, so that none stands for another
        assert apart(expected["weighted_mean"], expected[method]) > 100 * TOLERANCE
    assert apart(found["weights"]["weighted_mean"], alone["weights"]["mean"]) <= TOLERANCE
    assert found["clipped"] == pytest.approx(alone["clipped"], rel=1e-5)
    assert found["moved"] == pytest.approx(0.5 * 1e-3, rel=1e-3), "a step of rate × the clipped norm"
    assert found["few rows"] == 1, "ranks and micro-batches without rows add nothing"
    assert found["errors"]
    assert f"{ranks} processes launched" in found["errors"][0]
    if ranks == 2:
        _is_one_process(found, alone)


def _is_one_process(found: Mapping[str, Any], alone: Mapping[str, Any]) -> None:
    """An epoch whose last step is not full, with accumulation and a schedule: figures and weights of one process."""
    assert found["epoch"]["steps"] == alone["epoch"]["steps"] == 2
    assert found["epoch"]["rows"] == alone["epoch"]["rows"] == 6
    for name in ("loss", "grad_norm", "learning_rate", "tokens"):
        assert found["epoch"][name] == pytest.approx(alone["epoch"][name], rel=1e-5), name
    assert apart(found["epoch weights"], alone["epoch weights"]) <= TOLERANCE
    for name in ("before", "after"):
        assert found[name] == pytest.approx(alone[name], rel=1e-5)
    assert found["before"]["rows"] == 6
    assert found["after"]["loss"] < found["before"]["loss"]
    assert (found["ranks"], alone["ranks"]) == (2, 1)


LAYER = torch.nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"model": "a name"}, "model"),
        ({"model": torch.nn.Linear(2, 2).requires_grad_(False)}, "model"),
        ({"optimizer_config": {"class": torch.optim.SGD, "lr": 1}}, "optimizer_config.lr"),
        ({"optimizer_config": {"class": "AdamW"}}, "optimizer_config"),
        ({"optimizer_config": "AdamW"}, "optimizer_config"),
        ({"num_gpus": "2"}, "num_gpus"),
        ({"scheduler_config": {"kwargs": {}}}, "scheduler_config.class"),
        ({"aggregation_method": "mode"}, "aggregation_method"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps"),
        ({"max_grad_norm": -1}, "max_grad_norm"),
        ({"mixed_precision": "fp8"}, "mixed_precision"),
    ],
)
def test_what_cannot_be_had_is_refused(options: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as error:
        MultiGPUTrainer(**{"model": LAYER, **options})
    assert [problem.key for problem in error.value.problems] == [key]


@pytest.mark.parametrize("key", ["optimizer_config", "scheduler_config"])
def test_a_keyword_that_a_class_has_not_is_told(key: str) -> None:
    kinds = {"optimizer_config": torch.optim.SGD, "scheduler_config": torch.optim.lr_scheduler.StepLR}
    configs = {"scheduler_config": {"class": kinds["scheduler_config"], "kwargs": {"step_size": 1}}}
    configs[key] = {"class": kinds[key], "kwargs": {"steps": 1}}
    with pytest.raises(ConfigError, match=rf"{key}\.kwargs=.*steps"):
        MultiGPUTrainer(LAYER, **configs).setup()  # type: ignore[arg-type]
