from __future__ import annotations

from collections.abc import Sequence

import pytest


def test_one_exchange_for_all_that_is_told_at_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    from unsloth_accel.callbacks import exchange

    asked: list[list[float]] = []

    def share(own: Sequence[float]) -> list[list[float]]:
        asked.append(list(own))
        return [list(own), [-number for number in own]]

    monkeypatch.setattr(exchange, "share", share)
    monkeypatch.setattr(exchange, "_alone", lambda: True)
    common, told = exchange.Exchange(), iter(range(10))
    one, other = common.join(lambda: [next(told), 10]), common.join(lambda: [20])
    assert (one(1), other(1)) == ([[0, 10], [0, -10]], [[20], [-20]])
    assert [numbers for _, *numbers in asked] == [[0, 10, 20]]
    assert other(2) == [[20], [-20]]
    assert one(3)[0] == [2, 10]  # not what was told for step 2, which this one never read
    assert one(3)[0] == [3, 10]  # a second log of the same step is told anew
    assert len(asked) == 4


def test_quick_steps_share_an_exchange_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the pace of the slowest clock, since all ranks must come to the same step."""
    from unsloth_accel.callbacks import exchange

    seconds = 0.0
    monkeypatch.setattr(exchange, "share", lambda own: [[own[0] / 2, *own[1:]], list(own)])
    monkeypatch.setattr(exchange, "_alone", lambda: False)
    monkeypatch.setattr(exchange.time, "perf_counter", lambda: seconds)
    read = exchange.Exchange().join(lambda: [7.0])

    def told(pace: float, steps: range) -> list[int]:
        nonlocal seconds
        found = []
        for step in steps:
            seconds += pace
            if read(step) is not None:
                found.append(step)
        return found

    assert told(0.3, range(1, 16)) == [1, 2, 6, 10, 14]
    assert told(2.0, range(16, 20)) == [18, 19]
    assert told(0.05, range(1, 30)) == [1, 2, 22]  # another training: nothing is known of its pace
