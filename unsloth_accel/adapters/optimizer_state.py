"""The state that an optimizer will have, made before its first step, so that memory is reserved for it."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from typing import Any

import torch

from ..capabilities.probe import available


def reserved(optimizer: Any) -> list[torch.Tensor]:
    """Return tensors as large as the state that `optimizer` makes in its first step; none where it has it already.

    A twin of the optimizer steps twins of its parameters, with all that it takes for that, so that neither is touched.
    A paged state makes room by itself.
    """
    optimizer = getattr(optimizer, "optimizer", optimizer)  # in accelerate's
    if optimizer.state or getattr(optimizer, "is_paged", False) or not available("an optimizer's twin"):
        return []
    twin = object.__new__(type(optimizer))
    twin.__dict__.update(vars(optimizer))
    twin.__dict__.pop("step", None)  # a scheduler's, which is bound to the optimizer
    twin._optimizer_step_pre_hooks, twin._optimizer_step_post_hooks = OrderedDict(), OrderedDict()
    twin.state = defaultdict(dict)
    twin.param_groups = [{**group, "params": list(map(_twin, group["params"]))} for group in optimizer.param_groups]
    if hasattr(twin, "train"):  # schedule-free ones step in this mode only
        twin.train()
    twin.step()
    return [value for state in twin.state.values() for value in state.values() if isinstance(value, torch.Tensor)]


def _twin(parameter: torch.Tensor) -> torch.nn.Parameter:
    found = torch.nn.Parameter(torch.zeros_like(parameter), requires_grad=parameter.requires_grad)
    found.grad = torch.zeros_like(found) if parameter.requires_grad else None
    return found
