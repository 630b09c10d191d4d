from conftest import ROOT

from unsloth_accel.rewards.known import REWARDS
from unsloth_accel.rewards.page import page


def test_the_page_is_of_the_records() -> None:
    text = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
    assert page(text) == text, "python -m unsloth_accel.rewards.page"
    assert all(f"| `{name}` | " in text for name in REWARDS.names)
