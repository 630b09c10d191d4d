"""The reward functions of a run, as TRL calls them, each behind a guard that keeps the ranks together."""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

from ..config.rewards_config import FUNCTIONS, RewardsConfig
from ..errors import ConfigError, Problem, first_line
from ..hardware.ranks import of_every_rank
from .faults import Fault, RewardError, Tally, numbers, raised, too_slow
from .known import REWARDS
from .own_function import is_own, labels, own_function
from .reward import Function, texts
from .time_limit import TooSlow, at_most, awaited


def reward_functions(rewards: RewardsConfig, tokenizer: Any = None) -> tuple[list[Callable[..., Any]], list[float]]:
    """Return the functions that `rewards` describes, as TRL's trainers take them (`reward_funcs`), and their weights
    (`reward_weights`). A function of the user's that names `tokenizer` gets it.

    Raises `ConfigError` for a name that is unknown, a file that doesn't import, or arguments that a function refuses.
    """
    names = labels(one.name for one in rewards.functions)
    made: list[Callable[..., Any]] = [
        GuardedReward(
            _function(place, rewards),
            names[place],
            timeout=rewards.timeout,
            stops=rewards.on_error == "stop",
            given={"tokenizer": tokenizer},
            messages_only=not is_own(one.name) and REWARDS[one.name].messages_only,
        )
        for place, one in enumerate(rewards.functions)
    ]
    return made, [one.weight for one in rewards.functions]


def _function(place: int, rewards: RewardsConfig) -> Function:
    asked = rewards.functions[place]
    if is_own(asked.name):
        return own_function(asked)
    try:
        return REWARDS[asked.name].made(asked.arguments)
    except (TypeError, ValueError) as error:
        key, fix = f"{FUNCTIONS}.{place}.arguments", "correct its arguments"
        consequence = f"{asked.name} refuses them: {first_line(error)}."
        raise ConfigError(Problem(key=key, value=asked.arguments, consequence=consequence, fix=fix)) from None


class GuardedReward:
    """Calls a reward function by TRL's signature, and shares with all ranks what went wrong in it.

    A function that raises, takes longer than `timeout` seconds, or returns anything but a number or None for each
    completion gives None, by which TRL leaves it out of a completion's reward. It is counted and told, and where it
    `stops` the run, `RewardError` is raised on every rank in the same call, so that none waits for another. Every rank
    must call it as often, which TRL's trainers do.

    An async function is awaited here, one after the other where there are several: TRL would run them side by side, in
    an order in which the ranks could not speak to each other.
    """

    def __init__(
        self,
        function: Function,
        name: str,
        *,
        timeout: float,
        stops: bool,
        given: dict[str, Any] | None = None,
        messages_only: bool = False,
    ) -> None:
        self.__name__ = name
        """Name in TRL's log: rewards/NAME/mean."""
        self.tally = Tally()
        self.warn: Callable[[str], object] = _tell
        """What rank 0 does with the first fault of each kind, in words."""
        self._function, self._timeout, self._stops = function, timeout, stops
        self._given, self._messages_only = given or {}, messages_only
        self._takes = _names(function)
        # Arguments that the run gives: a column of the same name must not take their place.
        self._fixed = function.keywords.keys() if isinstance(function, functools.partial) else ()
        self._over_group: Callable[[Sequence[Any]], list[float]] | None = getattr(function, "over_group", None)

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """Return the reward of each completion of this rank; None where there is none."""
        values, faults = self._scored(prompts, completions, completion_ids, columns)
        groups = [_digest(prompt) for prompt in prompts] if self._over_group else []
        everyone = of_every_rank((len(completions), faults, list(zip(groups, values, strict=False))))
        new = self.tally.add(self.__name__, [(count, found) for count, found, _ in everyone])
        if self._stops and any(found for _, found, _ in everyone):
            told = next(iter(new), None) or next(iter(self.tally.first.values()))
            slow = any(fault.kind == "too slow" for _, found, _ in everyone for fault in found)
            fix = "give it more seconds by rewards.timeout=…" if slow else "correct it"
            raise RewardError(f"{told}. Fix: {fix}, or rewards.on_error=skip, which trains on without these rewards.")
        for text in new:
            self.warn(f"{text}; the run goes on without these rewards (rewards.on_error=skip)")
        if self._over_group is None:
            return values
        return self._of_groups([pair for _, _, pairs in everyone for pair in pairs], groups, values)

    def _scored(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Any], columns: dict[str, Any]
    ) -> tuple[list[Any], list[Fault]]:
        """Return what the function gives for each completion of this rank; raises `KeyboardInterrupt` alone."""
        said, nothing = texts(completions), [None] * len(completions)
        if self._messages_only:
            completions = [[{"role": "assistant", "content": text}] for text in said]
        every = self._given | columns | {"prompts": prompts, "completions": completions}
        every["completion_ids"] = completion_ids
        named = {
            name: one
            for name, one in every.items()
            if (self._takes is None or name in self._takes) and name not in self._fixed
        }
        started = time.monotonic()
        try:
            values = at_most(self._timeout, functools.partial(self._function, **named))
            if isinstance(values, Coroutine):
                values = awaited(values, self._timeout)
            if isinstance(values, Iterator):  # a generator's code runs only now
                values = at_most(self._timeout, functools.partial(list, values))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever a function of the user's does wrong; math-verify's is no Exception
            late = isinstance(error, TooSlow) or time.monotonic() - started > self._timeout
            return list(nothing), [too_slow(self._timeout, said) if late else raised(error, said)]
        return (list(values), []) if self._over_group else numbers(values, said)

    def _of_groups(
        self, everyone: Sequence[tuple[str, Any]], groups: Sequence[str], own: Sequence[Any]
    ) -> list[float | None]:
        """Return the rewards of this rank's completions, of what all ranks found, by prompt."""
        assert self._over_group is not None
        found: dict[str, list[Any]] = {}
        for group, value in everyone:
            if value is not None:
                found.setdefault(group, []).append(value)
        # Equal findings in a group have equal rewards, so that it doesn't matter which of them is whose.
        rewards = {group: dict(zip(values, self._over_group(values), strict=True)) for group, values in found.items()}
        return [None if value is None else rewards[group][value] for group, value in zip(groups, own, strict=True)]


def reward_faults(functions: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """Return the calls and faults of each guarded function among `functions`, by name; the same on every rank."""
    return {one.__name__: one.tally.as_json() for one in functions if isinstance(one, GuardedReward)}


def _names(function: Function) -> frozenset[str] | None:
    """Return the names that a function takes; None where it takes any."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of a builtin
        return None
    return None if any(one.kind is one.VAR_KEYWORD for one in parameters) else frozenset(one.name for one in parameters)


def _digest(prompt: Any) -> str:
    return hashlib.sha256(repr(prompt).encode("utf-8", "surrogatepass")).hexdigest()


def _tell(message: str) -> None:
    import torch

    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        print(f"unsloth_accel: {message}", file=sys.stderr, flush=True)
