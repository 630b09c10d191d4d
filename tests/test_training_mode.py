"""`model.train()` walks only where a module isn't in training mode."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from unsloth_accel.adapters.training_mode import look_before_walking, looking_first, modules_of


class Walks:
    """Counts the calls of `train` for a model, each of which walks through its modules."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        plain = torch.nn.Module.train

        def train(module: torch.nn.Module, mode: bool = True) -> torch.nn.Module:
            self.count += isinstance(module, torch.nn.Sequential)
            return plain(module, mode)

        monkeypatch.setattr(torch.nn.Module, "train", train)


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> Walks:
    return Walks(monkeypatch)


@pytest.fixture
def model() -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5))


def test_only_what_is_not_training_is_walked_through(model: torch.nn.Sequential, walks: Walks) -> None:
    seen = []

    def training_step(model: torch.nn.Module, part: str) -> str:
        model.train()
        seen.append((walks.count, all(module.training for module in model.modules())))
        return part

    trainer: Any = SimpleNamespace(training_step=training_step)
    look_before_walking(trainer)
    look_before_walking(trainer)
    assert trainer.training_step(model, "one") == "one"
    model.eval()  # itself a walk
    trainer.training_step(model, part="two")
    model[1].training = False  # as Unsloth's for_inference leaves it, the model's own flag untouched
    trainer.training_step(model, "three")
    other = torch.nn.Sequential(torch.nn.Dropout(0.5))
    other[0].training = False
    trainer.training_step(other, "four")
    assert seen == [(0, True), (2, True), (3, True), (4, True)]
    assert "train" not in vars(model)


def test_a_step_that_fails_leaves_nothing_behind(model: torch.nn.Sequential) -> None:
    def step() -> None:
        with looking_first(model, list(model.modules())):
            model.train(False)
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        step()
    assert not model.training
    assert "train" not in vars(model)


class Cached(torch.nn.Linear):
    def train(self, mode: bool = True) -> Any:
        self.emptied = mode
        return super().train(mode)


def test_what_is_no_plain_walk_stays_as_it_is(model: torch.nn.Sequential) -> None:
    assert modules_of(torch.compile(model)) is None
    assert modules_of(torch.nn.Sequential(Cached(2, 2))) is None
    assert modules_of(model) == [model, *model]
    seen: list[bool] = []
    trainer: Any = SimpleNamespace(training_step=lambda model: seen.append(model.train()[0].emptied))
    look_before_walking(trainer)
    trainer.training_step(torch.nn.Sequential(Cached(2, 2)))
    assert seen == [True]
