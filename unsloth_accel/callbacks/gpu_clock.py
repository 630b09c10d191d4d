"""What holds a GPU's clock back, as NVML says."""

from __future__ import annotations

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
    """Of the streaming multiprocessors now; 0 where nobody tells."""
    reasons: int = 0
    """nvmlClocksEventReasons: bits."""

    @property
    def held_back_by(self) -> str:
        return " and ".join(text for bit, text in _HELD_BACK.items() if self.reasons & bit)


class ClockReader:
    """This process's GPU's clock, asked for at most every five seconds, as a query may take a millisecond."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._nvml: Any = None
        self._read = -_SECONDS
        self._clock = Clock()

    def read(self) -> Clock:
        """Zeros on a CPU, and where NVML or the GPU doesn't tell."""
        if self._nvml is False or time.monotonic() - self._read < _SECONDS:
            return self._clock
        self._read = time.monotonic()
        try:
            if self._nvml is None:
                self._handle = self._open()
            self._clock = Clock(
                float(self._nvml.nvmlDeviceGetClockInfo(self._handle, self._nvml.NVML_CLOCK_SM)),
                int(self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle)),
            )
        except Exception:  # whatever NVML, its Python package or a virtual GPU has against it: no figure
            self._nvml, self._clock = False, Clock()
        return self._clock

    def _open(self) -> Any:
        import pynvml
        import torch

        if not torch.cuda.is_available():
            raise RuntimeError("no GPU")
        pynvml.nvmlInit()
        self._nvml = pynvml
        uuid = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode())
