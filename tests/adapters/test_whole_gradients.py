from typing import Any

import pytest

from unsloth_accel.adapters.fsdp2 import whole_gradients


def gradients(scale: float) -> list[Any]:
    """Parameters of several shapes and dtypes, with gradients."""
    import torch

    made = []
    for index, shape in enumerate([(3, 2), (4,), (2, 2)]):
        parameter = torch.nn.Parameter(torch.zeros(shape, dtype=torch.bfloat16 if index == 1 else torch.float32))
        parameter.grad = torch.full(shape, scale * (index + 1), dtype=parameter.dtype)
        made.append(parameter)
    return made


def test_whole_gradients_are_averaged_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """In two copies of lists each time, however many tensors there are."""
    import torch

    copies: list[int] = []
    copy = torch._foreach_copy_
    monkeypatch.setattr(torch, "_foreach_copy_", lambda to, what: (copies.append(len(to)), copy(to, what)))

    def from_the_other(flat: torch.Tensor) -> int:
        assert flat[-3:].tolist() == [1, 1, 1]
        flat += 5  # what the other rank holds
        return 2

    params = gradients(1)
    assert whole_gradients.alike(params)
    for expected in (3, 4):  # (1 + 5) / 2, and (3 + 5) / 2
        whole_gradients.average_alike(params, from_the_other)
        assert params[0].grad.unique().tolist() == [expected]
    assert params[1].grad.unique().tolist() == [((2 + 5) / 2 + 5) / 2]
    assert copies == [3, 3, 3, 3]


def test_gradients_that_are_not_alike_are_left_to_unsloth() -> None:
    import torch

    params = gradients(1)
    params[1].grad = None
    assert not whole_gradients.alike(params)
    params = gradients(1)
    params[0].grad = torch.ones(2, 3).t()
    assert not whole_gradients.alike(params)
    assert not whole_gradients.alike([torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))])
