"""The verdict of verify: what it measures, and that it sees runs that are broken."""

import json
import math
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, SCRIPTS
from verified_runs import CPU, TWO, made

from unsloth_accel.config.read_run import from_dict
from unsloth_accel.errors import ConfigError
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.methods import METHODS
from unsloth_accel.planning.planner import plan
from unsloth_accel.verify.runs import Trained
from unsloth_accel.verify.verdict import TOLERANCES, compare, largest, precision_of, share, tolerance

FAULTS = SCRIPTS / "faults"
BITS = ("16bit", "4bit")


def test_tolerances_can_be_given() -> None:
    assert tolerance("fp32", ["loss=0.5", "adapter=1"]).loss == 0.5
    assert tolerance("fp32").grad_norm == TOLERANCES["fp32"].grad_norm
    for bad in ("los=1", "loss", "loss=x", "loss=-1", "loss=nan", "reason=1"):
        with pytest.raises(ConfigError, match="not a tolerance"):
            tolerance("bf16", [bad])
    assert all(allowed.reason for allowed in TOLERANCES.values())
    kto, dpo = (tolerance("fp32", depends_on_ranks=METHODS[name].depends_on_ranks) for name in ("kto", "dpo"))
    assert dpo == TOLERANCES["fp32"]
    assert kto.grad_norm > 100 * dpo.grad_norm
    assert "KTO estimates its KL term" in kto.reason
    for precision in ("bf16", "fp16", "4-bit"):  # GPUs don't hide what a CPU's threads might
        assert tolerance(precision, device="cuda").loss < tolerance(precision).loss / 10
        # Sums over answers are as coarse there, and where the adapter ends is judged as ever.
        of_pairs = tolerance(precision, device="cuda", sums_answers=METHODS["dpo"].sums_answers)
        assert of_pairs.loss > 10 * tolerance(precision, device="cuda").loss
        assert (of_pairs.moved, of_pairs.adapter) == (2e-3, 0.1)
    assert tolerance("fp32", device="cuda", sums_answers=True) == TOLERANCES["fp32"]
    assert not METHODS["sft"].sums_answers


@pytest.mark.parametrize("figure", ["loss", "grad_norm"])
def test_what_two_gpus_were_seen_to_differ_by_is_tolerated_and_told(figure: str) -> None:
    """Of two runs of one GPU, either may be the one that two are compared with."""
    report = json.loads((ROOT / "benchmarks" / "results" / "preferences-2xH200.json").read_text(encoding="utf-8"))
    runs = report["cells"] | report["yardsticks"]

    def most(method: str, ones: tuple[str, ...], others: tuple[str, ...]) -> float:
        return max(
            largest(runs[f"{method}-1.5B-{bits}-{one}"][figure], runs[f"{method}-1.5B-{bits}-{other}"][figure])
            for bits, one, other in product(BITS, ones, others)
        )

    for method in ("dpo", "kto"):
        depends = METHODS[method].depends_on_ranks
        allowed = tolerance("bf16", [], "cuda", depends, sums_answers=METHODS[method].sums_answers)
        assert most(method, ("single", "again"), ("ddp", "fsdp2")) < getattr(allowed, figure)
        assert "over whole answers" in allowed.reason
        assert share(most("dpo", ("single", "again"), ("ddp", "fsdp2"))) in allowed.reason
        assert share(most("dpo", ("single",), ("again",))) in allowed.reason
        if figure == "loss":
            floor = allowed.loss * METHODS[method].loss_scale
            chance = max(_apart(runs[f"dpo-1.5B-{bits}-{one}"]["loss"] for one in ("single", "again")) for bits in BITS)
            assert chance < floor < 1.1 * chance
            assert f"{chance:.3f}" in allowed.reason


def _apart(losses: Iterable[list[float]]) -> float:
    ours, theirs = losses
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(("method", "same"), [("dpo", True), ("kto", True), ("sft", False)])
def test_a_loss_that_has_fallen_to_nothing_may_differ_by_chance(tmp_path: Path, method: str, same: bool) -> None:
    small, other = (made(tmp_path / str(last), loss=[0.69, 0.2, last]) for last in (0.010, 0.019))
    allowed = tolerance("bf16", [], "cuda", sums_answers=True)
    found = compare(small, other, allowed, loss_scale=METHODS[method].loss_scale)
    assert found.same == same, found.faults
    far = made(tmp_path / "far", loss=[0.69, 0.2, 0.03])
    assert not compare(small, far, allowed, loss_scale=METHODS[method].loss_scale).same


@pytest.mark.parametrize(
    ("model", "training", "hardware", "expected"),
    [
        ({}, {"bf16": False}, CPU, "fp32"),
        ({"dtype": "bfloat16"}, {}, CPU, "bf16"),
        ({}, {}, TWO, "bf16"),
        ({}, {"fp16": True}, TWO, "fp16"),
        ({"load_in_4bit": True}, {}, TWO, "4-bit"),
    ],
)
def test_each_precision_has_its_tolerance(
    model: Any, training: Any, hardware: Hardware, expected: str, description: dict[str, Any]
) -> None:
    description["model"] |= model
    description["training"] = training
    description["distributed"] = {"strategy": "single"}
    assert precision_of(plan(from_dict(description), hardware)) == expected


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"loss": [3.0, 2.001, 1.0]}, "the loss differs by 0.05 % (tolerated: 1e-05)"),
        ({"loss": [3.0, math.nan, 1.0]}, "the loss differs by ∞"),
        ({"loss": [3.0, 2.0]}, "it made 2 steps, one process 3"),
        ({"grad_norm": [2.0] * 3}, "2.00 times that of one process, as if gradients were summed over ranks"),
        ({"grad_norm": [0.5] * 3}, "as if gradients were averaged twice"),
        ({"grad_norm": [1.0, 1.1, 1.0]}, "the gradient norm differs by 10 % (tolerated: 0.01 %)"),
        ({"end": 1.01}, "the adapter moved 1 % further (tolerated: 0.01 %)"),
        ({"end": 0.99}, "the adapter moved 1 % less far"),
        ({"end": -1.0}, "the final adapters differ by 200 % of the distance that one process's moved"),
        ({"tokens": [10, 11, 10]}, "did not see the same rows"),
        ({"ranks": [{"rank": 0, "adapter": "x"}, {"rank": 1, "adapter": "y"}]}, "the ranks ended with different"),
        ({"ranks": [{"rank": 0, "adapter": "x"}]}, "the ranks ended with different"),
    ],
)
def test_every_difference_is_told(one: Trained, tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    found = compare(one, made(tmp_path / "other", **changes), TOLERANCES["fp32"])
    assert not found.same
    assert any(told in fault for fault in found.faults), found.faults


def test_no_difference(one: Trained, tmp_path: Path) -> None:
    found = compare(one, made(tmp_path / "other", grad_norm=[1.0, 1.00005, 1.0]), TOLERANCES["fp32"])
    assert found.same
    assert found.ranks_equal
    assert found.distance == pytest.approx(math.sqrt(11 / (6 * 16)))
    # A strategy whose ranks can't be asked is not called unequal for it.
    asked = made(tmp_path / "fsdp1", ranks=[{"rank": 0}, {"rank": 1}])
    assert compare(one, asked, TOLERANCES["fp32"]).ranks_equal is None


def test_a_run_that_learns_nothing_does_not_pass(tmp_path: Path) -> None:
    still = made(tmp_path / "still", end=0.0)
    found = compare(still, still, TOLERANCES["fp32"])
    assert [fault.split(":")[0] for fault in found.faults] == ["nothing was learnt"]
    hardly = made(tmp_path / "hardly", end=1e-4)
    assert not compare(hardly, hardly, TOLERANCES["fp32"]).same


def test_steps_that_overflow_alike_are_alike(tmp_path: Path) -> None:
    """fp16's loss scaling starts too high; the steps until it fits are left out by every process."""
    one, other = (made(tmp_path / name, grad_norm=[math.inf, math.nan, 1.0]) for name in ("one", "other"))
    assert compare(one, other, TOLERANCES["fp16"]).same
    assert not compare(one, made(tmp_path / "finite"), TOLERANCES["fp16"]).same


def test_shares() -> None:
    assert [share(x) for x in (0.0, 3.4e-7, 1.2e-3, 1.0, math.inf)] == ["0", "3e-07", "0.12 %", "100 %", "∞"]
