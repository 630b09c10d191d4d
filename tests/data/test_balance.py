"""Rows shared out by tokens: the algorithm."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unsloth_accel.data.balance import by_number, cost, costs_of, divide, share

LENGTHS = st.lists(st.integers(1, 2048), min_size=1, max_size=64)
GROUPS = st.integers(1, 12)


def costs(lengths: list[int], groups: list[list[int]], padded: bool) -> list[int]:
    return [cost([lengths[row] for row in group], padded=padded) for group in groups]


@given(LENGTHS, GROUPS, st.booleans())
def test_every_row_is_in_one_group(lengths: list[int], groups: int, padded: bool) -> None:
    found = divide(lengths, groups, padded=padded)
    assert len(found) == groups
    assert sorted(row for group in found for row in group) == list(range(len(lengths)))
    assert sum(not group for group in found) == max(0, groups - len(lengths))
    assert found == divide(list(lengths), groups, padded=padded)
    assert costs(lengths, found, padded) == sorted(costs(lengths, found, padded), reverse=True)


@given(LENGTHS, GROUPS)
def test_flat_groups_differ_by_no_more_than_the_longest_row(lengths: list[int], groups: int) -> None:
    found = costs(lengths, divide(lengths, groups, padded=False), padded=False)
    assert max(found) - min(found) <= max(lengths)


@given(LENGTHS, GROUPS, st.booleans())
def test_no_group_exceeds_full_rows_in_order(lengths: list[int], groups: int, padded: bool) -> None:
    """What fits in memory for groups of ceil(rows / groups) full rows fits for these."""
    found = costs(lengths, divide(lengths, groups, padded=padded), padded=padded)
    assert max(found) <= max(lengths) * -(-len(lengths) // groups)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=7), st.integers(1, 3), st.booleans())
def test_against_all_divisions(lengths: list[int], groups: int, padded: bool) -> None:
    """Padded is the best of all; flat is within Graham's bound of it."""
    best = min(
        max(cost([n for n, to in zip(lengths, chosen, strict=True) if to == g], padded=padded) for g in range(groups))
        for chosen in product(range(groups), repeat=len(lengths))
    )
    found = max(costs(lengths, divide(lengths, groups, padded=padded), padded))
    # Every group must have a row where there are enough: as good as the best that may leave some empty.
    assert found <= (best if padded else (4 / 3 - 1 / (3 * groups)) * best)


@pytest.mark.parametrize(
    ("padded", "groups"), [(False, [[0], [1, 2, 3, 4, 5]]), (True, [[1, 2, 3, 4, 5], [0]])], ids=["flat", "padded"]
)
def test_a_long_row_is_alone(padded: bool, groups: list[list[int]]) -> None:
    assert divide([2000, 400, 420, 380, 390, 401], 2, padded=padded)[0 if not padded else 1] == [0]
    assert [sorted(group) for group in divide([2000, 400, 420, 380, 390, 401], 2, padded=padded)] == groups


SHARES = st.sampled_from([(2, 2), (3, 4), (4, 1)])


@given(st.lists(st.integers(1, 2048), min_size=24, max_size=24), st.booleans(), SHARES)
def test_no_rank_has_more_than_the_slowest_by_number(lengths: list[int], padded: bool, into: tuple[int, int]) -> None:
    """It had in some steps: `rows shared out by tokens: steps 0.99 × as fast` was said of a run."""
    shared = share(lengths, *into, padded=padded)
    assert sorted(row for own in shared for group in own for row in group) == list(range(24))
    slowest = [max(map(sum, costs_of(lengths, one, padded=padded))) for one in (shared, by_number(24, *into))]
    assert slowest[0] <= slowest[1]
