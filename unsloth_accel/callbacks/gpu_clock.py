"""Clock of a GPU, and what holds it back, as NVML says."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

_SECONDS = 5.0
_HELD_BACK = {
    # nvmlClocksEventReasons; application clocks and idling are no fault.
    0x4: "its power limit",
    0x8: "a hardware slowdown",
    0x20: "its temperature",
    0x40: "its temperature (hardware)",
    0x80: "the power supply's brake",
}


@dataclass(frozen=True)
class Clock:
    mhz: float = 0.0
    """Clock of the streaming multiprocessors in MHz; 0 where it is unknown."""
    reasons: int = 0
    """Bits of nvmlClocksEventReasons."""

    @property
    def held_back_by(self) -> str:
        return " and ".join(text for bit, text in _HELD_BACK.items() if self.reasons & bit)


class ClockReader:
    """Reader of this process's GPU's clock, at most every five seconds, as a query may take a millisecond."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._due = 0.0
        self._clock = Clock()

    def read(self) -> Clock:
        """Return the clock; zeros on a CPU, and where NVML or the GPU doesn't tell."""
        now = time.monotonic()
        if now < self._due:
            return self._clock
        self._due = now + _SECONDS
        try:
            import pynvml

            self._handle = self._handle or _own_gpu()
            self._clock = Clock(
                float(pynvml.nvmlDeviceGetClockInfo(self._handle, pynvml.NVML_CLOCK_SM)),
                int(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle)),
            )
        except Exception:  # whatever NVML, its Python package or a virtual GPU has against it: no figure, ever
            self._due, self._clock = math.inf, Clock()
        return self._clock


def _own_gpu() -> Any:
    """NVML's handle of this process's GPU; raises where there is none."""
    import pynvml
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("no GPU")
    pynvml.nvmlInit()
    uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
    return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode())
