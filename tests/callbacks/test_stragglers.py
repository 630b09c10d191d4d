from __future__ import annotations

import math
from typing import Any

import pytest


def pace(
    data: float = 0.0, compute: float = 1.0, wait: float = 0.0, clock: float = 1900, reasons: int = 0, **more: float
) -> Any:
    from unsloth_accel.callbacks.stragglers import Pace

    return Pace(data=data, compute=compute, wait=wait, clock_mhz=clock, reasons=reasons, **more)


@pytest.mark.parametrize(
    ("slow", "cause"),
    [
        (pace(data=0.5, compute=1.1), "data"),
        (pace(compute=1.5, clock=1200, reasons=0x20), "gpu clock"),
        (pace(compute=1.5), "unknown"),
        (pace(compute=1.5, clock=0), "unknown"),
        (pace(callbacks=0.5), "callbacks"),
        (pace(compute=1.5, update=0.4), "optimizer"),
        (pace(compute=1.5, update=0.4, clock=1200, reasons=0x20), "gpu clock"),
        (pace(compute=1.09), None),
    ],
)
def test_causes_of_a_slow_rank(slow: Any, cause: str | None) -> None:
    from unsloth_accel.callbacks.stragglers import find_straggler

    found = find_straggler([pace(), pace(compute=0.99), slow, pace(compute=1.01)])
    assert (found and (found.rank, found.cause)) == (cause and (2, cause))
    if cause == "gpu clock":
        assert found is not None
        assert "1200 MHz" in found.detail
        assert "temperature" in found.detail


def test_milliseconds_and_single_ranks_are_no_stragglers() -> None:
    from unsloth_accel.callbacks.stragglers import find_straggler

    assert find_straggler([pace(compute=0.001), pace(compute=0.002)]) is None
    assert find_straggler([pace(compute=9)]) is None


@pytest.mark.parametrize(("slower_in", "straggler"), [(10, True), (9, True), (8, False), (5, False)])
def test_rows_of_other_lengths_make_no_straggler(slower_in: int, straggler: bool) -> None:
    """Eight of ten steps by chance is nothing; a clock that is held back shows in all of them."""
    from dataclasses import replace

    from unsloth_accel.callbacks.stragglers import find_straggler

    own = (1.5,) * slower_in + (0.5,) * (10 - slower_in)
    found = find_straggler(
        [replace(pace(), steps=(1.0,) * 10 + (math.nan,)), replace(pace(compute=1.5), steps=(*own, 1.0))]
    )
    assert (found is not None) == straggler


def test_the_network_is_what_the_slowest_rank_waits() -> None:
    from unsloth_accel.callbacks.stragglers import network_share

    assert network_share([pace(wait=1.0), pace(wait=3.0)]) == 0.5
    assert network_share([pace(wait=-1), pace(wait=3.0)]) is None
