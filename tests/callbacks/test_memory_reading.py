from __future__ import annotations

import pytest


def test_memory_is_asked_of_the_machine_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    from unsloth_accel.callbacks import memory_reading
    from unsloth_accel.callbacks.memory_reading import MachineMemory, TorchMemory

    asked: list[MachineMemory] = []
    clock = iter([100.0, 100.9, 101.1, 101.2, 101.3])
    gpu: list[TorchMemory | None] = [None]

    def look() -> MachineMemory:
        asked.append(MachineMemory(total=80 if gpu[0] else 0, others=0, host=0.5, process=1))
        return asked[-1]

    monkeypatch.setattr(memory_reading, "_read", [])
    monkeypatch.setattr(memory_reading.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(memory_reading, "_machine", look)
    monkeypatch.setattr(memory_reading, "torch_memory", lambda: gpu[0])
    counts = []
    for _ in range(3):
        memory_reading.machine()
        counts.append(len(asked))
    assert counts == [1, 1, 2]
    gpu[0] = TorchMemory(peak=1, reserved=1, retries=0)
    assert memory_reading.machine().total == 80, "the GPU came into use since"
    memory_reading.machine()
    assert len(asked) == 3
