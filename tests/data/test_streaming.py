from hypothesis import given
from hypothesis import strategies as st

from unsloth_accel.data.streaming import _shuffled


@given(st.integers(0, 2500), st.integers())
def test_a_stream_is_shuffled_and_whole(count: int, seed: int) -> None:
    import random

    rows = [{"text": i} for i in range(count)]
    drawn = [row["text"] for row in _shuffled(iter(rows), random.Random(seed))]
    assert sorted(drawn) == list(range(count))
    assert count < 20 or drawn != list(range(count))
