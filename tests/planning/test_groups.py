"""Groups of completions: kept whole, or refused with numbers that keep them so."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import gpus, make

from unsloth_accel.config.run_config import BatchConfig, DataConfig, ModelConfig, RunConfig
from unsloth_accel.errors import ConfigError
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.planning.batch import divide_batch
from unsloth_accel.planning.groups import eval_rows, groups, whole_groups, written_together

numbers = st.integers(1, 24)


def run(size: int | None = None, **training: Any) -> RunConfig:
    data, batch = DataConfig(path="rows.jsonl"), BatchConfig(global_size=size)
    return RunConfig(method="grpo", model=ModelConfig(name="m"), data=data, batch=batch, training=training)


@pytest.fixture
def prompts(description: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n' * 20, encoding="utf-8")
    rewards = {"functions": ["accuracy"]}
    return description | {"method": "grpo", "rewards": rewards, "batch": {"global_size": 16}}


@given(size=st.integers(2, 24), count=numbers, per_device=st.none() | numbers, accumulation=st.none() | numbers)
def test_a_batch_that_nobody_gave_keeps_groups_whole(
    size: int, count: int, per_device: int | None, accumulation: int | None
) -> None:
    asked = run(num_generations=size)
    rows, steps = whole_groups(asked, count, per_device, accumulation)
    assert per_device in (None, rows)
    assert accumulation in (None, steps)
    batch = divide_batch(rows * steps * count, count, rows, steps)
    if per_device is None or accumulation is None:
        cut = rows * steps * count % size
        assert not cut or accumulation  # what is given may leave no way
    if rows * steps * count % size == 0:
        assert groups(asked, batch) is not None


@given(size=st.integers(2, 24), count=numbers, rows=st.integers(1, 400), steps=st.none() | numbers)
def test_groups_are_whole_or_what_is_proposed_makes_them_so(
    size: int, count: int, rows: int, steps: int | None
) -> None:
    given_steps = {"steps_per_generation": steps} if steps else {}
    asked, batch = run(rows * count, num_generations=size, **given_steps), divide_batch(rows * count, count)
    try:
        found = groups(asked, batch)
    except ConfigError as error:
        fix = error.problems[0].fix
        for near in map(int, re.findall(r"global_size=(\d+)", fix)):
            assert groups(asked, divide_batch(near, count)) is not None
        for near in map(int, re.findall(r"steps_per_generation=(\d+)", fix)):
            other = replace(asked, training=asked.training | {"steps_per_generation": near})
            assert groups(other, batch) is not None
        for near in map(int, re.findall(r"num_generations=(\d+)", fix)):
            assert groups(replace(asked, training=asked.training | {"num_generations": near}), batch) is not None
        assert "=" in fix
        return
    assert found is not None
    assert found.at_once % size == 0
    assert found.at_once == batch.per_device * count * (steps or batch.accumulation)


@pytest.mark.parametrize(
    ("count", "training", "expected"),
    [
        (2, {}, ("batch.global_size", 16)),
        (2, {"generation_batch_size": 64}, ("training.generation_batch_size", 64)),
        (2, {"steps_per_generation": 8, "per_device_train_batch_size": 4}, ("training.steps_per_generation", 64)),
        ("auto", {"steps_per_generation": 8, "gradient_accumulation_steps": 2}, ("training.steps_per_generation", 64)),
        ("auto", {"steps_per_generation": 8}, None),
    ],
)
def test_what_is_written_together_as_far_as_the_settings_say(
    count: Any, training: dict[str, Any], expected: tuple[str, int] | None
) -> None:
    asked = run(16, num_generations=4, **training)
    asked.distributed.num_processes = count
    found = written_together(asked)
    assert found == expected
    if found and isinstance(count, int):
        batch = divide_batch(16, count, training.get("per_device_train_batch_size"))
        written = groups(asked, batch)
        assert written is not None
        assert written.at_once == found[1]


@given(size=st.integers(2, 24), count=numbers, asked=st.none() | st.integers(1, 64))
def test_held_out_groups_are_whole_too(size: int, count: int, asked: int | None) -> None:
    chosen = {"per_device_eval_batch_size": asked} if asked else {}
    held = replace(run(num_generations=size, **chosen), data=DataConfig(path="a", eval_path="b"))
    try:
        found = eval_rows(held, count)
    except ConfigError as error:
        for near in map(int, re.findall(r"eval_batch_size=(\d+)", error.problems[0].fix)):
            assert near * count % size == 0
        return
    assert found is not None
    assert found * count % size == 0


def test_a_plan_tells_completions_and_prompts(prompts: dict[str, Any]) -> None:
    decided = make(prompts, gpus(2), training={"num_generations": 4})
    told = "16 completions per step, 4 to each of 4 prompts"
    assert any(told in reason for reason in decided.reasons)
    assert decided.time is not None
    assert decided.time.steps == 15  # 3 epochs of 20 prompts, 4 at a time


def test_a_batch_that_cuts_groups_names_those_that_do_not(prompts: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"would cut groups.*global_size=12.*or batch\.global_size=24"):
        make(prompts, gpus(2), training={"num_generations": 12})
    decided = make(prompts, gpus(3), batch={"global_size": None}, training={"num_generations": 5})
    assert decided.batch.per_device * decided.batch.accumulation * 3 % 5 == 0


def test_rows_per_device_follow_from_the_steps_of_a_generation(prompts: dict[str, Any]) -> None:
    decided = make(prompts, gpus(2), training={"num_generations": 8, "steps_per_generation": 1})
    assert decided.batch.per_device % 4 == 0


def test_what_unsloth_changes_is_written_with_the_value_of_trl(prompts: dict[str, Any]) -> None:
    training = make(prompts, gpus(2)).resolved()["training"]
    wanted = {"learning_rate": 1e-6, "loss_type": "dapo", "beta": 0.0, "vllm_importance_sampling_correction": True}
    assert {name: training[name] for name in wanted} == wanted


def test_a_loss_that_depends_on_the_number_of_gpus_is_told(prompts: dict[str, Any]) -> None:
    assert any("bnpo divides" in reason for reason in make(prompts, gpus(2), training={"loss_type": "bnpo"}).reasons)


def test_weights_that_are_divided_are_not_sent_to_a_server(prompts: dict[str, Any]) -> None:
    served = {"use_vllm": True, "vllm_mode": "server"}
    with pytest.raises(ConfigError, match=r"sends whole weights to the server.*distributed\.strategy=ddp"):
        make(prompts, gpus(2), training=served, distributed={"strategy": "fsdp2"})
    decided = make(prompts, gpus(2), training=served)
    assert decided.strategy == "ddp"
    assert all("whole weights" in one.reason for one in decided.rejected if one.strategy.startswith("fsdp2"))


def test_weights_are_not_sent_to_a_server_from_a_cpu(prompts: dict[str, Any]) -> None:
    served = {"use_vllm": True, "vllm_mode": "server"}
    with pytest.raises(ConfigError, match=r"use_vllm=True: sends.*by NCCL, from a GPU.*training\.use_vllm=false"):
        make(prompts, Hardware.parse("cpu"), training=served)
    make(prompts, Hardware.parse("cpu"), training={"use_vllm": True, "vllm_mode": "colocate"})


def test_completions_take_memory_and_seconds(prompts: dict[str, Any]) -> None:
    cards = Hardware.parse("2xH100-80GB")
    one = {"per_device_train_batch_size": 1}  # so that training takes less than the cache
    few, many = (make(prompts, cards, batch={"global_size": size}, training=one) for size in (16, 8192))
    assert few.memory is not None
    assert many.memory is not None
    assert many.memory.terms["generation_excess"] > few.memory.terms.get("generation_excess", 0)
    assert few.speed is not None
    assert few.speed.generating > 0
    assert any("for writing completions" in reason for reason in few.reasons)
