"""Leaving a process group on a CPU: gloo's threads must have let go of their tensors before Python ends.

Mends, in torch 2.13: a collective is told to be done before gloo's thread drops the tensors it was for. Dropping one
takes the GIL, and a thread that asks for it while Python ends is unwound, which aborts the whole process after all work
is done ("terminate called without an active exception", https://github.com/pytorch/pytorch/pull/179291). Destroying the
group is no way out: torch joins that thread while it holds the GIL, and hangs.
"""

from __future__ import annotations

import atexit
import sys
import time

PATIENCE = 0.3
"""Seconds within which a thread that can run surely has, even where eight of them share a core."""


def leave_in_peace() -> None:
    """Have Python wait for gloo's threads at its end; exit functions registered from now on run before that."""
    atexit.register(_let_gloo_finish)


def _let_gloo_finish() -> None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    if "gloo" in torch.distributed.get_backend_config():
        time.sleep(PATIENCE)  # releases the GIL
