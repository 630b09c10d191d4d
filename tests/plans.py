"""Plans to look at: of a described run, and of models of known size on hardware elsewhere."""

from typing import Any

from unsloth_accel.config.read_run import from_dict
from unsloth_accel.hardware.device import Device
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.planning.plan import Plan
from unsloth_accel.planning.planner import plan


def gpus(count: int, capability: tuple[int, int] = (9, 0)) -> Hardware:
    made = [
        Device(name="GPU", index=i, memory_gib=80, compute_capability=capability, uuid=f"GPU-{i}{i}")
        for i in range(count)
    ]
    return Hardware(devices=tuple(made), cpu_cores=16, host_memory_gib=128, reason="a test")


CPU = Hardware(cpu_cores=4, host_memory_gib=16, cpu_bf16=True, reason="no driver")


def make(description: dict[str, Any], hardware: Hardware, **changes: dict[str, Any]) -> Plan:
    values = {**description, **{key: {**description.get(key, {}), **more} for key, more in changes.items()}}
    return plan(from_dict(values), hardware)


def planned(hardware: str, name: str, size: int = 64, **changes: Any) -> Plan:
    values: dict[str, Any] = {"model": {"name": name}, "batch": {"global_size": size}}
    for key, more in changes.items():
        values[key] = {**values.get(key, {}), **more}
    return plan(from_dict(values, to_plan=True), Hardware.parse(hardware))


SMALL, LARGE = "unsloth/Llama-3.1-8B-Instruct", "unsloth/Llama-3.3-70B-Instruct"
