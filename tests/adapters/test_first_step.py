"""Which steps of a loop without a Trainer are compared; two real processes are in
tests/training/test_accelerator_loop.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from unsloth_accel.adapters import first_step, rank_checks


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is compared, as it is."""
    seen: list[str] = []
    monkeypatch.setattr(rank_checks, "check_equal", lambda tensors, what: seen.append(f"{what}: {', '.join(tensors)}"))
    yield seen
    first_step._models.clear()


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, factor: float = 1.0) -> None:
    (model(torch.ones(1, 2)) * factor).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_the_first_step_of_each_optimizer_over_a_prepared_model(compared: list[str]) -> None:
    one, two, other = (torch.nn.Linear(2, 1) for _ in range(3))
    optimizers = [torch.optim.AdamW(parameters) for parameters in ([one.weight], [one.bias, *two.parameters()])]
    first_step.watch(one)
    first_step.watch(two)
    for optimizer in optimizers:
        for model in (one, two):
            step(model, optimizer)
    step(other, torch.optim.AdamW(other.parameters()))
    assert compared == [
        "gradients of the first step: weight",
        "trainable weights after the first step: weight",
        "gradients of the first step: bias, weight, bias (of another model)",
        "trainable weights after the first step: bias, weight, bias (of another model)",
    ]
    first_step.watch(two)
    step(two, optimizers[1])
    assert len(compared) == 6, "what is prepared again is compared again"


def test_a_step_without_gradients_is_not_the_first(compared: list[str]) -> None:
    """Torch makes one before it loads a state into an optimizer."""
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    first_step.watch(model)
    step(model, optimizer, factor=0.0)
    assert [told.partition(":")[0] for told in compared] == ["gradients of the first step"]
    step(model, optimizer)
    step(model, optimizer)
    assert [told.partition(":")[0] for told in compared[1:]] == [
        "gradients of the first step",
        "trainable weights after the first step",
    ]


def test_ranks_begin_together_where_gradients_are_in_parts(
    compared: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under FSDP1 one rank's part of a gradient may be 0, or empty, and another's not: both meet, or one waits."""
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    met: list[str] = []
    monkeypatch.setattr(first_step, "_check_loaders", lambda: met.append("loaders"))
    monkeypatch.setattr(first_step, "of_every_rank", lambda own: [own, True])
    first_step.watch(model)
    step(model, optimizer, factor=0.0)
    assert met == ["loaders"]


def test_weights_that_nobody_prepared_are_left_alone(compared: list[str]) -> None:
    model: Any = torch.nn.Linear(2, 1)
    step(model, torch.optim.AdamW(model.parameters()))
    assert compared == []
