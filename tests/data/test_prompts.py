"""Prompts that the model answers itself, and the columns that rewards read beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from row_files import write

from unsloth_accel.config.read_run import from_dict
from unsloth_accel.data.chat_messages import FormatError
from unsloth_accel.data.formats import canonical, form_in_words, kind_of
from unsloth_accel.data.preference_rows import as_row, columns_of
from unsloth_accel.data.preview import preview_rows
from unsloth_accel.data.rows import read_checked_rows
from unsloth_accel.methods import METHODS

ASKED = [{"role": "user", "content": "6 × 7?"}]
ANSWER = {"role": "assistant", "content": "42"}


def made(row: dict[str, Any], form: str = "auto", **columns: str) -> dict[str, Any]:
    return canonical(row, form, columns, METHODS["grpo"])


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "6 × 7?", "answer": "42"}, {"prompt": "6 × 7?", "columns": {"answer": "42"}}),
        ({"prompt": ASKED, "label": 1}, {"prompt": ASKED, "columns": {"label": 1}}),
        ({"prompt": ASKED, "messages": [*ASKED, ANSWER]}, {"prompt": ASKED, "columns": {"messages": [*ASKED, ANSWER]}}),
        ({"messages": [*ASKED, ANSWER], "level": 3}, {"prompt": ASKED, "columns": {"solution": "42", "level": 3}}),
        ({"messages": [*ASKED, ANSWER], "solution": "x"}, {"prompt": ASKED, "columns": {"solution": "x"}}),
        ({"messages": ASKED}, {"prompt": ASKED, "columns": {}}),
        ({"instruction": "6 × 7?", "output": "42"}, {"prompt": ASKED, "columns": {"solution": "42"}}),
        # TRL gives no reward a column `completion`.
        ({"prompt": "6 × 7?", "completion": "42"}, {"prompt": "6 × 7?", "columns": {"solution": "42"}}),
        ({"prompt": ASKED, "completion": [ANSWER]}, {"prompt": ASKED, "columns": {"solution": "42"}}),
        ({"prompt": ASKED, "completion": "41", "solution": "42"}, {"prompt": ASKED, "columns": {"solution": "42"}}),
    ],
)
def test_rows_become_prompts_and_all_else_stays_for_rewards(row: dict[str, Any], expected: dict[str, Any]) -> None:
    assert made(row) == expected
    assert made(expected) == expected
    assert kind_of(made(row)) == "prompt"


@pytest.mark.parametrize("lone", [True, False])
def test_a_completion_beside_a_solution_is_said_to_be_left_out(lone: bool, tmp_path: Path) -> None:
    row = {"prompt": "6 × 7?", "completion": "41", **({} if lone else {"solution": "42"})}
    rows = read_checked_rows(write(tmp_path / "rows.jsonl", [row] * 2), method="grpo")
    said = "" if lone else "columns that say nothing here are left out: completion (2 rows)."
    assert rows.unused_in_words() == said


def test_a_question_becomes_a_chat() -> None:
    row = {"question": "6 × 7?", "system": "Be brief.", "answer": "42"}
    expected = [{"role": "system", "content": "Be brief."}, *ASKED]
    found = made(row, "question", prompt="question")
    assert found == {"prompt": expected, "columns": {"answer": "42"}}
    assert form_in_words(found) == "conversational prompt"


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": ""}, "empty"),
        ({"prompt": None}, "null"),
        ({"prompt": [*ASKED, ANSWER]}, "ends with an assistant's message"),
        ({"prompt": "a", "log_metric": 1}, "gives to rewards itself"),
        ({"prompt": "a", "prompts": "b"}, "gives to rewards itself"),
        ({"messages": [ANSWER]}, "asks nothing"),
    ],
)
def test_what_is_no_prompt_is_told(row: dict[str, Any], told: str) -> None:
    with pytest.raises(FormatError, match=told):
        made(row)


def test_other_methods_still_miss_the_answer() -> None:
    with pytest.raises(FormatError, match="no field 'completion'"):
        canonical({"prompt": "a"}, method=METHODS["sft"])


def test_columns_lie_beside_the_prompt_for_the_trainer() -> None:
    row = '{"prompt": "a", "columns": {"answer": [1]}}'
    assert as_row(row, ["prompt", "answer", "level"]) == {"prompt": "a", "answer": [1], "level": None}


def test_a_text_that_is_a_number_stays_a_text() -> None:
    """datasets reads a text as JSON where it can, and "42" is the number."""
    from datasets import Dataset

    row = {"prompt": "a", "columns": {"answer": "42", "level": 3, "known": "true", "said": '["a"]', "rest": [1, "2"]}}
    columns = columns_of(row)
    rows = Dataset.from_list([as_row(json.dumps(row), columns)], features=columns)
    assert rows[0] == {"prompt": "a", **row["columns"]}


def test_preview_shows_what_is_asked_and_what_rewards_read(tiny: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    long = "again " * 40
    rows.write_text('{"prompt": "6 × 7?", "answer": 42}\n' + json.dumps({"prompt": long, "answer": 0}) + "\n")
    values = {
        "method": "grpo",
        "model": {"name": str(tiny), "max_seq_length": 64},
        "data": {"path": str(rows)},
        "rewards": {"functions": ["format"]},
        "training": {"max_completion_length": 32},
        "output_dir": str(tmp_path / "out"),
    }
    found = preview_rows(from_dict(values), 2, 10)
    assert found.answered
    assert (found.kind, found.limit, found.empty) == ("prompt", 32, 0)
    assert found.rows[0].columns == ("answer",)
    assert "".join(text for text, _ in found.rows[0].parts) == "6 × 7?"
    assert not any(trained for row in found.rows for _, trained in row.parts)
    assert found.lengths.over == 1
