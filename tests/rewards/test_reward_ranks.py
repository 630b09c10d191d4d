"""Over two processes: a prompt's completions are compared wherever they lie, and a fault of one is known to both."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import CPU_DDP, SCRIPTS, accelerate_launch

from unsloth_accel.rewards.known import REWARDS


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    place = tmp_path_factory.mktemp("ranks")
    done = accelerate_launch("--config_file", CPU_DDP, SCRIPTS / "reward_ranks.py", place, forked=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(Path(place, f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("layout", ["in order", "mixed"])
def test_length_is_over_a_prompts_completions_on_every_layout(ranks: list[dict[str, Any]], layout: str) -> None:
    lengths = [9 + 10 * place**2 + place % 4 for place in range(12)]
    function: Any = REWARDS["length"].made({})
    groups = [function.over_group([(lengths[p], p != 5) for p in range(a, a + 4)]) for a in (0, 4, 8)]
    expected = {str(place): reward for place, reward in enumerate(one for group in groups for one in group)}
    assert len({*expected.values()}) > 6
    assert ranks[0][layout] | ranks[1][layout] == pytest.approx(expected)


def test_a_fault_of_one_rank_is_counted_on_both(ranks: list[dict[str, Any]]) -> None:
    assert [one["stops=False"] for one in ranks] == [[1.0], [None]]
    assert ranks[0]["faults, stops=False"] == ranks[1]["faults, stops=False"]
    figures = ranks[0]["faults, stops=False"]["failing"]
    assert (figures["calls"], figures["completions"], figures["without_reward"]) == (1, 2, 1)
    assert figures["faults"]["raised"]["calls"] == 1
    assert "on rank 1" in ranks[0]["told"][0]


def test_a_fault_of_one_rank_stops_both(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["stops=True"] == ranks[1]["stops=True"]
    assert "raised ValueError: on one rank" in ranks[0]["stops=True"]


def test_a_group_is_compared_without_those_that_failed(ranks: list[dict[str, Any]]) -> None:
    assert [one["length of the others"] for one in ranks] == [[0.5, -0.5], [None, None]]
