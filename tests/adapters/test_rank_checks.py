"""The guard's view of strategies; what it does inside real processes is in tests/training/test_training.py."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from unsloth_accel.adapters import rank_checks
from unsloth_accel.config.promise import Promise


@pytest.mark.parametrize(
    ("strategy", "running", "right"),
    [
        ("single", "NO", True),
        ("ddp", "MULTI_GPU", True),
        ("fsdp2", "FSDP", True),
        ("fsdp1", "FSDP", True),
        ("fsdp2_native", "MULTI_GPU", True),
        ("ddp", "NO", False),
        ("ddp", "FSDP", False),
        ("fsdp2", "MULTI_GPU", False),
        ("fsdp2_native", "FSDP", False),
        ("single", "MULTI_CPU", False),
    ],
)
def test_each_strategy_has_its_kind_of_run(
    strategy: Any, running: str, right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_checks, "distributed_type", lambda: running)
    promised = Promise(num_processes=1, strategy=strategy)
    if right:
        rank_checks.check_world(promised)
        return
    with pytest.raises(rank_checks.GuardError, match=f"strategy {strategy} was promised, Accelerate runs {running}"):
        rank_checks.check_world(promised)


def test_the_kind_is_read_where_unsloth_hides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Unsloth 2025.12 and 2026.8 do where one GPU is visible; the word is then a function."""
    from accelerate import Accelerator

    Accelerator(cpu=True)
    monkeypatch.setattr(Accelerator, "distributed_type", lambda *_: "NO")
    assert rank_checks.distributed_type() == "NO"


def test_sharding_that_was_promised_must_be_there() -> None:
    whole = SimpleNamespace(parameters=lambda: [SimpleNamespace()])
    sharded = SimpleNamespace(parameters=lambda: [SimpleNamespace(), SimpleNamespace(full_tensor=None)])
    for strategy in ("fsdp2", "fsdp2_native"):
        promised = Promise(num_processes=2, strategy=strategy)  # type: ignore[arg-type]
        rank_checks.check_sharded(promised, sharded)  # type: ignore[arg-type]
        with pytest.raises(rank_checks.GuardError, match="no weight is sharded"):
            rank_checks.check_sharded(promised, whole)  # type: ignore[arg-type]
    rank_checks.check_sharded(Promise(num_processes=2, strategy="ddp"), whole)  # type: ignore[arg-type]


def test_checksums_of_many_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of one kind are summed together, a few at once: each has the sum that it would have alone."""
    import torch

    monkeypatch.setattr(rank_checks, "AT_ONCE", 40)
    cpu = torch.device("cpu")
    torch.manual_seed(0)
    others = (torch.randn(5).to(torch.bfloat16), torch.randn(100), torch.empty(0))
    turned = torch.randn(3, 4).t()  # not contiguous, as many elements as the first
    tensors = [*(torch.randn(4, 3) for _ in range(7)), *others, turned]
    sums = rank_checks._checksums(tensors, cpu)
    assert sums.tolist() == [int(rank_checks._checksums([tensor], cpu)) for tensor in tensors]
    assert len(set(sums.tolist())) == len(tensors)
    tensors[3] = tensors[3].clone()
    tensors[3][1, 2] += 1e-6
    assert (rank_checks._checksums(tensors, cpu) != sums).nonzero().flatten().tolist() == [3]
    tensors[3][0, 0], tensors[3][0, 1] = tensors[3][0, 1].clone(), tensors[3][0, 0].clone()
    assert rank_checks._checksums(tensors, cpu)[3] != sums[3]  # the same values elsewhere


def checksum(tensor: torch.Tensor) -> torch.Tensor:
    return rank_checks._checksums([tensor], tensor.device)[0]


def test_checksums_see_values_places_and_types() -> None:
    tensor = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert checksum(tensor) == checksum(tensor.clone())
    assert checksum(tensor.t()) != checksum(tensor)
    assert checksum(torch.nextafter(tensor, tensor + 1)) != checksum(tensor)
    for dtype in (torch.float64, torch.bfloat16, torch.float16, torch.int8):
        assert checksum(tensor.to(dtype)) != checksum((tensor + 1).to(dtype))
