"""Random runs on random hardware: none ends in a traceback, every fix leads to a plan, and every plan fits."""

import pytest
from random_plans import look_at


def test_every_fix_of_a_random_plan_leads_to_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python tests/random_plans.py 1000 SEED` looks at more."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    seen = look_at(100, seed=24)
    assert not seen.faults, "\n".join(seen.faults)
    assert seen.counts["planned"] > 20
    assert seen.counts["fixes applied"] > 80
