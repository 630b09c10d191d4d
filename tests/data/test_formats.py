from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from row_files import CHAT, write

from unsloth_accel.config.run_config import DataConfig
from unsloth_accel.data.formats import canonical, roles
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
