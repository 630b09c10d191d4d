import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import gpus, make

from unsloth_accel.config.run_config import RunConfig
from unsloth_accel.errors import ConfigError
from unsloth_accel.planning.batch import DEFAULT_PER_DEVICE, divide_batch, keep_rows

counts = st.integers(1, 64)


@given(size=st.integers(1, 4096), count=counts)
def test_a_divided_batch_is_exact_or_refused(size: int, count: int) -> None:
    try:
        batch = divide_batch(size, count)
    except ConfigError as error:
        assert size % count
        fix = error.problems[0].fix
        for nearby in map(int, re.findall(r"global_size=(\d+)", fix)):
            assert abs(nearby - size) < count
            assert divide_batch(nearby, count).global_size == nearby
        (others,) = re.findall(r", or ((?:\d+ or )?\d+) process(?:es)? in place of", fix)
        for other in map(int, others.split(" or ")):
            assert divide_batch(size, other).global_size == size
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
        assert size % (count * (per_device or accumulation or 1))
        return
    assert batch.per_device * batch.accumulation * count == size
    assert per_device in (None, batch.per_device)
    # Only rows per device and accumulation together can contradict the rows of a step.
    assert accumulation in (None, batch.accumulation) or per_device


def test_an_impossible_batch_names_those_that_work(description: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"batch\.global_size=9 or batch\.global_size=12, or distributed"):
        make(description, gpus(3), batch={"global_size": 10})
    with pytest.raises(ConfigError, match=r"Fix: batch\.global_size=12, or distributed\.num_processes=2"):
        make(description, gpus(3), training={"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2})


def test_accumulation_gives_way_to_the_rows_of_a_step(description: dict[str, Any]) -> None:
    made = make(description, gpus(2), training={"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2})
    assert made.resolved()["training"]["gradient_accumulation_steps"] == 1
    said = "training.gradient_accumulation_steps=2 gives way: 8 rows per step = 4 × 1 × 2"
    assert any(reason.startswith(said) for reason in made.reasons)


def test_a_description_that_was_planned_for_others_keeps_its_rows(planned: RunConfig) -> None:
    """As each process reads it; `planned` is for two."""
    assert keep_rows(planned, 2) == (planned, "")
    alone, told = keep_rows(planned, 1)
    assert told.startswith("2 processes were planned and 1 started: 8 rows per step = 4 × 2 × 1")
    assert (alone.distributed.num_processes, alone.distributed.strategy) == (1, "single")
    assert alone.training["gradient_accumulation_steps"] == 2
    assert alone.batch == planned.batch
    assert keep_rows(alone, 2)[0].distributed.strategy == "auto", "nobody knows which of them was started"
    with pytest.raises(ConfigError, match=r"Fix: batch\.global_size=12, or 2 processes in place of 3"):
        keep_rows(planned, 3)
    edited = replace(planned, batch=replace(planned.batch, global_size=24))
    assert keep_rows(edited, 2)[1].startswith("training.gradient_accumulation_steps=1 gives way: 24 rows per step")
    silent = replace(planned, batch=replace(planned.batch, global_size=None))
    assert keep_rows(silent, 1)[1] == ""


def test_the_batch_is_what_processes_give_when_none_is_promised(description: dict[str, Any]) -> None:
    made = make(description, gpus(4), batch={"global_size": None}, training={"per_device_train_batch_size": 2})
    assert str(made.batch) == "8 rows per step = 2 × 1 × 4 (per device × accumulation × processes)"


def test_tokens_that_cannot_be_kept_are_told_in_tokens(description: dict[str, Any]) -> None:
    """Nobody wrote a global_size, and beside global_tokens it would be refused."""
    tokens = {"global_size": None, "global_tokens": 16384}
    words = r"batch\.global_tokens=16384: can't be 2048 tokens per row × 3 processes times.*"
    fix = r"Fix: batch\.global_tokens=12288 or .*=18432, or distributed\.num_processes=2, or 4 such GPUs$"
    with pytest.raises(ConfigError, match=words + fix):
        make(description, gpus(3), batch=tokens)
    run = make(description, gpus(2), batch=tokens).run
    with pytest.raises(ConfigError, match=r"batch\.global_tokens=12288 or .*18432, or 2 or 4 processes in place of 3$"):
        keep_rows(run, 3)
