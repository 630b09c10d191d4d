"""python -m unsloth_accel.rewards.look: import a function of the user's in a process of its own, and say what it is.

What an import does (ask a GPU, set variables, end the process) doesn't reach the command that checks a run, so that the
processes are started from the same place with or without a check.
"""

from __future__ import annotations

import functools
import inspect
import json
import subprocess
import sys
from dataclasses import asdict, dataclass, replace

from ..config.rewards_config import FUNCTIONS, RewardFunction
from ..errors import ConfigError, Problem, shortened
from .own_function import own_function
from .reward import GIVEN

LONGEST = 120
"""Seconds that an import may take."""
_MARK = "unsloth_accel-reward "
"""Begins the line that is the answer: the file may print what it likes."""
_OURS = (*GIVEN, "tokenizer")


@dataclass(frozen=True)
class Seen:
    """What is known of a function without calling it."""

    columns: tuple[str, ...] = ()
    """Columns that it can't be called without."""
    problem: Problem | None = None


def look(asked: RewardFunction) -> Seen:
    """Import and make the function that `asked` means, elsewhere, and return what it needs, or why it can't be used."""
    command = [sys.executable, "-m", "unsloth_accel.rewards.look", json.dumps(asdict(asked), default=str)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        consequence = f"takes more than {LONGEST} s to import."
        fix = "do at the first call what takes long"
        return Seen(problem=Problem(key=FUNCTIONS, value=asked.name, consequence=consequence, fix=fix))
    answer = next((line for line in done.stdout.splitlines() if line.startswith(_MARK)), None)
    if answer is None:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "it says nothing")
        consequence = f"ends the process that imports it, with status {done.returncode}: {shortened(last, 200)}"
        fix = "leave out what ends it"
        return Seen(problem=Problem(key=FUNCTIONS, value=asked.name, consequence=consequence, fix=fix))
    found = json.loads(answer.removeprefix(_MARK))
    problem = Problem(**found["problem"]) if found["problem"] else None
    return Seen(tuple(found["columns"]), problem)


def _seen(asked: RewardFunction) -> Seen:
    try:
        function = own_function(asked)
    except ConfigError as error:
        return Seen(problem=error.problems[0])
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a builtin, or of a function that has no such arguments
        if not isinstance(function, functools.partial):
            return Seen()
        consequence, fix = f"doesn't take its arguments: {', '.join(asked.arguments)}.", "correct their names"
        return Seen(problem=Problem(key=FUNCTIONS, value=asked.name, consequence=consequence, fix=fix))
    known = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
    needed = tuple(one.name for one in known if one.default is one.empty and one.name not in _OURS)
    alone = [one.name for one in known if one.kind in (one.POSITIONAL_ONLY, one.VAR_POSITIONAL)]
    if alone:
        consequence = f"takes {alone[0]!r} by its place alone, and TRL gives everything by name."
        problem = Problem(key=FUNCTIONS, value=asked.name, consequence=consequence, fix="name it in the definition")
        return Seen(problem=problem)
    return Seen(needed)


def main(described: str) -> int:
    """Print what is seen of a function as one line of JSON."""
    seen = _seen(RewardFunction(**json.loads(described)))
    problem = None if seen.problem is None else asdict(replace(seen.problem, value=str(seen.problem.value)))
    print(f"\n{_MARK}{json.dumps({'columns': seen.columns, 'problem': problem})}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
