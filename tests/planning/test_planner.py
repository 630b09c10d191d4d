import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unsloth_accel.config.run_config import from_dict
from unsloth_accel.errors import ConfigError
from unsloth_accel.hardware.hardware import Device, Hardware, _visible
from unsloth_accel.planning.batch import DEFAULT_PER_DEVICE, divide_batch
from unsloth_accel.planning.planner import Plan, plan


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


counts = st.integers(1, 64)


@given(size=st.integers(1, 4096), count=counts)
def test_a_divided_batch_is_exact_or_refused(size: int, count: int) -> None:
    try:
        batch = divide_batch(size, count)
    except ConfigError as error:
        assert size % count
        for fix in error.problems[0].fix.split(" or "):
            nearby = int(fix.split("=")[1])
            assert abs(nearby - size) < count
            assert divide_batch(nearby, count).global_size == nearby
        return
    assert batch.per_device * batch.accumulation * batch.num_processes == size
    assert 1 <= batch.per_device <= DEFAULT_PER_DEVICE
    # The largest that is allowed and divides.
    assert all((size // count) % more for more in range(batch.per_device + 1, DEFAULT_PER_DEVICE + 1))


@given(per_device=st.none() | st.integers(1, 16), accumulation=st.none() | st.integers(1, 16), count=counts)
def test_what_is_given_is_kept(per_device: int | None, accumulation: int | None, count: int) -> None:
    size = 48 * count
    try:
        batch = divide_batch(size, count, per_device, accumulation)
    except ConfigError:
        unit = count * (per_device or 1) * (accumulation or 1)
        assert size % unit or (per_device and accumulation and size != unit)
        return
    assert batch.per_device * batch.accumulation * count == size
    assert per_device in (None, batch.per_device)
    assert accumulation in (None, batch.accumulation)


def test_an_impossible_batch_names_those_that_work(description: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"batch\.global_size=9 or batch\.global_size=12"):
        make(description, gpus(3), batch={"global_size": 10})
    with pytest.raises(ConfigError, match=r"Fix: batch\.global_size=16"):
        make(description, gpus(2), training={"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2})


def test_the_batch_is_what_processes_give_when_none_is_promised(description: dict[str, Any]) -> None:
    made = make(description, gpus(4), batch={"global_size": None}, training={"per_device_train_batch_size": 2})
    assert str(made.batch) == "8 rows per step = 2 × 1 × 4 (per device × accumulation × processes)"


@pytest.mark.parametrize(
    ("hardware", "strategy", "count", "precision"),
    [
        (gpus(1), "single", 1, "bf16"),
        (gpus(4), "ddp", 4, "bf16"),
        (gpus(2, (7, 5)), "ddp", 2, "fp16"),
        (CPU, "ddp", 2, "bf16"),
        (Hardware(cpu_cores=1, host_memory_gib=4), "single", 1, "no"),
    ],
)
def test_auto(description: dict[str, Any], hardware: Hardware, strategy: str, count: int, precision: str) -> None:
    made = make(description, hardware)
    assert (made.strategy, made.num_processes, made.mixed_precision) == (strategy, count, precision)
    assert made.batch.global_size == 8
    assert made.reasons


def test_refusals(description: dict[str, Any]) -> None:
    for hardware, asked, words in (
        (gpus(2), {"num_processes": 3}, "3 processes need 3 GPUs and 2 are visible"),
        (CPU, {"device": "cuda"}, "no GPU is visible"),
        (gpus(2), {"num_processes": 2, "strategy": "single"}, "single is one process"),
        (gpus(1), {"strategy": "ddp"}, "ddp needs at least two"),
    ):
        with pytest.raises(ConfigError, match=words):
            make(description, hardware, distributed=asked)
    with pytest.raises(ConfigError, match="accelerate refuses fp16 there"):
        make(description, CPU, training={"fp16": True})
    with pytest.raises(ConfigError, match="both on"):
        make(description, gpus(1), training={"bf16": True, "fp16": True})


def test_full_precision_when_asked(description: dict[str, Any]) -> None:
    assert make(description, CPU, training={"bf16": False}).mixed_precision == "no"
    assert make(description, CPU, model={"dtype": "float32"}).mixed_precision == "no"
    assert make(description, gpus(1, (7, 5)), model={"dtype": "float32"}).mixed_precision == "no"
    # On a GPU Unsloth trains an adapter in mixed precision all the same, and the plan says what runs.
    made = make(description, gpus(1), training={"bf16": False})
    assert made.mixed_precision == "bf16"
    assert any("mixed precision on a GPU all the same" in reason for reason in made.reasons)


def test_precision_follows_the_models_dtype(description: dict[str, Any]) -> None:
    assert make(description, gpus(1), model={"dtype": "float16"}).mixed_precision == "fp16"
    assert make(description, gpus(1), model={"dtype": "bfloat16"}).mixed_precision == "bf16"
    for hardware, model, training, words in (
        (gpus(1), "float16", {"bf16": True}, "Unsloth refuses to train that in bf16"),
        (gpus(1), "bfloat16", {"fp16": True}, "Unsloth refuses to train that in fp16"),
        (gpus(1, (7, 5)), "bfloat16", {}, "has no bfloat16"),
        (gpus(1, (7, 5)), None, {"bf16": True}, "has no bfloat16"),
        (CPU, "float16", {}, "refuses fp16 there"),
    ):
        with pytest.raises(ConfigError, match=words):
            make(description, hardware, model={"dtype": model}, training=training)


def test_the_environment_says_what_the_yaml_cannot(description: dict[str, Any]) -> None:
    on_cpu = make(description, CPU).environment
    assert on_cpu["ACCELERATE_USE_CPU"] == "true"
    assert on_cpu["OMP_NUM_THREADS"] == "2"
    assert "UNSLOTH_FORCE_CPU" not in on_cpu
    forced = make(description, gpus(2), distributed={"device": "cpu"}).environment
    assert forced["UNSLOTH_FORCE_CPU"] == "1"
    promise = json.loads(on_cpu["UNSLOTH_ACCEL_PROMISE"])
    promised = {"num_processes": 2, "strategy": "ddp", "device": "cpu", "made_by": "the plan", "environment": {}}
    assert promise == promised


def test_the_freest_gpus_are_taken(description: dict[str, Any]) -> None:
    found = [replace(device, memory_free_gib=free) for device, free in zip(gpus(3).devices, (1, 79, 60), strict=True)]
    hardware = replace(gpus(3), devices=tuple(found))
    assert make(description, hardware, distributed={"num_processes": 1}).environment["CUDA_VISIBLE_DEVICES"] == "GPU-11"
    two = make(description, hardware, distributed={"num_processes": 2})
    assert two.environment["CUDA_VISIBLE_DEVICES"] == "GPU-11,GPU-22"
    with pytest.raises(
        ConfigError, match=r"GPU 0 has 1\.0 GiB free of 80\.0.*free the 79\.0 GiB that are in use on GPU 0"
    ):
        make(description, hardware, batch={"global_size": 9})


def test_one_process_sees_one_gpu(description: dict[str, Any]) -> None:
    """The Trainer gives a process that sees several GPUs torch's DataParallel."""
    assert make(description, gpus(4), distributed={"num_processes": 1}).environment["CUDA_VISIBLE_DEVICES"] == "GPU-00"
    assert "CUDA_VISIBLE_DEVICES" not in make(description, gpus(4)).environment


def test_the_written_run_is_decided(description: dict[str, Any]) -> None:
    batch = {"global_size": 8, "balance": "rows", "on_out_of_memory": "stop"}
    made = make(description, CPU, training={"overwrite": True, "max_steps": 1}, batch=batch)
    again = plan(from_dict(made.resolved()), CPU)
    assert again.batch == made.batch
    assert (again.run.batch.balance, again.run.batch.on_out_of_memory) == ("rows", "stop")
    assert again.run.distributed.strategy == "ddp"
    assert not again.run.overwrite


def test_visible_devices_are_chosen_as_cuda_does() -> None:
    found = list(gpus(3).devices)

    def chosen(value: str | None) -> list[int]:
        return [device.index for device in _visible(found, "", value)[0]]

    assert chosen(None) == [0, 1, 2]
    assert chosen("2,0") == [2, 0]
    assert chosen("GPU-11") == [1]
    assert chosen("0,7,1") == [0]
    assert chosen("") == chosen("-1") == chosen("NoDevFiles") == []
