"""What is left after memory was out; runs that go on are in tests/training/test_training.py."""

from types import SimpleNamespace

import pytest


def test_buffers_that_were_about_to_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch notes the new size first; the next use would read beyond what there is."""
    import sys

    import torch

    from unsloth_accel.adapters import out_of_memory

    good, bad = torch.zeros(4), torch.zeros(4)
    bad.untyped_storage().resize_(8)
    module = SimpleNamespace(GPU_BUFFERS=[None, good, bad], GPU_BUFFERS_B=None)
    monkeypatch.setitem(sys.modules, "unsloth_zoo.gradient_checkpointing", module)
    out_of_memory._empty_half_grown()
    assert good.numel() == 4
    assert bad.numel() == 0
