"""`model.train()` walks only where a module isn't in training mode."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from unsloth_accel.adapters.training_mode import look_before_walking, looking_first


class Model(torch.nn.Sequential):
    """Counts the walks."""

    walks = 0

    def train(self, mode: bool = True) -> Any:
        type(self).walks += 1
        return super().train(mode)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    monkeypatch.setattr(Model, "walks", 0)
    return Model(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5))


def test_only_what_is_not_training_is_walked_through(model: Model) -> None:
    seen = []

    def training_step(model: Model, part: str) -> str:
        model.train()
        seen.append((Model.walks, all(module.training for module in model.modules())))
        return part

    trainer: Any = SimpleNamespace(training_step=training_step)
    look_before_walking(trainer)
    look_before_walking(trainer)
    assert trainer.training_step(model, "one") == "one"
    model.eval()  # itself a walk
    trainer.training_step(model, part="two")
    model[1].training = False  # as Unsloth's for_inference leaves it, the model's own flag untouched
    trainer.training_step(model, "three")
    other = Model(torch.nn.Dropout(0.5))
    other[0].training = False
    trainer.training_step(other, "four")
    assert seen == [(0, True), (2, True), (3, True), (4, True)]
    assert "train" not in vars(model)


def test_a_step_that_fails_leaves_nothing_behind(model: Model) -> None:
    def step() -> None:
        with looking_first(model, list(model.modules())):
            model.train(False)
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        step()
    assert not model.training
    assert "train" not in vars(model)


def test_a_compiled_model_is_left_alone(model: Model) -> None:
    compiled = torch.compile(model)
    with looking_first(compiled, list(compiled.modules())):
        compiled.eval()
        compiled.train()
    assert model[1].training
    assert Model.walks == 2
