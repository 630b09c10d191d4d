"""Two processes that score through gloo: a prompt's completions on one rank or on both, and faults on one of them."""

import json
import sys
from pathlib import Path
from typing import Any

from accelerate import PartialState

from unsloth_accel.config.rewards_config import RewardFunction, RewardsConfig
from unsloth_accel.rewards import reward_functions
from unsloth_accel.rewards.faults import RewardError
from unsloth_accel.rewards.functions import GuardedReward, reward_faults

state = PartialState(cpu=True)
rank = state.process_index
found: dict[str, Any] = {}

# Three prompts of four completions each; the lengths differ between prompts, so that mixing them shows.
PROMPTS = [name for name in "abc" for _ in range(4)]
COMPLETIONS = [r"\boxed{3}" + "." * (10 * place**2 + place % 4) for place in range(12)]
COMPLETIONS[5] = COMPLETIONS[5].replace("3", "4")
LAYOUTS = {"in order": list(range(12)), "mixed": [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]}
(length,), _ = reward_functions(RewardsConfig((RewardFunction("length"),)))
for layout, places in LAYOUTS.items():
    own = places[rank * 6 : rank * 6 + 6]
    texts = [COMPLETIONS[place] for place in own]
    rewards = length([PROMPTS[place] for place in own], texts, [[0]] * 6, solution=["$3$"] * 6)
    found[layout] = dict(zip(own, rewards, strict=True))


def failing(completions: list[str]) -> list[float]:
    if rank == 1:
        raise ValueError("on one rank")
    return [1.0] * len(completions)


told: list[str] = []
for stops in (False, True):
    one = GuardedReward(failing, "failing", timeout=5, stops=stops)
    one.warn = told.append
    try:
        found[f"stops={stops}"] = one(["p"], ["text"], [[0]])
    except RewardError as error:
        found[f"stops={stops}"] = str(error)
    found[f"faults, stops={stops}"] = reward_faults([one])
found["told"] = told


def failing_length(completions: list[str], solution: list[str]) -> Any:
    if rank == 1:
        raise ValueError("on one rank")
    return [(len(text), True) for text in completions]


failing_length.over_group = length._function.over_group  # type: ignore[attr-defined]
one = GuardedReward(failing_length, "length", timeout=5, stops=False)
found["length of the others"] = one(["a", "a"], ["x" * (1 + rank), "xxx"], [[0]] * 2, solution=["3"] * 2)
Path(sys.argv[1], f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
state.destroy_process_group()
