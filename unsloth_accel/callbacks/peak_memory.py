"""PeakMemory: the most GPU memory that loading and training took, over all ranks."""

from __future__ import annotations

from typing import Any

from ..adapters.fsdp2.peer_fetch.fetch import shared_bytes
from ..adapters.hook_types import Arguments, Control, State, TrainerCallback
from ..hardware.ranks import of_every_rank


class PeakMemory(TrainerCallback):
    """Splits torch's peak into loading (everything until training begins, sharding included) and training.

    What follows in between, the rehearsal and an evaluation before the first step, is part of neither.
    `figures()` gives GiB per GPU, the largest of all ranks.
    """

    def __init__(self) -> None:
        self._loading = 0
        self._shared = 0

    def on_train_begin(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        import torch

        if torch.cuda.is_available():
            # Weights that FSDP2's adapter moved to memory the GPUs share: torch's allocator counts them no more.
            self._shared = shared_bytes(kwargs.get("model"))
            self._loading = torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()

    def figures(self) -> dict[str, float]:
        """Return what this run took, in GiB; empty on a CPU. Every rank must call it.

        `loading`, `training`: allocated by torch. `reserved`: held by torch's allocator. `context`: what the GPU has
        in use beside that allocator: CUDA's context, kernels, NCCL's buffers, and any other process. `shared`: of
        `training` and `reserved`, what GPUs share, which isn't that allocator's.
        """
        import torch

        if not torch.cuda.is_available():
            return {}
        free, total = torch.cuda.mem_get_info()
        own = {
            "loading": self._loading,
            "training": torch.cuda.max_memory_allocated() + self._shared,
            "reserved": torch.cuda.max_memory_reserved() + self._shared,
            "shared": self._shared,
            "context": total - free - torch.cuda.memory_reserved() - self._shared,
        }
        ranks = of_every_rank(own)
        return {name: round(max(rank[name] for rank in ranks) / 2**30, 3) for name in own}
