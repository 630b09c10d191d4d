"""Random runs on random hardware: none ends in a traceback, every fix leads to a plan, and every plan fits."""

from random_plans import look_at


def test_every_fix_of_a_random_plan_leads_to_a_plan() -> None:
    """`python tests/random_plans.py 1000 SEED` looks at more."""
    seen = look_at(100, seed=24)
    assert not seen.faults, "\n".join(seen.faults)
    assert seen.counts["planned"] > 20
    assert seen.counts["fixes applied"] > 80
