"""Random run files: every problem is told without a traceback, and a fix that is applied leads to no other problem."""

from __future__ import annotations

import copy
from typing import Any

from random_runs import fixed, random_run

from unsloth_accel.config.read_run import from_dict
from unsloth_accel.errors import ConfigError, Problem, errors
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.planning.planner import plan
from unsloth_accel.validation.rules import Context, Document, check_document

CPU = Hardware(cpu_cores=2, host_memory_gib=64, reason="no driver")
FILES = 30
"""With 1,000 nothing else was found (two minutes)."""


def told(values: dict[str, Any]) -> tuple[list[Problem], bool]:
    """The errors of a run as validate, plan and launch find them, and whether its reader took it."""
    found: list[Problem] = []
    document = Document(file="", kind="run", values=values, context=Context(hardware=CPU))
    try:
        run = from_dict(copy.deepcopy(values))
    except ConfigError as error:
        return [*errors(error.problems), *errors(check_document(document))], False
    found += errors(check_document(document))
    try:
        plan(run, CPU)
    except ConfigError as error:
        found += error.problems
    return found, True


def test_each_fix_leads_somewhere(description: dict[str, Any]) -> None:
    tried = 0
    for seed in range(FILES):
        values = random_run(seed, description["model"]["name"])
        problems, taken = told(values)
        keys = {problem.key for problem in problems}
        for problem in problems:
            changed = fixed(values, problem)
            if changed is None:
                continue
            tried += 1
            again, _ = told(changed)
            same = [one for one in again if (one.key, one.consequence) == (problem.key, problem.consequence)]
            # What only the planner finds isn't looked for in a run that its reader refuses.
            other = [one for one in again if one.key not in keys and (taken or one.rule)]
            assert not same, f"{seed}: {problem}"
            assert not other, f"{seed}: {problem}: leads to {other[0]}"
    assert tried > FILES
