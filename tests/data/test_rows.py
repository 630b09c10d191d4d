"""Rows read whole: what is wrong with them, said with row numbers."""

from pathlib import Path
from typing import Any

import pytest

from unsloth_accel.data.rows import MOST_SHOWN, Rows, read_checked_rows, read_rows
from unsloth_accel.errors import ConfigError


def test_a_place_names_its_file_where_there_are_several() -> None:
    rows = Rows(numbers=[1, 3, 1], files=[(0, "a.jsonl"), (2, "b.jsonl")])
    assert rows.places([0, 1, 2]) == "rows a.jsonl:1, a.jsonl:3, b.jsonl:1"


def test_every_bad_row_is_named_up_to_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("{\n" * (MOST_SHOWN + 5), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_rows(path)
    assert len(caught.value.problems) == MOST_SHOWN + 1
    assert "5 more lines" in str(caught.value)


def test_other_fields_are_dropped(tmp_path: Path) -> None:
    """They would only have to agree in type from row to row."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "id": 1}\n{"text": "b", "id": "x"}\n', encoding="utf-8")
    assert read_rows(path) == [{"text": "a"}, {"text": "b"}]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("other", "how"), [({"b": 2}, None), ({"town": 2}, "use_json")])
def test_a_call_from_the_hub_has_its_own_arguments(
    monkeypatch: pytest.MonkeyPatch, streaming: bool, other: dict[str, Any], how: Any
) -> None:
    """As `datasets` gives them, in Arrow's structs and in its JSON type (for what is text here and a number there)."""
    import datasets

    def row(arguments: dict[str, Any]) -> dict[str, Any]:
        calls = [{"function": {"name": "f", "arguments": arguments}}]
        return {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": calls}]}

    rows = [row({"town": "Bern"}), row(other)]
    whole = datasets.Dataset.from_list(rows, on_mixed_types=how)
    loaded = whole.to_iterable_dataset() if streaming else whole
    monkeypatch.setattr("unsloth_accel.data.hub.load", lambda *given, **more: loaded)
    assert list(read_checked_rows("owner/name", streaming=streaming)) == rows
