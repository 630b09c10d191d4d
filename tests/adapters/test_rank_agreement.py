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


def test_what_a_reference_computed_of_rows_is_none_of_them() -> None:
    """Else a run couldn't go on with it: the last bits are others where it is computed anew."""
    plain = rows("a", "b")
    scored = plain.add_column("ref_chosen_logps", [-1.5, -2.5])
    assert rank_agreement.rows_of(scored) == rank_agreement.rows_of(plain)
    assert rank_agreement.rows_of(plain.add_column("margin", [1.0, 2.0])) != rank_agreement.rows_of(plain)
