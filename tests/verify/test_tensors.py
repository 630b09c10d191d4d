from pathlib import Path

import numpy as np

from unsloth_accel.verify import tensors


def test_adapters_are_read_without_torch(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    values = torch.linspace(-3, 7, 12).reshape(3, 4)
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        save_torch({"w": values.to(dtype)}, str(tmp_path / "w.safetensors"), metadata={"format": "pt"})
        read = tensors.read_tensors(tmp_path / "w.safetensors")
        assert np.array_equal(read["w"], values.to(dtype).to(torch.float32).numpy())
