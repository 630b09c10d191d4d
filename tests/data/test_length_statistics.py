from hypothesis import given
from hypothesis import strategies as st

from unsloth_accel.data.length_statistics import best_fit, lengths_of


@given(st.lists(st.integers(1, 64), min_size=1), st.integers(1, 9))
def test_packing_keeps_every_token_within_the_limit(lengths: list[int], batch: int) -> None:
    packed = best_fit(lengths, 64)
    assert sum(packed) == sum(lengths)
    assert max(packed) <= 64
    assert sum(2 * tokens <= 64 for tokens in packed) <= 1, "two that would fit into one"
    figures = lengths_of(lengths, 64, batch)
    assert sum(number for *_, number in figures.histogram) == len(lengths) == figures.rows
    assert 0 <= figures.padding < 1


def test_packing_as_trl_counts_it() -> None:
    from datasets import Dataset
    from trl import pack_dataset

    lengths = [(37 * i) % 90 + 5 for i in range(200)]
    packed = pack_dataset(Dataset.from_list([{"input_ids": [1] * n} for n in lengths]), 128, "bfd")
    assert len(best_fit(lengths, 128)) == len(packed)
