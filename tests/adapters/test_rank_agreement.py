from __future__ import annotations

from row_files import rows

from unsloth_accel.adapters import rank_agreement


def test_rows_are_known_by_number_and_content() -> None:
    assert rank_agreement.rows_of(rows("a", "b")) == rank_agreement.rows_of(rows("a", "b"))
    assert rank_agreement.rows_of(rows("a", "b")) != rank_agreement.rows_of(rows("b", "a"))
    assert rank_agreement.rows_of(rows("a", "b")) != rank_agreement.rows_of(rows("a", "b", "b"))
    assert rank_agreement.rows_of([1, 2]) == "2 rows"
    assert rank_agreement.rows_of(iter([1])) is None
    assert rank_agreement.rows_of(None) is None
    many = [str(number) for number in range(10_000)]
    assert rank_agreement.rows_of(rows(*many)) != rank_agreement.rows_of(rows(*many[:-1], "other"))
