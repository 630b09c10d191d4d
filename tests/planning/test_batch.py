from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import gpus, make

from unsloth_accel.errors import ConfigError
from unsloth_accel.planning.batch import DEFAULT_PER_DEVICE, divide_batch

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
    assert batch.per_device * batch.accumulation * batch.data_parallel == size
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
