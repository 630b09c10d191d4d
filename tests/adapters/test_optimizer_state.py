from typing import Any

import pytest
import torch

from unsloth_accel.adapters.optimizer_state import reserved


def _bytes(tensors: Any) -> int:
    return sum(one.numel() * one.element_size() for one in tensors)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adafactor])
def test_it_is_as_large_as_what_the_first_step_makes(kind: Any) -> None:
    trained, frozen = torch.nn.Parameter(torch.ones(7, 5)), torch.nn.Parameter(torch.ones(3), requires_grad=False)
    optimizer = kind([{"params": [trained], "weight_decay": 0.1}, {"params": [frozen]}], lr=1e-2)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer)
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("step"))
    held = reserved(optimizer)
    assert (trained.eq(1).all(), trained.grad, len(optimizer.state), seen) == (True, None, 0, [])
    assert scheduler.last_epoch == 0
    trained.grad = torch.ones_like(trained)
    optimizer.step()
    state = optimizer.state[trained].values()
    assert _bytes(held) == _bytes(one for one in state if isinstance(one, torch.Tensor)) > 0
    assert reserved(optimizer) == [], "a run that goes on has it already"


def test_an_optimizer_that_steps_in_its_training_mode_only() -> None:
    """Schedule-free ones raise elsewhere; the mode of the real one stays as it is."""

    class ScheduleFree(torch.optim.AdamW):
        def train(self) -> None:
            for group in self.param_groups:
                group["train_mode"] = True

        def step(self, closure: Any = None) -> Any:
            if not self.param_groups[0]["train_mode"]:
                raise RuntimeError("Optimizer was not in train mode when step is called")
            return super().step(closure)

    parameter = torch.nn.Parameter(torch.ones(4))
    optimizer = ScheduleFree([{"params": [parameter], "train_mode": False}])
    assert _bytes(reserved(optimizer)) == 4 + 2 * 16
    assert not optimizer.param_groups[0]["train_mode"]


def test_it_is_reserved_in_accelerates_optimizer() -> None:
    from accelerate import Accelerator

    optimizer = Accelerator(cpu=True).prepare(torch.optim.AdamW([torch.nn.Parameter(torch.ones(4))]))
    assert _bytes(reserved(optimizer)) == 4 + 2 * 16
    assert not optimizer.state
