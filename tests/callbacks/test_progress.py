from __future__ import annotations


def test_the_time_left_as_a_reader_takes_it_in() -> None:
    from unsloth_accel.callbacks.progress import duration

    assert [duration(seconds) for seconds in (45, 89, 700, 11_100)] == ["45 s", "89 s", "12 min", "3 h 05 min"]
