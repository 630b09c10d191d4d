"""Generation from a sharded model; real FSDP2 units on a CPU, which accelerate itself does not offer."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fork_server
import pytest
from conftest import ROOT, SCRIPTS


class Model:
    """Something that generates, with a model inside that does too."""

    def __init__(self, *inside: "Model") -> None:
        self.inside = inside

    def modules(self) -> list["Model"]:
        return [self, *self.inside]

    def generate(self, text: str) -> str:
        return text.upper()


def test_only_fsdp2_wraps_generate() -> None:
    from unsloth_accel.adapters.fsdp2.generation import gather_in_generate

    model: Any = Model(Model())
    gather_in_generate(SimpleNamespace(is_fsdp2=False), model)  # type: ignore[arg-type]
    assert "generate" not in vars(model)
    for _ in range(2):
        gather_in_generate(SimpleNamespace(is_fsdp2=True), model)  # type: ignore[arg-type]
    assert model.generate("answer") == "ANSWER"
    assert model.inside[0].generate("answer") == "ANSWER"
    assert not hasattr(model.generate.__wrapped__, "__wrapped__"), "wrapped once"
    assert model.generate.__name__ == "generate", "Unsloth looks at its name"


def test_other_models_are_left_as_they_are() -> None:
    import torch

    from unsloth_accel import generating

    model = torch.nn.Linear(2, 2)
    before = model.weight
    with generating(model) as inside:
        assert inside is model
        assert model.weight is before


@pytest.mark.slow
def test_a_sharded_model_answers_like_the_whole_one(tiny: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [*command, str(SCRIPTS / "generate_sharded.py"), str(tiny)]
    done = fork_server.run(words, cwd=ROOT, capture_output=True, text=True, timeout=200, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("seen ")]
    assert len(lines) == 2, done.stderr
    for line in lines:
        seen: dict[str, Any] = json.loads(line.removeprefix("seen "))
        assert seen.pop("sharded")
        assert "mixed torch.Tensor and DTensor" in seen.pop("without"), "torch mends it: the adapter can go"
        # Trained on after it has generated, also under inference_mode: the gradients are the whole model's.
        assert seen.pop("gradients") <= 1e-6
        assert seen.pop("largest") > 1e-3
        assert seen
        assert all(value is True for value in seen.values()), seen
