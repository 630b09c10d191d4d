"""Checks that a run's reward functions can be used: what they are made of, and the columns that they read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from importlib.util import find_spec

from ..config.rewards_config import FUNCTIONS, RewardFunction
from ..config.run_config import RunConfig
from ..data.prompts import COMPLETION, NESTED, SOLUTION
from ..data.rows import Rows
from ..errors import Problem, counted, first_line, nearest
from ..methods import METHODS
from ..rewards.known import REWARDS
from ..rewards.look import look
from ..rewards.own_function import is_own


def named_problems(asked: RewardFunction, key: str) -> Iterator[Problem]:
    """Yield what is wrong with a reward that is asked for by name; nothing of one's own functions, which have to be
    imported (`reward_problems`)."""
    if is_own(asked.name):
        return
    problem = partial(Problem, key=key, value=asked.name)
    reward = REWARDS.get(asked.name)
    if reward is None:
        fix = f"{nearest(asked.name, REWARDS.names)} A function of your own is file.py:{asked.name}"
        yield problem(consequence="there is no reward of this name.", fix=fix)
        return
    if not reward.is_installed:
        consequence = f"the installed {reward.place.partition('/')[0]} has no {asked.name}: every process fails."
        fix = "pip install --upgrade trl, or another reward"
        yield problem(consequence=consequence, fix=fix)
        return
    if reward.package and find_spec(reward.package.replace("-", "_")) is None:
        consequence = f"needs the package {reward.package}, which is not installed: every process fails."
        yield problem(consequence=consequence, fix=f"pip install {reward.package}, or another reward")
    for name in asked.arguments:
        if name not in reward.arguments:
            fix = nearest(str(name), reward.arguments) if reward.arguments else "remove it"
            consequence = f"{asked.name} takes no {name}; every process fails."
            yield Problem(key=f"{key}.arguments.{name}", consequence=consequence, fix=fix)
    for name in [one for one, needed in reward.arguments.items() if needed and one not in asked.arguments]:
        consequence = f"needs {name}; every process fails."
        yield problem(consequence=consequence, fix=f"{{name: {asked.name}, arguments: {{{name}: …}}}}")
    if reward.place.startswith("unsloth_accel/") and reward.arguments.keys() >= asked.arguments.keys():
        try:
            reward.made(asked.arguments)
        except (TypeError, ValueError) as error:
            consequence = f"{asked.name} refuses it: {first_line(error)}."
            arguments = dict(asked.arguments)
            yield Problem(key=f"{key}.arguments", value=arguments, consequence=consequence, fix="correct it")


def reward_problems(run: RunConfig, rows: Mapping[str, Rows]) -> list[Problem]:
    """Return what is wrong with the run's own functions, which are imported for it in a process of their own, and with
    rows that lack a column that a reward reads; `rows` are by config key."""
    if not METHODS[run.method].generates:
        return []
    problems: list[Problem] = []
    for place, asked in enumerate(run.rewards.functions):
        key, reward = f"{FUNCTIONS}.{place}", REWARDS.get(asked.name)
        columns = reward.columns if reward else ()
        if is_own(asked.name):
            seen = look(asked)
            columns = seen.columns
            problems += [replace(seen.problem, key=key)] if seen.problem else []
        problems += _column_problems(key, asked.name, columns, rows)
    return problems


def _column_problems(key: str, name: str, columns: tuple[str, ...], rows: Mapping[str, Rows]) -> Iterator[Problem]:
    for place, found in rows.items():
        lacking: dict[str, list[int]] = {column: [] for column in columns}
        there: dict[str, None] = {}
        for index, row in enumerate(found):
            here = row.get(NESTED, {})
            there |= dict.fromkeys(here)
            for column, indices in lacking.items():
                if here.get(column) is None:
                    indices.append(index)
        for column, indices in lacking.items():
            if not indices:
                continue
            every = len(indices) == len(found)
            where = "no row has" if every else f"{counted(len(indices), 'row')} of {len(found):,} have not"
            at = "" if every else f" ({found.places(indices)})"
            known = ", ".join(there) or "none"
            consequence = f"{name} reads the column {column}, which {where}{at}; columns of {place}: {known}."
            fix = f"give the rows a column {column}, or name yours: data.columns.{column}"
            if column == COMPLETION:
                fix = f"read {SOLUTION}: TRL gives rewards no column {COMPLETION}, so it has that name here"
            yield Problem(key=key, value=name, consequence=consequence, fix=fix)
