"""How many blocks keep their activations: what is asked for, what fits, and what is fastest of that."""

import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from plans import CPU, LARGE, SMALL, make, planned

from unsloth_accel.config.read_run import from_dict
from unsloth_accel.config.run_config import PROJECTIONS
from unsloth_accel.errors import ConfigError
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.models.spec import ModelSpec
from unsloth_accel.planning.kept_blocks import VARIABLE
from unsloth_accel.planning.memory_estimate import Workload, estimate, usable_gib
from unsloth_accel.planning.options import ALIKE, Choice
from unsloth_accel.planning.planner import plan
from unsloth_accel.planning.speed_estimate import estimate_speed

LLAMA = ModelSpec.load(SMALL)
WORK = Workload(
    spec=LLAMA, lora_parameters=LLAMA.lora_parameters(PROJECTIONS, 16), per_device=4, length=2048, optim="adamw_torch"
)
H200 = Hardware.parse("1xH200")


def seconds(work: Workload, strategy: str = "single", count: int = 1) -> float:
    speed = estimate_speed(work, strategy, count, 1, H200, "bf16")
    assert speed is not None
    return speed.step_seconds


def test_memory_is_spent_for_speed() -> None:
    """It took 32 rows at once and computed every block twice, at 22,000 tokens/s."""
    made = planned("2xH200", SMALL)
    assert made.strategy == "ddp"
    assert made.keep_activations == 32
    assert made.batch.per_device < 32
    assert made.batch.global_size == 64
    assert made.speed is not None
    assert made.speed.tokens_per_second > 29_000
    assert made.promise.keep_activations == made.to_dict()["keep_activations"] == 32
    assert made.resolved()["model"]["keep_activations"] == 32
    assert "kept       activations of 32 of 32 blocks\n" in str(made)
    again = plan(from_dict(made.resolved(), to_plan=True), Hardware.parse("2xH200"))
    assert (again.keep_activations, again.batch) == (32, made.batch)


@pytest.mark.parametrize("checkpointing", ["unsloth", "true"])
def test_every_block_that_keeps_its_own_takes_memory_and_saves_time(checkpointing: Any) -> None:
    works = [replace(WORK, checkpointing=checkpointing, keep_activations=kept) for kept in range(33)]
    memory = [estimate(work, "single", 1).total for work in works]
    assert memory == sorted(memory)
    assert memory[2] < memory[3]
    assert all(less > more for less, more in pairwise(map(seconds, works)))
    without = replace(WORK, checkpointing="false")
    assert memory[-1] == pytest.approx(estimate(without, "single", 1).total)
    assert seconds(works[-1]) == seconds(without)
    assert estimate(works[-1], "single", 1).host_gib == 0
    assert works[-1].recomputed == without.recomputed == 0


def test_the_steps_measured_by_kept_blocks() -> None:
    """One H200, 2026-11-28: 8B, 4 × 2048."""
    for kept, measured, gib in ((0, 0.755, 17.0), (8, 0.696, 23.6), (16, 0.640, 30.9), (24, 0.586, 38.3)):
        work = replace(WORK, keep_activations=kept)
        assert seconds(work) == pytest.approx(measured, rel=0.05)
        assert estimate(work, "single", 1).allocated == pytest.approx(gib, rel=0.03)


@pytest.mark.parametrize(("asked", "kept"), [(0, 0), (8, 8), ("all", 32), (32, 32)])
def test_a_number_is_kept(asked: Any, kept: int) -> None:
    made = planned("1xH200", SMALL, 8, model={"keep_activations": asked})
    assert made.keep_activations == kept
    faster = [reason for reason in made.reasons if reason.startswith("model.keep_activations=auto would be faster")]
    assert bool(faster) == (kept < 32)


def test_numbers_that_no_model_has() -> None:
    for wrong in (-1, 1.5, True, "most", "8", None, [8]):
        with pytest.raises(ConfigError, match=r"model\.keep_activations.*must be auto, all or a number"):
            planned("1xH200", SMALL, 8, model={"keep_activations": wrong})
    with pytest.raises(ConfigError, match=r"keep_activations=33: the model has 32 decoder blocks\..*activations=32 or"):
        planned("1xH200", SMALL, 8, model={"keep_activations": 33})


def test_without_checkpointing_the_number_means_nothing() -> None:
    made = planned("1xH200", SMALL, 8, model={"keep_activations": 8, "gradient_checkpointing": "false"})
    assert made.keep_activations is None
    assert made.resolved()["model"]["keep_activations"] == 8
    assert any("keep_activations=8 has no effect" in reason for reason in made.reasons)


def test_a_cpu_keeps_none_unless_asked(description: dict[str, Any]) -> None:
    assert make(description, CPU).keep_activations == 0
    assert make(description, CPU, model={"keep_activations": 2}).keep_activations == 2


def test_a_model_of_unknown_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ddp = {"strategy": "ddp"}
    made = planned("8xH100-80GB", "nobody/nothing", distributed=ddp)
    assert made.keep_activations is None
    assert any("as is Unsloth's default: the model's blocks are unknown" in reason for reason in made.reasons)
    assert planned("2xH100", "nobody/nothing", distributed=ddp, model={"keep_activations": 4}).keep_activations == 4
    with pytest.raises(ConfigError, match=r"decoder blocks the model has is unknown\. Fix: model\.keep_act.*=auto"):
        planned("2xH100", "nobody/nothing", distributed=ddp, model={"keep_activations": "all"})


@pytest.mark.parametrize(
    ("value", "gpus", "kept", "told"),
    [
        ("24", 2, 24, "=24: set in the environment, it comes before model.keep_activations."),
        ("max", 2, 32, "=max: set in the environment"),
        ("99", 1, 32, "before model.keep_activations; the model has 32 blocks."),
        ("auto", 2, 0, "=auto: Unsloth heeds it in one process only, so no block"),
        ("auto", 1, None, "=auto: Unsloth chooses after the first step"),
        ("0", 1, 32, "=0: Unsloth takes it as not set; model.keep_activations=auto decides."),
        ("-3", 1, 32, "=-3: Unsloth takes it as not set"),
        ("²", 1, 32, "=²: Unsloth takes it as not set"),
        ("some", 1, 32, "=some: Unsloth takes it as not set"),
    ],
)
def test_the_users_variable_wins(
    monkeypatch: pytest.MonkeyPatch, value: str, gpus: int, kept: int | None, told: str
) -> None:
    monkeypatch.setenv(VARIABLE, value)
    made = planned(f"{gpus}xH200", SMALL, 8)
    assert made.keep_activations == kept
    assert any(told in reason for reason in made.reasons)
    assert made.memory is not None
    assert (made.memory.total > 30) == bool(kept)


def test_the_users_variable_may_be_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it asks for more than there is room for, and only where the model fits without it."""
    monkeypatch.setenv(VARIABLE, "max")
    with pytest.raises(ConfigError) as refused:
        planned("1xRTX3060", SMALL, 8, model={"load_in_4bit": True})
    assert refused.value.problems[0].fix.endswith(f", or unset {VARIABLE}")
    with pytest.raises(ConfigError) as refused:
        planned("1xRTX3060", SMALL, 8)
    assert VARIABLE not in refused.value.problems[0].fix


def test_cards_of_unknown_rates_spend_their_memory_as_others_do() -> None:
    """They took all 64 rows at once and recomputed every block."""
    made = planned("A100-80GB MIG 7g.80gb", SMALL)
    assert made.speed is None
    assert made.keep_activations == 32
    assert made.batch.global_size == 64
    assert any("on an RTX 4090, since this card's rates are unknown" in reason for reason in made.reasons)
    assert not any("would be faster" in reason for reason in made.reasons)


def test_the_search_is_exact() -> None:
    """What is chosen is the fastest of all rows and all numbers of blocks that fit, or hardly slower in less memory."""
    for card, strategy in (("2x4090", "fsdp2"), ("2xA100-40GB", "ddp"), ("2xH100", "ddp")):
        hardware = Hardware.parse(card)
        choice = Choice(
            work=WORK,
            hardware=hardware,
            capacity_gib=hardware.devices[0].memory_gib,
            num_processes=2,
            data_parallel=2,
            precision="bf16",
            sizes=(1, 2, 4, 8, 16, 32),
            rows=32,
            keep=(0, 32),
        )
        chosen, paces = choice.option(strategy), []
        for size in choice.sizes:
            for kept in range(33):
                one = replace(choice, sizes=(size,), keep=(kept, kept)).option(strategy)
                assert one.fits == (one.memory.total <= usable_gib(choice.capacity_gib))
                paces += [one.pace] * one.fits
        assert ALIKE * max(paces) <= chosen.pace <= max(paces)
        assert chosen.fits


def test_less_memory_keeps_fewer_blocks_before_it_divides_the_model() -> None:
    kept = [planned(f"2x{card}", SMALL, 8).keep_activations for card in ("H200", "A100-40GB", "4090")]
    assert kept == sorted(kept, reverse=True)  # type: ignore[type-var]
    tight = planned("2x4090", SMALL, 8, distributed={"strategy": "ddp"}, training={"per_device_train_batch_size": 4})
    assert tight.keep_activations is not None
    assert tight.keep_activations < 8


def test_too_many_blocks_are_refused_with_a_way_out() -> None:
    with pytest.raises(ConfigError, match=r"32 blocks kept.*Fix: model\.keep_activations=auto"):
        planned("2xL40S", SMALL, 64, model={"keep_activations": "all"}, training={"per_device_train_batch_size": 8})


def test_what_memory_is_left_for() -> None:
    (idle,) = (reason for reason in planned("1xH200", SMALL, 4).reasons if reason.startswith("idle: "))
    assert "model.max_seq_length=" in idle
    assert "lora.r=256" in idle
    assert "load_in_4bit" not in idle
    (idle,) = (
        reason
        for reason in planned("1xH200", SMALL, 4, model={"load_in_4bit": True}).reasons
        if reason.startswith("idle: ")
    )
    assert "model.load_in_4bit=false" in idle
    length = int(idle.split("model.max_seq_length=")[1].split()[0])
    longer = {"max_seq_length": length, "load_in_4bit": True}
    assert planned("1xH200", SMALL, 4, model=longer).keep_activations == 32
    beyond = planned("1xH200", SMALL, 4, model=longer | {"max_seq_length": 2 * length})
    assert beyond.keep_activations is not None
    assert beyond.keep_activations < 32
    assert not any(reason.startswith("idle") for reason in planned("8xH100-80GB", LARGE).reasons)


def test_the_runner_up_is_told_with_its_memory() -> None:
    (told,) = (reason for reason in planned("2xH200", SMALL).reasons if reason.startswith("the runner-up: "))
    assert "tokens/s against" in told
    assert re.search(r"GiB per GPU with \d+ rows at once and \d+ blocks kept\)", told)


def test_a_runner_up_that_is_faster_says_why_it_is_one() -> None:
    """Rows that are hardly faster and take more memory are not taken."""
    made = planned("2x4090", SMALL, 16, model={"load_in_4bit": True, "keep_activations": 0})
    (told,) = (reason for reason in made.reasons if reason.startswith("the runner-up"))
    found, own = (float(pace.replace(",", "")) for pace in re.findall(r"([\d,]+) tokens/s", told))
    assert own < found < own / ALIKE
    assert told.startswith("the runner-up, hardly faster: ddp")


def test_an_evaluation_larger_than_a_step_counts(description: dict[str, Any]) -> None:
    base = estimate(WORK, "single", 1)
    assert "evaluation_excess" not in base.terms
    large = estimate(replace(WORK, eval_rows=64), "single", 1)
    assert large.terms["evaluation_excess"] > 5
    kept = replace(WORK, eval_rows=64, keep_activations=32)
    assert "evaluation_excess" not in estimate(kept, "single", 1).terms
    on_cpu = replace(WORK, on_cpu=True, eval_rows=64)
    pairs, rows = (estimate(replace(on_cpu, sequences_per_row=n), "single", 1).terms for n in (2, 1))
    assert pairs["evaluation_excess"] > 1.9 * rows["evaluation_excess"]
    twice = replace(WORK, eval_rows=None)
    assert estimate(twice, "single", 1).terms == estimate(replace(WORK, eval_rows=8), "single", 1).terms


def test_a_small_card_keeps_a_gib() -> None:
    assert usable_gib(8.0) == 7.0
    assert usable_gib(80.0) == 76.0
