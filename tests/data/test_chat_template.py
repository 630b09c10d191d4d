"""A run's chat template and the marks of its answers: what `preview` shows is what the processes train."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import SMOLLM2

from unsloth_accel.config.read_run import from_dict
from unsloth_accel.config.run_config import RunConfig
from unsloth_accel.errors import ConfigError

pytestmark = pytest.mark.slow  # Unsloth is imported
CHAT = {"messages": [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "Yes."}]}
UNMARKED = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
THINKS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'user' and not enable_thinking %}/no_think {% endif %}"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def described(tmp_path: Path, *rows: dict[str, Any], model: dict[str, Any] | None = None, **data: Any) -> RunConfig:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values = {
        "model": {"name": str(SMOLLM2), "max_seq_length": 256, **(model or {})},
        "data": {"path": str(path), "train_on": "responses", **data},
        "output_dir": str(tmp_path / "out"),
    }
    return from_dict(values)


def shown(run: RunConfig) -> tuple[str, Any]:
    """Return the first row, with ⟦ ⟧ around what is trained, and the whole preview; prepared rows are the same."""
    import unsloth  # noqa: F401  isort: skip
    from unsloth_accel.data.prepare import prepare
    from unsloth_accel.data.preview import preview_rows, tokenizer_of

    found = preview_rows(run, 1, 10)
    (row,) = found.rows
    prepared = prepare(run, tokenizer_of(run)).train[0]
    assert (tuple(prepared["input_ids"]), tuple(prepared["labels"])) == (row.ids, row.labels)
    return "".join(f"⟦{text}⟧" if trained else text for text, trained in row.parts), found


def test_a_template_by_its_name_is_unsloths(tmp_path: Path) -> None:
    import unsloth  # noqa: F401  isort: skip
    from transformers import AutoTokenizer
    from unsloth.chat_templates import CHAT_TEMPLATES, get_chat_template

    from unsloth_accel.config.template_fields import template_names
    from unsloth_accel.data.preview import tokenizer_of

    assert {*template_names()} == {*CHAT_TEMPLATES}
    for name in ("qwen3-thinking", "chatml", "gemma-3"):
        theirs = get_chat_template(AutoTokenizer.from_pretrained(SMOLLM2), chat_template=name)
        ours = tokenizer_of(described(tmp_path, CHAT, model={"chat_template": name}))
        assert ours.chat_template == theirs.chat_template
        assert (ours.eos_token, ours.eos_token_id) == (theirs.eos_token, theirs.eos_token_id)
    text, found = shown(described(tmp_path, CHAT, model={"chat_template": "qwen3-thinking"}))
    assert "<|im_start|>assistant\n⟦<think>\n\n</think>\n\nYes.<|im_end|>" in text
    assert found.markers[1].strip() == "<|im_start|>assistant"


def test_a_template_that_unsloth_cant_give_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import unsloth  # noqa: F401  isort: skip
    from unsloth_accel.data.preview import tokenizer_of

    def lacking(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("<start_of_turn> was not part of the tokenizer!")

    monkeypatch.setattr("unsloth.chat_templates.get_chat_template", lacking)
    with pytest.raises(
        ConfigError, match=r"model\.chat_template='gemma_chatml': does not fit .*<start_of_turn> was not"
    ):
        tokenizer_of(described(tmp_path, CHAT, model={"chat_template": "gemma_chatml"}))


def test_a_template_without_marks_is_refused_with_what_mends_it(tmp_path: Path) -> None:
    template = tmp_path / "t.jinja"
    template.write_text(UNMARKED, encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        shown(described(tmp_path, CHAT, model={"chat_template": str(template)}))
    (problem,) = refused.value.problems
    assert problem.key == "data.train_on"
    for way in (
        "data.instruction_marker",
        "data.response_marker",
        "model.chat_template",
        "chatml",
        "data.train_on=all",
    ):
        assert way in problem.fix
    template.write_text("{% for m in messages %}{{ m.role }}> {{ m.content }}\n{% endfor %}", encoding="utf-8")
    told = {"instruction_marker": "user>", "response_marker": "assistant>"}
    text, found = shown(described(tmp_path, CHAT, model={"chat_template": str(template)}, **told))
    assert text == "user> Is it?\nassistant>⟦ Yes.\n⟧"
    assert found.markers == ("user>", "assistant>")


def test_text_with_marks_has_answers(tmp_path: Path) -> None:
    row = {"text": "### Q: Is it?\n### A: Yes.\n### Q: Sure?\n### A: No."}
    with pytest.raises(ConfigError, match=r"data\.instruction_marker and data\.response_marker"):
        shown(described(tmp_path, row))
    text, _ = shown(described(tmp_path, row, instruction_marker="### Q:", response_marker="### A:"))
    assert text == "### Q: Is it?\n### A:⟦ Yes.\n⟧### Q: Sure?\n### A:⟦ No.<|im_end|>⟧"


def test_a_marker_of_questions_that_never_comes_would_train_them(tmp_path: Path) -> None:
    row = {"text": "### Q: Is it?\n### A: Yes.\n### Q: Sure?\n### A: No."}
    with pytest.raises(ConfigError, match=r"data\.instruction_marker='### Qu:': is nowhere in a row of several"):
        shown(described(tmp_path, row, instruction_marker="### Qu:", response_marker="### A:"))
    once = {"text": "Is it?\n### A: Yes."}
    text, _ = shown(described(tmp_path, once, instruction_marker="### Q:", response_marker="### A:"))
    assert text == "Is it?\n### A:⟦ Yes.<|im_end|>⟧"


def test_a_question_whose_marker_has_other_tokens_would_be_trained(tmp_path: Path) -> None:
    row = {"text": "### User: q\n### Assistant: yes ### User: SECRET\n### Assistant: no"}
    markers = {"instruction_marker": "### User:", "response_marker": "### Assistant:"}
    with pytest.raises(ConfigError, match=r"instruction_marker='### User:': has other tokens in a row"):
        shown(described(tmp_path, row, **markers))
    asked = {"text": "### User: q\n### Assistant: write ### User: here\n### User: so?\n### Assistant: yes"}
    text, _ = shown(described(tmp_path, asked, **markers))
    assert "⟦ write ### User: here\n⟧### User: so?" in text, "said, not asked"
    row["text"] = row["text"].replace(" ### User", "\n### User")
    text, _ = shown(described(tmp_path, row, **markers))
    assert text == "### User: q\n### Assistant:⟦ yes\n⟧### User: SECRET\n### Assistant:⟦ no<|im_end|>⟧"


def test_messages_that_a_template_leaves_out_are_told(tmp_path: Path) -> None:
    """A misspelt field of a message would train empty answers."""
    import unsloth  # noqa: F401  isort: skip
    from unsloth_accel.data.preview import preview_rows

    template = tmp_path / "t.jinja"
    marked = {"model": {"chat_template": str(template)}, "train_on": "all"}
    row = {"messages": [{"role": "system", "content": "Be brief."}, *CHAT["messages"]]}
    loop = "{% for m in messages %}<{{ m.role }}> "
    template.write_text(loop + "{{ m.contents }}\n{% endfor %}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"model\.chat_template: the chat template leaves every answer out"):
        preview_rows(described(tmp_path, row, **marked), 1, 1)
    template.write_text(loop + "{% if m.role != 'system' %}{{ m.content }}{% endif %}\n{% endfor %}", encoding="utf-8")
    found = preview_rows(described(tmp_path, row, **marked), 1, 1)
    assert found.notes == ("the chat template leaves 1 message of the system out of the text of the first rows.",)
    template.write_text(loop + "{{ m.content | tojson }}\n{% endfor %}", encoding="utf-8")
    assert preview_rows(described(tmp_path, row, **marked), 1, 1).notes == ()


def test_arguments_of_the_template_for_all_rows_and_for_one(tmp_path: Path) -> None:
    template = tmp_path / "t.jinja"
    template.write_text(THINKS, encoding="utf-8")
    model = {"chat_template": str(template)}
    assert "/no_think" in shown(described(tmp_path, CHAT, model=model))[0]
    assert (
        "/no_think"
        not in shown(described(tmp_path, CHAT, model=model, chat_template_kwargs={"enable_thinking": True}))[0]
    )
    own = {**CHAT, "chat_template_kwargs": {"enable_thinking": False}}
    text, found = shown(described(tmp_path, own, model=model, chat_template_kwargs={"enable_thinking": True, "mod": 1}))
    assert "/no_think" in text
    assert "'mod', which the chat template does not use" in " ".join(found.notes)


def test_added_tokens_are_one_each_in_a_preview(tmp_path: Path) -> None:
    row = {"messages": [CHAT["messages"][0], {"role": "assistant", "content": "<call>Yes"}]}
    _, plain = shown(described(tmp_path, row))
    _, found = shown(described(tmp_path, row, model={"added_tokens": ["<call>"]}))
    assert 49_152 in found.rows[0].ids
    assert found.rows[0].length < plain.rows[0].length


def test_the_command_shows_the_markers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from unsloth_accel.cli.main import main

    run = described(tmp_path, CHAT)
    words = [f"model.name={run.model.name}", f"data.path={run.data.path}", f"output_dir={tmp_path}"]
    assert main(["preview", *words, "data.train_on=responses"]) == 0
    said = capsys.readouterr().out
    assert re.search(
        r'markers +an answer is what stands between ".*<\|im_start\|>assistant\\n" and the next ".*user', said
    )
    assert main(["preview", *words]) == 0
    assert "markers" not in capsys.readouterr().out
