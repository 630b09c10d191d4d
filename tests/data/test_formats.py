import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from row_files import CHAT, write

from unsloth_accel.config.run_config import DataConfig
from unsloth_accel.data.formats import FormatError, canonical, question_of, roles
from unsloth_accel.data.rows import read_rows
from unsloth_accel.errors import ConfigError

TEXT = st.text(min_size=1).filter(str.strip)


@given(TEXT, st.text(), TEXT)
def test_alpaca_becomes_a_chat(instruction: str, more: str, output: str) -> None:
    made = canonical({"instruction": instruction, "input": more, "output": output, "id": 5})
    assert roles(made) == ["user", "assistant"]
    asked, answered = (message["content"] for message in made["messages"])
    assert answered == output
    assert asked == (f"{instruction}\n\n{more}" if more else instruction)


@given(st.lists(st.tuples(st.sampled_from(["human", "gpt", "system", "tool"]), TEXT), min_size=1))
def test_sharegpt_becomes_the_same_chat(turns: list[tuple[str, str]]) -> None:
    made = canonical({"conversations": [{"from": speaker, "value": said} for speaker, said in turns]})
    words = {"human": "user", "gpt": "assistant"}
    expected = [{"role": words.get(speaker, speaker), "content": said} for speaker, said in turns]
    assert made == canonical({"messages": expected}) == {"messages": expected}


def test_columns_of_other_names(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"question": "a", "answer": "b"}])
    data = DataConfig(path=str(path), columns={"prompt": "question", "completion": "answer"})
    assert read_rows(path, data=data) == [{"prompt": "a", "completion": "b"}]
    with pytest.raises(ConfigError, match=r"no field 'nothing', which data\.columns\.text names"):
        read_rows(path, data=DataConfig(path=str(path), columns={"text": "nothing"}))


def test_a_named_format_is_not_guessed(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{**CHAT, "text": "t"}])
    assert read_rows(path) == [CHAT]
    assert read_rows(path, data=DataConfig(path=str(path), format="text")) == [{"text": "t"}]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"text": "a\ud800b"}, "half of a character, '\\\\ud800'"),
        ({**CHAT, "tools": [{"a": "\udfff"}]}, "half of a character"),
        ({**CHAT, "tools": "[{"}, "field 'tools' is text, and not JSON"),
        ({**CHAT, "tools": {"a": 1}}, "field 'tools' is dict, not a list of objects"),
        ({**CHAT, "chat_template_kwargs": ["a"]}, "is list, not a mapping"),
        ({**CHAT, "chat_template_kwargs": {"tokenize": False}}, "names 'tokenize', which is decided for all rows"),
        ({**CHAT, "system": 1}, "field 'system' is int, not text"),
        ({"instruction": "a", "output": "b", "history": ["a", "b"]}, "no list of pairs"),
        (
            {"messages": [{"role": "user", "content": "a", "train": True}]},
            "only the assistant's .* without such keys data",
        ),
        (
            {"messages": [{"role": "assistant", "content": "a", "weight": 0.5}]},
            "weight=0.5; it is",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "a part of image; only text is trained"),
        ({"text": "a", "images": ["a.png"]}, "has `images`: rows with pictures, films or sound are not trained yet"),
        ({"prompt": [{"role": "assistant", "content": "a", "weight": 0}], "completion": []}, "not to be trained"),
    ],
)
def test_what_a_row_may_not_hold(tmp_path: Path, row: dict[str, Any], fault: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=fault) as caught:
        read_rows(path)
    assert "give every row" not in str(caught.value), "a fix that fits"


def test_a_canonical_row_is_a_row_again() -> None:
    row = {
        "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "train": False}],
        "system": "s",
        "tools": '[{"name": "f"}]',
        "chat_template_kwargs": {"x": None},
        "id": 1,
    }
    made = canonical(row)
    assert [message["role"] for message in made["messages"]] == ["system", "user", "assistant"]
    assert made["messages"][2] == {"role": "assistant", "content": "b", "weight": 0}
    assert made["tools"] == [{"name": "f"}]
    assert made["chat_template_kwargs"] == {"x": None}
    assert canonical(made) == made
    asked = [{"role": "user", "content": "a", "train": False}]
    assert canonical({"prompt": asked, "completion": CHAT["messages"][1:]})["prompt"] == [
        {"role": "user", "content": "a"}
    ]


def test_a_column_that_only_some_rows_have_may_be_called_otherwise() -> None:
    columns = {"messages": "turns", "tools": "functions"}
    turns = CHAT["messages"]
    assert canonical({"turns": turns, "functions": [{"name": "f"}]}, "auto", columns)["tools"] == [{"name": "f"}]
    assert canonical({"turns": turns}, "auto", columns) == CHAT
    assert canonical({"turns": turns, "tools": [{"name": "g"}]}, "auto", columns) == CHAT
    with pytest.raises(FormatError, match=r"'turns', which data\.columns\.messages names"):
        canonical({"functions": []}, "auto", columns)


def test_content_in_parts_and_a_system_column(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    made = canonical({"messages": [{"role": "user", "content": parts}], "system": "s"})
    assert made == {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "ab"}]}
    own = [{"role": "system", "content": "own"}, {"role": "user", "content": "a"}]
    assert canonical({"messages": own, "system": "s"}) == {"messages": own}


def test_a_question_has_what_its_row_brings_for_the_template() -> None:
    asked = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]
    row = {"messages": [*asked, {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]}
    found = question_of(canonical({**row, "tools": [{"name": "f"}], "chat_template_kwargs": {"x": 1}}))
    assert found is not None
    assert found.messages == [asked[0], {"role": "assistant", "content": "b"}, row["messages"][2]]
    assert (found.given, found.answer) == ({"tools": [{"name": "f"}], "x": 1}, "d")
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    for messages in ([asked[0]], [asked[0], call], [{"role": "assistant", "content": "b"}]):
        assert question_of(canonical({"messages": messages})) is None
