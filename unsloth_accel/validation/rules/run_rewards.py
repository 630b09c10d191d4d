"""Rules about reward functions: each is one that is known and installed, with the arguments that it takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ...config.rewards_config import FUNCTIONS, RewardFunction, read_functions
from ..reward_checks import named_problems
from .document import Document, Finding
from .rule_registry import rule
from .run_settings import knows_method, method_of, values_of


def _functions(config: Document) -> tuple[RewardFunction, ...] | None:
    """Return a run's functions; None where the reader refuses them."""
    section = values_of(config).get("rewards")
    functions, wrong = read_functions(section.get("functions") if isinstance(section, dict) else None)
    return None if wrong else functions


@rule("run-reward", on=("run",))
def run_reward(config: Document) -> Iterator[Finding]:
    """A reward that nobody knows, that needs a package which isn't installed, or that doesn't take its arguments: every
    process fails once the model is loaded.

    Reference: unsloth_accel/rewards/known.py: REWARDS.
    """
    for place, asked in enumerate(_functions(config) or ()):
        for problem in named_problems(asked, f"{FUNCTIONS}.{place}"):
            found = config.problem(problem.key, problem.consequence, problem.fix)
            yield replace(found, value=problem.value)


@rule("run-without-rewards", on=("run",))
def run_without_rewards(config: Document) -> Iterator[Finding]:
    """A method whose completions are scored without a function that scores them: every process fails. Functions of a
    method that scores nothing would be left out in silence.

    Reference: trl/trainer/grpo_trainer.py: "No reward source provided".
    """
    method, functions = method_of(config), _functions(config)
    if functions is None:
        return
    if method.generates and not functions:
        fix = "rewards.functions: [accuracy], or a function of your own, my_rewards.py:score"
        yield config.problem(FUNCTIONS, f"{method.name} needs a function that scores completions.", fix)
    if functions and not method.generates and knows_method(config):
        consequence = f"{method.name} scores no completions: they would have no effect."
        yield config.problem(FUNCTIONS, consequence, "method: grpo, or remove them")
