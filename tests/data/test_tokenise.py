"""One road from a row to its tokens: what `preview` shows, what a stream yields and what is trained are the same."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from conftest import SMOLLM2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from row_files import write

from unsloth_accel.config.read_run import from_dict
from unsloth_accel.config.run_config import RunConfig
from unsloth_accel.errors import ConfigError

TEMPLATE = """\
{%- if tools %}{{- '<|im_start|>system\\n' }}
{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}{{- '<|im_end|>\\n' }}{%- endif %}
{%- if mood %}{{- mood }}{%- endif %}
{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is defined %}{{- message.content }}{%- endif %}
{%- for call in message.tool_calls or [] %}{{- call | tojson }}{%- endfor %}{{- '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
"""Shows every word that a row brings, keys in their order."""
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(str.strip)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=4,
)
CALL = st.builds(
    lambda name, arguments: {"type": "function", "function": {"name": name, "arguments": arguments}},
    TEXT,
    st.dictionaries(st.sampled_from(["town", "a", "b"]) | TEXT, JSON, max_size=3),
)
SAID = st.builds(lambda said: {"role": "assistant", "content": said}, TEXT)
CALLED = st.builds(lambda calls: {"role": "assistant", "tool_calls": calls}, st.lists(CALL, min_size=1, max_size=2))
ASKED = st.builds(lambda said: [{"role": "user", "content": said}], TEXT)
GIVEN = st.fixed_dictionaries(
    {},
    optional={
        "tools": st.lists(st.dictionaries(TEXT, JSON, min_size=1, max_size=2), min_size=1, max_size=2),
        "chat_template_kwargs": st.fixed_dictionaries({"mood": TEXT}),
        "id": JSON,
    },
)
FORMS = {
    "chat": st.builds(
        lambda asked, said, given: {"messages": [*asked, *said], **given},
        ASKED,
        st.lists(SAID | CALLED, min_size=1, max_size=3),
        GIVEN,
    ),
    "prompt-completion": st.builds(
        lambda asked, said, given: {"prompt": asked, "completion": [said], **given}, ASKED, SAID | CALLED, GIVEN
    ),
    "sharegpt": st.builds(
        lambda asked, said, given: {
            "conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": said}],
            **given,
        },
        TEXT,
        TEXT,
        GIVEN | st.builds(lambda system: {"system": system}, TEXT),
    ),
    "alpaca": st.builds(
        lambda asked, said, past, given: {"instruction": asked, "output": said, "history": past, **given},
        TEXT,
        TEXT,
        st.lists(st.tuples(TEXT, TEXT).map(list), max_size=2),
        GIVEN,
    ),
    "text": st.builds(lambda text, given: {"text": text, **given}, TEXT, GIVEN),
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(SMOLLM2))


@pytest.fixture
def described(tmp_path: Path) -> Any:
    def described(rows: list[dict[str, Any]] | Path, **training: Any) -> RunConfig:
        (tmp_path / "template.jinja").write_text(TEMPLATE, encoding="utf-8")
        path = rows if isinstance(rows, Path) else tmp_path / "rows.jsonl"
        if not isinstance(rows, Path):
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return from_dict(
            {
                "model": {"name": str(SMOLLM2), "max_seq_length": 8192},
                "data": {"path": str(path), "train_on": "all", "too_long": "drop"},
                "training": {"chat_template_path": str(tmp_path / "template.jinja"), **training},
                "output_dir": str(tmp_path / "out"),
            }
        )

    return described


def texts_of(run: RunConfig, tokenizer: Any) -> list[str]:
    """The rows as the trainer gets them, decoded."""
    from unsloth_accel.data.chat_template import choose_template
    from unsloth_accel.data.prepare import prepare

    return [tokenizer.decode(row["input_ids"]) for row in prepare(run, choose_template(tokenizer, run)).train]


def meant(row: dict[str, Any], tokenizer: Any) -> list[int]:
    """The tokens that a row means, by its own words."""
    if "text" in row:
        return list(tokenizer(row["text"] + tokenizer.eos_token)["input_ids"])
    messages = row.get("messages") or [*row.get("prompt", []), *row.get("completion", [])]
    if "conversations" in row:
        words = {"human": "user", "gpt": "assistant"}
        messages = [{"role": words[one["from"]], "content": one["value"]} for one in row["conversations"]]
    if "instruction" in row:
        turns = [*row["history"], [row["instruction"], row["output"]]]
        pairs = [((("user", asked), ("assistant", said))) for asked, said in turns]
        messages = [{"role": role, "content": said} for pair in pairs for role, said in pair]
    if "system" in row:
        messages = [{"role": "system", "content": row["system"]}, *messages]
    more = {"tools": row.get("tools"), **row.get("chat_template_kwargs", {})}
    return list(tokenizer.apply_chat_template(messages, chat_template=TEMPLATE, return_dict=True, **more)["input_ids"])


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_preview_stream_and_training_are_what_the_rows_mean(
    form: str, data: st.DataObject, described: Any, tokenizer: Any
) -> None:
    from unsloth_accel.data.chat_template import choose_template
    from unsloth_accel.data.prepare import prepare
    from unsloth_accel.data.preview import preview_rows
    from unsloth_accel.data.streaming import streamed

    rows = data.draw(st.lists(FORMS[form], min_size=1, max_size=12))
    run = described(rows)
    shown = [list(row.ids) for row in preview_rows(run, 12, 12).rows]
    assert shown == [meant(row, tokenizer) for row in rows]
    assert [list(row["input_ids"]) for row in prepare(run, choose_template(tokenizer, run)).train] == shown
    passes, _ = streamed(run, tokenizer)
    assert sorted(row["input_ids"] for row in islice(passes, len(rows))) == sorted(shown)


def call(**arguments: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}


ASKED_ONCE = {"role": "user", "content": "a"}


@pytest.mark.parametrize("end", ["jsonl", "json", "parquet", "arrow"])
def test_a_call_has_its_own_arguments_from_every_kind_of_file(
    end: str, tmp_path: Path, described: Any, tokenizer: Any
) -> None:
    rows = [{"messages": [ASKED_ONCE, call(town="Bern")]}, {"messages": [ASKED_ONCE, call(b=2, a=3)]}]
    for text, arguments in zip(
        texts_of(described(write(tmp_path / f"rows.{end}", rows)), tokenizer),
        ('{"town": "Bern"}', '{"b": 2, "a": 3}'),
        strict=True,
    ):
        assert f'"arguments": {arguments}' in text


def test_the_json_that_datasets_writes_is_read_with_its_nulls(tmp_path: Path, described: Any, tokenizer: Any) -> None:
    from datasets import Dataset

    rows = [{"messages": [ASKED_ONCE, call(town=None)]}, {"messages": [ASKED_ONCE, call(a="1", b=[1, "x"])]}]
    Dataset.from_list(rows, on_mixed_types="use_json").to_parquet(tmp_path / "rows.parquet")
    first, second = texts_of(described(tmp_path / "rows.parquet"), tokenizer)
    assert '{"town": null}' in first
    assert '{"a": "1", "b": [1, "x"]}' in second


def test_tools_that_are_only_equal_are_not_the_same(described: Any, tokenizer: Any) -> None:
    tools = ['{"a": 1, "b": 2}', '{"b": 2, "a": 1}', '{"b": 2, "a": true}', '{"b": 2.0, "a": true}']
    answered = [ASKED_ONCE, {"role": "assistant", "content": "b"}]
    texts = texts_of(described([{"messages": answered, "tools": f"[{tool}]"} for tool in tools]), tokenizer)
    assert all(tool in text for tool, text in zip(tools, texts, strict=True))


def test_messages_with_weight_0_are_not_trained(described: Any, tokenizer: Any) -> None:
    from unsloth_accel.data.chat_template import choose_template
    from unsloth_accel.data.prepare import prepare
    from unsloth_accel.data.preview import preview_rows

    def answers(*weights: dict[str, Any]) -> dict[str, Any]:
        pairs = zip(("one", "two"), weights, strict=True)
        turns = ([ASKED_ONCE, {"role": "assistant", "content": said, **weight}] for said, weight in pairs)
        return {"messages": [message for turn in turns for message in turn]}

    rows = [answers({"weight": 0}, {"weight": 1}), answers({"train": True}, {"train": False}), answers({}, {})]
    for train_on, asked in (("responses", ""), ("all", "user\na")):
        run = described(rows)
        run.data.train_on = train_on  # type: ignore[misc]
        trained = []
        for row in prepare(run, choose_template(tokenizer, run)).train:
            trained.append(tokenizer.decode([label for label in row["labels"] if label != -100]))
        for said, (first, second) in zip(trained, [(False, True), (True, False), (True, True)], strict=True):
            assert ("one" in said) == first
            assert ("two" in said) == second
            assert asked in said
        shown = [tuple(row["labels"]) for row in prepare(run, choose_template(tokenizer, run)).train]
        assert [row.labels for row in preview_rows(run, 9, 9).rows] == shown


@pytest.mark.parametrize("train_on", ["auto", "all", "responses"])
def test_another_role_that_is_not_to_be_trained(train_on: str, described: Any, tokenizer: Any) -> None:
    """As axolotl has it: a row that leaves out a user's message trains answers only."""
    from unsloth_accel.data.chat_template import choose_template
    from unsloth_accel.data.prepare import prepare

    asked, answer = ASKED_ONCE, {"role": "assistant", "content": "one"}
    rows = [
        {"messages": [{**asked, "train": False}, {**answer, "train": True}]},
        {"messages": [{"role": "system", "content": "s"}, {**asked, "weight": 0}, answer]},
        {"messages": [{**asked, "train": False}, {**answer, "train": False}, asked, answer]},
        {"messages": [asked, answer]},
    ]
    run = described(rows)
    run.data.train_on = train_on  # type: ignore[misc]
    made = prepare(run, choose_template(tokenizer, run)).train
    said = [tokenizer.decode([label for label in row["labels"] if label != -100]) for row in made]
    assert [text.count("one") for text in said] == [1, 1, 1, 1]
    assert ["user" in text for text in said] == [False, False, False, train_on != "responses"]


def test_what_is_left_out_is_named_with_its_count(described: Any, tokenizer: Any) -> None:
    from unsloth_accel.data.chat_template import choose_template
    from unsloth_accel.data.prepare import prepare
    from unsloth_accel.data.preview import preview_rows

    row = {"messages": [ASKED_ONCE, {"role": "assistant", "content": "b"}]}
    rows = [{**row, "id": 1, "tools": [{"name": "f"}], "chat_template_kwargs": {"mod": "x"}}, {**row, "id": 2, "of": 3}]
    run = described(rows)
    notes = prepare(run, choose_template(tokenizer, run)).notes
    assert notes[0] == "columns that say nothing here are left out: id (2 rows), of (1 row)."
    assert notes[1] == "1 row with 'mod', which the chat template does not use: it is not in their text."
    assert len(notes) == 2
    assert preview_rows(run, 1, 9).notes == notes


def test_a_call_that_the_template_leaves_out_is_refused(described: Any) -> None:
    from unsloth_accel.data.preview import preview_rows

    run = described([{"messages": [ASKED_ONCE, call(a=1)]}])
    run.model.chat_template = None
    with pytest.raises(ConfigError, match="calls of tools"):
        preview_rows(run, 1, 1)
