"""DeviceManager: the GPUs that are there, which of them to take, and what they do while something runs."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import asdict
from typing import Any

from ..adapters import environment
from ..errors import ConfigError, Problem, counted, raise_errors
from ..hardware.hardware import Hardware
from .asked import value_problems

KEPT = 3600
"""Readings that are kept of a monitoring: an hour of one per second."""


class DeviceManager:
    """The GPUs of this machine that CUDA_VISIBLE_DEVICES leaves visible, by NVML; needs neither torch nor a GPU."""

    def __init__(self, hardware: Hardware | None = None) -> None:
        self.hardware = hardware or Hardware.detect()
        self._readings: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def get_available_devices(self) -> list[dict[str, Any]]:
        """Return each GPU's `name`, `index`, `memory_gib`, `memory_free_gib`, and so on; empty on a CPU."""
        return [asdict(device) for device in self.hardware.devices]

    def get_device_summary(self) -> dict[str, Any]:
        """Return the number of GPUs, their memory in GiB together, their link, and all in a sentence (`text`)."""
        devices = self.hardware.devices
        return {
            "num_gpus": len(devices),
            "memory_gib": sum(device.memory_gib for device in devices),
            "link": self.hardware.link,
            "cpu_cores": self.hardware.cpu_cores,
            "host_memory_gib": self.hardware.host_memory_gib,
            "text": str(self.hardware),
            "reasons": list(self.hardware.reasons),
        }

    def get_optimal_device_assignment(self, num_gpus: int | None = None) -> dict[int, int]:
        """Return the GPU (its index) of each rank: those with the most free memory, in the machine's own order.

        In a launched process it is what the launch has assigned: rank N of this machine trains on the N-th visible GPU.
        `CUDA_VISIBLE_DEVICES=1,3` in front of the launch takes those. Raises `ConfigError` for more than there are.
        """
        raise_errors(value_problems({"num_gpus": num_gpus}))
        devices = self.hardware.devices
        wanted = num_gpus or len(devices)
        if wanted > len(devices):
            consequence = f"{counted(len(devices), 'GPU')} can be seen here."
            fix = f"num_gpus={len(devices)}" if devices else "leave it out: processes of a CPU are assigned no device"
            raise ConfigError(Problem(key="num_gpus", value=num_gpus, consequence=consequence, fix=fix))
        if environment.world_size() > 1:
            chosen = list(devices[: environment.local_world_size()])
        else:
            from ..planning.device_and_count import freest

            chosen = list(freest(self.hardware, wanted))
        return {rank: device.index for rank, device in enumerate(sorted(chosen, key=devices.index))}

    def start_device_monitoring(self, interval: float = 1.0) -> None:
        """Read every GPU each `interval` seconds from now on, in a thread; once is enough."""
        if not isinstance(interval, int | float) or not interval > 0:
            raise ConfigError(Problem(key="interval", value=interval, consequence="is no time.", fix="1.0 (seconds)"))
        if self._thread is not None:
            return
        self._stop.clear()
        self._readings.clear()
        self._thread = threading.Thread(target=self._monitor, args=(interval,), daemon=True)
        self._thread.start()

    def stop_device_monitoring(self) -> list[dict[str, Any]]:
        """Stop reading, and return what was read: `time` (seconds since 1970) and `devices`, as `get_device_stats`."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        return list(self._readings)

    def get_device_stats(self, device_id: int | None = None) -> list[dict[str, Any]]:
        """Return of each GPU, or of that with index `device_id`, now: `index`, `memory_used_gib` (all processes'),
        `memory_gib` and `utilization` (share of the last second in which something ran, from 0 to 1; None unknown).

        Raises `ConfigError` for an index that isn't there.
        """
        known = [device.index for device in self.hardware.devices]
        if device_id is not None and device_id not in known:
            consequence = "no such GPU can be seen here."
            fix = f"one of: {', '.join(map(str, known))}" if known else "leave it out: there is no GPU"
            raise ConfigError(Problem(key="device_id", value=device_id, consequence=consequence, fix=fix))
        from ..hardware.nvml import ask_nvml, utilization

        busy = utilization() if known else {}
        now = {device.index: device for device in ask_nvml(self.hardware.host_memory_gib).devices} if known else {}
        found = []
        for index in known if device_id is None else [device_id]:
            device = now.get(index)
            free = device.memory_free_gib if device else None
            used = device.memory_gib - free if device and free is not None else None
            total = device.memory_gib if device else None
            found.append({"index": index, "memory_used_gib": used, "memory_gib": total, "utilization": busy.get(index)})
        return found

    def _monitor(self, interval: float) -> None:
        while not self._stop.is_set():
            self._readings.append({"time": time.time(), "devices": self.get_device_stats()})
            self._stop.wait(interval)
