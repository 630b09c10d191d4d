from collections.abc import Iterator

from unsloth_accel.doctor import (
    Result,
)
from unsloth_accel.doctor.result import collect


def test_a_crashing_check_is_an_error_and_stops_no_other() -> None:
    def crash(_: None) -> Iterator[Result]:
        yield Result(name="half", detail="seen")
        raise RuntimeError("first line\nsecond line")

    def fine(_: None) -> Iterator[Result]:
        yield Result(name="fine", detail="")

    def absent(_: None) -> Iterator[Result]:
        raise ModuleNotFoundError("No module named 'yaml'", name="yaml")

    results = collect([("crash", crash), ("absent", absent), ("fine", fine)], None)
    assert [(result.name, result.status) for result in results][-3:] == [
        ("crash", "error"),
        ("absent", "error"),
        ("fine", "ok"),
    ]
    crashed, missing = results[-3:-1]
    assert "RuntimeError: first line" in crashed.detail
    assert "second" not in crashed.detail
    assert missing.fix == "pip install yaml"
