"""What a reward function does wrong is counted and told, and ends nothing but what it is asked to end."""

import asyncio
import functools
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from unsloth_accel.config.rewards_config import RewardFunction, RewardsConfig
from unsloth_accel.rewards.faults import RewardError
from unsloth_accel.rewards.functions import GuardedReward, reward_faults, reward_functions
from unsloth_accel.rewards.time_limit import TooSlow, at_most

Guarded = Callable[..., GuardedReward]
TEXTS = ["one", "two", "three"]


def called(guarded: GuardedReward, completions: Sequence[Any] = TEXTS, **columns: Any) -> list[float | None]:
    ids = [[1]] * len(completions)
    return guarded(["p"] * len(completions), list(completions), ids, trainer_state=None, **columns)


def guard(function: Callable[..., Any], *, stops: bool = False, timeout: float = 60.0) -> GuardedReward:
    return GuardedReward(function, "mine", timeout=timeout, stops=stops, given={"tokenizer": "the tokenizer"})


def kinds(guarded: GuardedReward) -> dict[str, int]:
    faults = reward_faults([guarded])["mine"]["faults"]
    return {kind: one["calls"] for kind, one in faults.items()}


def test_a_reward_that_is_there_twice_is_counted_twice(tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(f"def score(completions):\n    return [{ord(folder)}]\n")
    asked = [RewardFunction("code_format", arguments={"language": language}) for language in ("python", "rust")]
    asked += [RewardFunction(f"{tmp_path / folder}/mine.py:score") for folder in "ab"]
    functions, _ = reward_functions(RewardsConfig(functions=tuple(asked)))
    assert [called(one, ["x"]) for one in functions[2:]] == [[97], [98]]
    names = ["code_format", "code_format-2", "mine:score", "mine:score-2"]
    assert [one.__name__ for one in functions] == names
    assert list(reward_faults(functions)) == names


def test_what_is_right_passes() -> None:
    import torch

    assert called(guard(lambda completions, **columns: [1, None, 0.5])) == [1.0, None, 0.5]
    assert called(guard(lambda completions, **columns: torch.tensor([1.0, 2.0, 3.0]))) == [1, 2, 3]
    assert called(guard(lambda completions, **columns: (len(text) for text in completions))) == [3, 3, 5]


def test_a_function_gets_what_it_names() -> None:
    assert called(guard(lambda completions, answer: [float(one == "two") for one in answer]), answer=TEXTS) == [0, 1, 0]
    seen: list[Any] = []
    called(guard(lambda tokenizer, completion_ids: [seen.append(tokenizer), None, None]))  # type: ignore[func-returns-value]
    assert seen == ["the tokenizer"]
    called(guard(lambda prompts, **columns: [seen.append(sorted(columns)), None, None]))  # type: ignore[func-returns-value]
    assert seen[1] == ["completion_ids", "completions", "tokenizer", "trainer_state"]


def test_an_argument_of_the_run_stays_where_a_column_has_its_name() -> None:
    made = functools.partial(lambda completions, most, **columns: [most] * 3, most=2.0)
    assert called(guard(made), most=[7.0] * 3) == [2, 2, 2]
    assert called(guard(functools.partial(lambda completions, most: [most] * 3, most=2.0)), most=[7.0] * 3) == [2, 2, 2]


def late(completions: Any, **columns: Any) -> Iterator[float]:
    yield 1.0
    raise ValueError("no such\nthing")


def broken(completions: Any, **columns: Any) -> list[float]:
    raise ValueError("no such\nthing")


@pytest.mark.parametrize(
    ("function", "kind", "told", "rewards"),
    [
        (broken, "raised", "raised ValueError: no such (", [None] * 3),
        (late, "raised", "raised ValueError: no such (", [None] * 3),
        (lambda completions, answer: [1.0] * 3, "raised", "missing 1 required positional argument", [None] * 3),
        (lambda completions: [1.0, float("nan"), 2.0], "no number", "returned nan for 'two'", [1.0, None, 2.0]),
        (lambda completions: [1.0, 2.0, float("-inf")], "no number", "returned -inf for 'three'", [1.0, 2.0, None]),
        (lambda completions: ["1", 2, [3]], "no number", "returned '1' for 'one'", [None, 2.0, None]),
        (lambda completions: [1.0], "wrong number of values", "returned 1 value for 3 completions", [None] * 3),
        (lambda completions: None, "wrong number of values", "returned None in place of a list", [None] * 3),
    ],
)
def test_a_fault_is_counted_and_told_once_per_kind(
    function: Any, kind: str, told: str, rewards: list[float | None]
) -> None:
    guarded, said = guard(function), list[str]()
    guarded.warn = said.append
    assert called(guarded) == called(guarded) == rewards
    (only,) = said
    assert only.startswith("reward mine ")
    assert told in only
    assert kinds(guarded) == {kind: 2}
    figures = reward_faults([guarded])["mine"]
    assert (figures["calls"], figures["completions"]) == (2, 6)
    assert figures["without_reward"] == 2 * rewards.count(None)


def test_a_fault_stops_the_run_where_it_is_to() -> None:
    guarded = guard(broken, stops=True)
    with pytest.raises(
        RewardError, match=r"test_guard.py:\d+.*the first 'one'. Fix: correct it, or rewards.on_error=skip"
    ):
        called(guarded)
    assert guarded.tally.faults == {"raised": 1}


ENDED: list[str] = []
"""What was not interrupted but came to its own end."""


def asleep(completions: Any) -> None:
    time.sleep(30)
    ENDED.append("asleep")


def busy(completions: Any) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        pass
    ENDED.append("busy")


def deaf(completions: Any) -> None:
    for _ in range(3):
        try:
            time.sleep(30)
            ENDED.append("deaf")
        except BaseException:
            continue


async def awaiting(completions: Any) -> None:
    await asyncio.sleep(30)
    ENDED.append("awaiting")


def leaving(completions: Any) -> None:
    raise SystemExit(3)


def test_a_function_that_ends_the_process_does_not() -> None:
    guarded = guard(leaving)
    called(guarded)
    assert kinds(guarded) == {"raised": 1}


@pytest.mark.parametrize("function", [asleep, busy, awaiting])
def test_what_takes_too_long_is_interrupted(function: Any) -> None:
    before = signal.getsignal(signal.SIGALRM)
    guarded = guard(function, timeout=0.2)
    assert called(guarded) == [None] * 3
    assert ENDED == []
    assert kinds(guarded) == {"too slow": 1}
    assert signal.getsignal(signal.SIGALRM) is before


def test_a_function_that_catches_everything_is_interrupted_again() -> None:
    called(guard(deaf, timeout=0.2))
    assert ENDED == []


def test_the_limit_holds_around_one_of_math_verifys_kind() -> None:
    """Its handler takes the place of ours while it lasts, and it clears the alarm."""
    from math_verify.errors import TimeoutException
    from math_verify.utils import timeout

    ended: list[int] = []

    def work() -> None:
        for _ in range(5):
            try:
                timeout(60)(time.sleep)(30)
                ended.append(1)
            except TimeoutException:  # as math-verify does
                continue

    with pytest.raises(TooSlow):
        at_most(0.5, work)
    assert ended == []


def test_what_ends_in_time_is_not_interrupted_later() -> None:
    before = signal.getsignal(signal.SIGALRM)
    for _ in range(50):
        with suppress(TooSlow):
            at_most(0.002, lambda: time.sleep(0.001))
    time.sleep(0.05)
    assert signal.getsignal(signal.SIGALRM) == before


def test_in_another_thread_there_is_no_limit() -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(called(guard(lambda completions: [1, 2, 3], timeout=0.01))))
    thread.start()
    thread.join()
    assert found == [[1, 2, 3]]


def test_an_async_function_is_awaited_in_a_loop_that_stays() -> None:
    loops = []

    async def mine(completions: Any) -> list[float]:
        loops.append(asyncio.get_running_loop())
        return list(await asyncio.gather(*(one(text) for text in completions)))

    async def one(text: str) -> float:
        await asyncio.sleep(0)
        return float(len(text))

    guarded = guard(mine)
    assert called(guarded) == called(guarded) == [3, 3, 5]
    assert loops[0] is loops[1]


def test_a_run_that_stops_for_a_slow_function_names_the_timeout() -> None:
    def slow(completions: list[str]) -> list[float]:
        time.sleep(30)
        return []

    with pytest.raises(RewardError, match=r"took more than 0.2 s.* Fix: give it more seconds by rewards.timeout=…, or"):
        called(guard(slow, stops=True, timeout=0.2))


def test_a_timeout_of_its_own_is_an_error_of_its_own() -> None:
    async def mine(completions: Any) -> None:
        raise TimeoutError("the judge is away")

    guarded = guard(mine)
    called(guarded)
    assert kinds(guarded) == {"raised": 1}
