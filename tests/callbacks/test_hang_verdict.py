"""Who hangs: heartbeats in, a verdict out."""

from __future__ import annotations

from typing import Any

import pytest

from unsloth_accel.callbacks.hang_verdict import Seen, limit_of, verdict
from unsloth_accel.callbacks.heartbeat import Beat

STEP = {"phase": "training", "step": 7, "steps": 7, "events": 20, "place": "the forward and backward passes"}
STUCK = {**STEP, "strict": True, "idle": 61.0, "still": 61.0, "working": False, "transferring": False}
WAITS = {**STUCK, "waits": True, "place": "a callback, where it waits in all_reduce, called from here (file.py:1)"}
LOADS = {"phase": "loading", "place": "code outside of a step", "idle": 61.0, "still": 61.0}
DATA = {**STUCK, "strict": False, "place": "the data loader", "working": False}


def seen(rank: int, silent: float = 0.0, process: Any = "", ended: float = 0.0, **said: Any) -> Seen:
    beat = Beat(rank=rank, host="here", pid=rank + 1, started=1.0, **said)
    return Seen(beat=beat, silent=silent, process=process, ended=ended)


def other(said: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**said, **more}


@pytest.mark.parametrize(
    ("first", "second", "action", "ranks", "told"),
    [
        # A heart that stands still.
        (WAITS, other(STEP, silent=62.0, process="stopped"), "end", (1,),
         "rank 1 hangs: stopped (SIGSTOP) for 62 s, after step 7, last seen in the forward and backward passes; rank 0 "
         "is in a callback, where it waits in all_reduce, called from here (file.py:1)"),
        (WAITS, other(LOADS, silent=62.0, process="stopped"), "end", (1,), "SIGSTOP) for 62 s, in phase loading"),
        (WAITS, other(STEP, silent=46.0, process="stopped"), "word", (1,), "rank 1 may hang: stopped (SIGSTOP) for 46"),
        (WAITS, other(STEP, silent=44.0, process="stopped"), "nothing", (), ""),
        (WAITS, other(STUCK, silent=62.0, process="quiet"), "end", (1,), "its process does nothing, for 62 s"),
        (WAITS, other(STUCK, silent=900.0, process="busy"), "word", (1,), "though its process computes, for 900 s"),
        (WAITS, other(LOADS, silent=900.0, process="busy"), "nothing", (), ""),
        (WAITS, other(LOADS, silent=62.0, process="quiet"), "word", (1,), "rank 1 may hang: no heartbeat"),
        (WAITS, other(LOADS, silent=601.0, process="quiet"), "end", (1,), "its process does nothing, for 601 s"),
        (WAITS, other(STUCK, silent=900.0, process="traced"), "word", (1,), "held by a debugger for 900 s"),
        (WAITS, other(STUCK, silent=62.0, process="elsewhere"), "word", (1,), "no heartbeat for 62 s"),
        (WAITS, other(STUCK, silent=601.0, process="elsewhere"), "end", (1,), "no heartbeat for 601 s"),
        # A process that has ended: torchrun tells it, unless it takes it for finished.
        (WAITS, other(STUCK, silent=90.0, process="gone", ended=19.0), "nothing", (), ""),
        (other(WAITS, idle=30.0), other(STEP, silent=30.0, process="gone", ended=21.0), "end", (1,),
         "rank 1 left after step 7, before the end and without an error; rank 0 is in a callback, where it waits in "),
        (other(WAITS, idle=30.0), other(STEP, phase="", silent=90.0, process="gone", ended=90.0), "nothing", (), ""),
        # A heart that beats.
        (WAITS, STUCK, "end", (1,), "hangs: no progress for 61 s, after step 7, in the forward and backward passes"),
        (WAITS, other(STUCK, still=3.0), "word", (1,), "rank 1 may hang: no progress for 61 s"),
        (WAITS, other(STUCK, idle=3.0, still=3.0), "nothing", (), ""),
        (STUCK, other(STUCK, events=19), "end", (1,), "rank 1 hangs"),
        (other(STUCK, collectives=9), other(STUCK, collectives=8), "end", (1,), "rank 1 hangs"),
        (other(STUCK, collectives=9), other(STUCK, collectives=None), "end", (0, 1), "ranks 0 and 1 hang"),
        (WAITS, other(STUCK, paused=True), "nothing", (), ""),
        # What may take long.
        (WAITS, DATA, "word", (1,), "rank 1 may hang: no progress for 61 s, after step 7, in the data loader"),
        (WAITS, other(DATA, working=True), "nothing", (), ""),
        (WAITS, other(DATA, idle=601.0), "end", (1,), "rank 1 hangs: no progress for 601 s"),
        (WAITS, other(DATA, idle=6000.0, working=True), "nothing", (), ""),
        (WAITS, other(DATA, idle=6000.0, transferring=True), "word", (1,), "rank 1 may hang: no progress for 6000 s"),
        (other(LOADS, waits=True), other(LOADS, working=True), "nothing", (), ""),
        (other(LOADS, waits=True), other(LOADS, working=False), "word", (1,), "61 s, in phase loading"),
        # All wait.
        (WAITS, other(WAITS, place="a save, where it waits in barrier"), "end", (0, 1),
         "ranks 0 and 1 hang: no progress for 61 s: they wait for each other (a deadlock), after step 7; rank 0 is in "
         "a callback, where it waits in all_reduce, called from here (file.py:1), rank 1 is in a save, where it waits"),
        (WAITS, other(WAITS, still=3.0), "nothing", (), ""),
        (WAITS, WAITS, "end", (0, 1), "the same collective doesn't end"),
        (other(WAITS, strict=False), other(WAITS, strict=False), "word", (0, 1), "the same collective doesn't end"),
        (other(WAITS, idle=9000.0, paused=True), other(WAITS, idle=9000.0), "word", (0, 1), "9000 s"),
        (other(WAITS, strict=False, idle=601.0), other(WAITS, strict=False, idle=601.0), "end", (0, 1), "601 s"),
    ],
)  # fmt: skip
def test_two_ranks(first: Any, second: Any, action: str, ranks: tuple[int, ...], told: str) -> None:
    found = verdict([seen(0, **first), seen(1, **second)], 2)
    assert (found.action, found.ranks) == (action, ranks), found.message
    assert told in found.message


def test_a_rank_that_was_never_seen_is_asked_for_and_ends_nothing() -> None:
    found = verdict([seen(0, **other(WAITS, idle=9000.0)), seen(2, **WAITS)], 4)
    assert (found.action, found.ranks) == ("word", (1, 3))
    assert found.message.startswith("no heartbeat of ranks 1 and 3 is to be seen, and others have made no ")
    found = verdict([seen(0, **other(STUCK, idle=9000.0, still=9000.0))], 2)
    assert (found.action, found.ranks) == ("word", (1,))
    assert verdict([seen(0, **other(DATA, working=True))], 2).action == "nothing"


def test_many_ranks_are_not_all_told() -> None:
    found = verdict([*(seen(rank, **WAITS) for rank in range(8)), seen(8, **STUCK)], 9)
    assert found.ranks == (8,)
    assert found.message.count("all_reduce") == 3
    assert found.message.endswith("and 5 more ranks somewhere")
    unseen = verdict([seen(0, **WAITS)], 9).message
    assert unseen.startswith("no heartbeat of ranks 1, 2, 3 and 5 more is to be seen")


def test_one_process() -> None:
    assert verdict([seen(0, **STUCK)], 1).action == "end"
    assert verdict([seen(0, **other(STUCK, idle=3.0))], 1).action == "nothing"
    assert verdict([], 1).action == "nothing"


@pytest.mark.parametrize(("slowest", "asked", "limit"), [(1.0, None, 60.0), (40.0, None, 120.0), (40.0, 7.0, 7.0)])
def test_the_limit(slowest: float, asked: float | None, limit: float) -> None:
    ranks = [seen(0, slowest=1.0), seen(1, slowest=slowest)]
    assert limit_of(ranks, asked) == limit
    late = [seen(one.beat.rank, **other(STUCK, slowest=slowest, idle=limit + 1, still=limit + 1)) for one in ranks]
    assert verdict(late, 2, asked).action == "end"
    soon = [seen(one.beat.rank, **other(STUCK, slowest=slowest, idle=limit - 1, still=limit - 1)) for one in ranks]
    assert verdict(soon, 2, asked).action == "word"
    soon = [seen(one.beat.rank, **other(STUCK, slowest=slowest, idle=0.7 * limit, still=limit)) for one in ranks]
    assert verdict(soon, 2, asked).action == "nothing"
