import pytest

from unsloth_accel.report import numbers


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0"), (1234567.8, "1,234,568"), (2e-5, "2e-5"), (0.41234, "0.4123"), (12.3456, "12.35"), (None, "–")],
)
def test_numbers(value: float | None, shown: str) -> None:
    assert numbers.figure(value) == shown


def test_durations() -> None:
    assert [numbers.duration(s) for s in (0.5, 59.4, 372, 11_100)] == ["0.50 s", "59 s", "6 min 12 s", "3 h 05 min"]
