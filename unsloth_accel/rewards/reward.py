"""Reward: the record of a reward function, and what all of them share."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..config.installed_source import parameters, source_text

Function = Callable[..., Any]
"""A reward function by TRL's signature: it is called with `prompts`, `completions` and `completion_ids`, a list each
with an entry per completion, and with every other column of the rows; it returns a number, or None where it has nothing
to say, for each completion."""
GIVEN = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments")
"""What a function gets of the trainer; any other name is a column of the rows. The last four are optional in TRL, and
depend on its version (trl/trainer/grpo_trainer.py: `reward_kwargs`)."""


@dataclass(frozen=True, kw_only=True)
class Reward:
    """A reward by name. One of your own: `REWARDS.add(Reward(…))`, in a module that UNSLOTH_ACCEL_PLUGINS names."""

    name: str
    about: str
    """One line for people: what is rewarded, and with how much."""
    place: str
    """`package/file.py:function`, read without importing it: what makes the reward function, or the function."""
    origin: str = ""
    """Project whose formula it is."""
    is_factory: bool = True
    """Whether `place` makes the function of the arguments; otherwise it is the function, and gets them with each
    call."""
    columns: tuple[str, ...] = ()
    """Columns that the rows must have."""
    package: str = ""
    """Package that it needs besides, as pip calls it; its module has `_` for each `-`."""
    messages_only: bool = False
    """Whether it reads completions as chats only, and texts have to be made into such."""

    @property
    def arguments(self) -> Mapping[str, bool]:
        """Names of its arguments, and of each whether it must be given; empty where `place` isn't installed."""
        found = parameters(self.place)
        outside = () if self.is_factory else (*GIVEN, *self.columns, "**")
        return {name: needed for name, needed in found.items() if name not in outside}

    @property
    def is_installed(self) -> bool:
        """Whether `place` is there: an older release may lack the function."""
        file, _, name = self.place.partition(":")
        return f"def {name}(" in source_text(file)

    def made(self, arguments: Mapping[str, Any]) -> Function:
        """Return the reward function with these arguments; raises what its maker does for wrong ones."""
        file, _, name = self.place.partition(":")
        made: Function = getattr(importlib.import_module(file.removesuffix(".py").replace("/", ".")), name)
        if self.is_factory:
            return made(**arguments)  # type: ignore[no-any-return]
        return functools.partial(made, **arguments)


def texts(completions: Sequence[Any]) -> list[str]:
    """Return the text of each completion: itself, or the content of the first message of a chat, as in TRL's rewards
    and open-r1's."""
    return [one if isinstance(one, str) else str(one[0].get("content") or "") if one else "" for one in completions]
