"""Pairs of answers, and answers with a label: in every format that TRL documents, and as TRL takes them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, SMOLLM2
from hypothesis import given, settings
from hypothesis import strategies as st
from row_files import CHAT, write

from unsloth_accel.cli.main import main
from unsloth_accel.config.read_run import from_dict
from unsloth_accel.config.run_config import DataConfig, RunConfig
from unsloth_accel.data.formats import canonical
from unsloth_accel.data.length_estimate import row_lengths
from unsloth_accel.data.rows import read_checked_rows, read_rows
from unsloth_accel.errors import ConfigError
from unsloth_accel.methods import METHODS
from unsloth_accel.validation.inputs import input_problems

ASKED = [{"role": "user", "content": "What color is the sky?"}]
BLUE, GREEN = ([{"role": "assistant", "content": f"It is {color}."}] for color in ("blue", "green"))
PAIR = {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}
CHATS = {"prompt": ASKED, "chosen": BLUE, "rejected": GREEN}
LABELLED = {"prompt": "The sky is", "completion": " blue.", "label": True}
WHOLE = {"chosen": "The sky is blue.", "rejected": "The sky is green."}
WHOLE_CHATS = {"chosen": ASKED + BLUE, "rejected": ASKED + GREEN}
HH = "\n\nHuman: Is it?\n\nAssistant:"
LIMIT = 64


def made(row: dict[str, Any], method: str = "dpo") -> dict[str, Any]:
    return canonical(row, method=METHODS[method])


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (PAIR, PAIR),
        (CHATS, CHATS),
        (WHOLE, PAIR),
        (WHOLE_CHATS, CHATS),
        ({**WHOLE_CHATS, "prompt": "What color is the sky?", "messages": ASKED + BLUE}, CHATS),  # UltraFeedback
        ({**WHOLE_CHATS, "prompt": ASKED}, CHATS),
        # Anthropic's HH: two answers that begin alike are answers all the same.
        (
            {"chosen": f"{HH} I think so.", "rejected": f"{HH} I do not."},
            {"prompt": HH, "chosen": " I think so.", "rejected": " I do not."},
        ),
        (
            {"prompt": "a", "chosen": "b", "rejected": "bc", "margin": 3},
            {"prompt": "a", "chosen": "b", "rejected": "bc"},
        ),
        ({**CHATS, "tools": [{"name": "f"}], "id": 1}, {**CHATS, "tools": [{"name": "f"}]}),
    ],
)
def test_pairs_of_every_format_become_answers_to_a_prompt(row: dict[str, Any], expected: dict[str, Any]) -> None:
    assert made(row) == expected
    assert made(expected) == expected


@settings(deadline=None)  # TRL is imported in the first one
@given(st.text(min_size=1), st.text(min_size=1), st.text(min_size=1))
def test_a_prompt_is_split_off_where_trl_does(prompt: str, chosen: str, rejected: str) -> None:
    from trl.data_utils import maybe_extract_prompt

    row = {"chosen": f"Q{prompt}1{chosen}", "rejected": f"Q{prompt}2{rejected}"}
    if "\n\nAssistant:" not in prompt:
        assert made(row) == maybe_extract_prompt(row)
    chats = {
        "chosen": [{"role": "user", "content": prompt}, {"role": "assistant", "content": "1" + chosen}],
        "rejected": [{"role": "user", "content": prompt}, {"role": "assistant", "content": "2" + rejected}],
    }
    assert made(chats) == maybe_extract_prompt(chats)


@pytest.mark.parametrize("row", [WHOLE, WHOLE_CHATS, PAIR, CHATS, {**PAIR, "margin": 0.5}])
def test_a_reward_model_reads_whole_texts_too(row: dict[str, Any]) -> None:
    assert made(row, "reward") == row


@pytest.mark.parametrize("label", [True, "True", "false"])
def test_an_answer_with_a_label(label: object) -> None:
    expected = label if isinstance(label, bool) else label == "True"  # CSV has text only
    assert made({**LABELLED, "label": label}, "kto") == {**LABELLED, "label": expected}
    chats = {"prompt": ASKED, "completion": BLUE, "label": False}
    assert made(chats, "kto") == chats


def test_the_method_decides_what_a_row_with_many_columns_is() -> None:
    row = {**WHOLE_CHATS, "messages": ASKED + BLUE}
    assert "messages" in canonical(row)
    assert made(row) == CHATS
    assert canonical(LABELLED) == {"prompt": "The sky is", "completion": " blue."}


def test_columns_of_other_names(tmp_path: Path) -> None:
    row = {"question": "The sky is", "good": " blue.", "bad": " green.", "score": 3}
    names = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    path = write(tmp_path / "rows.csv", [row])
    found = read_checked_rows(path, data=DataConfig(path=str(path), columns=names), method="dpo")
    assert list(found) == [PAIR]
    assert found.unused_in_words() == "columns that say nothing here are left out: score (1 row)."


@pytest.mark.parametrize(
    ("method", "row", "fault"),
    [
        ("dpo", {"prompt": "a", "chosen": "b"}, "has no field 'rejected'"),
        ("dpo", {**PAIR, "rejected": None}, "field 'rejected' is null: one side of the pair is missing"),
        ("dpo", {**PAIR, "rejected": " blue."}, "`chosen` and `rejected` are equal"),
        ("dpo", {**PAIR, "chosen": ""}, "field 'chosen' is empty"),
        ("dpo", {**PAIR, "prompt": ""}, "field 'prompt' is empty"),
        ("dpo", {"chosen": "Yes.", "rejected": "No."}, "share no beginning"),
        ("dpo", {**CHATS, "prompt": "a"}, "`prompt` is text, and `chosen` and `rejected` are messages"),
        ("dpo", {**PAIR, "chosen": 1}, "`prompt`, `chosen` and `rejected` are not all text or all messages"),
        ("dpo", {**CHATS, "chosen": [{"role": "assistant"}]}, "a message has no 'content' text"),
        ("dpo", {**CHATS, "chosen": ["Yes."]}, "a message is not a JSON object"),
        ("dpo", {**CHATS, "chosen": [*BLUE, *ASKED]}, "`chosen` ends with a message from 'user'"),
        ("dpo", {"prompt": ASKED, "chosen": ASKED, "rejected": ASKED + BLUE}, "is the prompt alone"),
        ("reward", {**PAIR, "margin": "1"}, "field 'margin' is str, not a number"),
        ("kto", {**LABELLED, "label": 1}, "field 'label' is 1, which is neither true nor false"),
        ("kto", {**LABELLED, "label": "good"}, "field 'label' is 'good'"),
        ("kto", {**LABELLED, "completion": ""}, "field 'completion' is empty"),
    ],
)
def test_bad_rows_are_told_by_their_line(method: str, row: dict[str, Any], fault: str, tmp_path: Path) -> None:
    good = CHATS if isinstance(row.get("chosen"), list) else LABELLED if method == "kto" else PAIR
    path = write(tmp_path / "rows.jsonl", [good, row])
    with pytest.raises(ConfigError) as told:
        read_rows(path, method=method)
    (problem,) = told.value.problems
    assert problem.key == f"{path}:2"
    assert fault in problem.consequence
    assert problem.fix


def test_rows_of_one_form_only(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{**PAIR, "margin": 1}, PAIR, WHOLE, CHATS])
    with pytest.raises(ConfigError) as told:
        read_rows(path, method="reward")
    assert [problem.key for problem in told.value.problems] == [f"{path}:{line}" for line in (2, 3, 4)]
    assert "is a row of conversational preference, and the first of preference with a margin" in str(told.value)


@pytest.mark.parametrize(
    ("method", "row", "fix"),
    [
        ("sft", PAIR, "method=dpo or method=kto or method=reward"),
        ("dpo", CHAT, "method=sft"),
        ("dpo", LABELLED, "method=kto"),
        ("kto", {"prompt": "a", "completion": "b"}, "`prompt`, `completion` and `label`, true or false"),
    ],
)
def test_rows_of_another_method_name_the_right_one(method: str, row: dict[str, Any], fix: str, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [row] * 30)
    with pytest.raises(ConfigError) as told:
        read_rows(path, method=method)
    (problem,) = told.value.problems  # once, and not for every row
    assert f"which {method} doesn't train" in problem.consequence
    assert fix in problem.fix
    run = described(tmp_path, [row], method)
    assert [found.consequence for found in input_problems(run)] == [problem.consequence]


def described(
    tmp_path: Path, rows: list[dict[str, Any]], method: str, training: dict[str, Any] | None = None, **data: Any
) -> RunConfig:
    path = write(tmp_path / "rows.jsonl", rows)
    return from_dict(
        {
            "method": method,
            "model": {"name": str(SMOLLM2), "max_seq_length": LIMIT},
            "data": {"path": str(path), **data},
            "training": training or {},
            "output_dir": str(tmp_path / "out"),
        }
    )


def test_all_tokens_of_a_pair_cannot_be_trained(tmp_path: Path) -> None:
    run = described(tmp_path, [PAIR], "dpo", train_on="all")
    assert [problem.key for problem in input_problems(run)] == ["data.train_on"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(SMOLLM2)


def theirs(method: str, dataset: Any, tokenizer: Any, limit: int | None = None) -> list[dict[str, Any]]:
    """The rows as the trainer's own preparation tokenises them."""
    from trl.trainer import dpo_trainer, kto_trainer, reward_trainer

    trainer = {
        "dpo": dpo_trainer.DPOTrainer,
        "kto": kto_trainer.KTOTrainer,
        "reward": reward_trainer.RewardTrainer,
    }[method]
    state = types.SimpleNamespace(_tokenizer=tokenizer, calculate_KL=False, desirable_weight=1, undesirable_weight=1)
    args = types.SimpleNamespace(dataset_num_proc=None, max_length=limit, truncation_mode="keep_start")
    return list(trainer._prepare_dataset(state, dataset, tokenizer, args, "train"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


TOOLS = {"tools": [{"name": "f", "parameters": {"x": {"type": "int"}}}], "chat_template_kwargs": {"mood": "calm"}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "rows"),
    [
        ("dpo", [PAIR, {"prompt": "a", "chosen": "b", "rejected": "c"}]),
        ("dpo", [CHATS, {**CHATS, **TOOLS}]),
        ("dpo", [WHOLE]),
        ("kto", [LABELLED, {"prompt": "a", "completion": "b", "label": False}]),
        ("kto", [{"prompt": ASKED, "completion": BLUE, "label": False}]),
        ("reward", [WHOLE, {"chosen": "a", "rejected": "b"}]),
        ("reward", [CHATS, {**CHATS, **TOOLS}]),
    ],
)
def test_what_is_shown_and_counted_is_what_trl_trains(
    method: str, rows: list[dict[str, Any]], tokenizer: Any, tmp_path: Path
) -> None:
    from unsloth_accel.data.prepare import prepare
    from unsloth_accel.data.tokenise import IGNORED, Recipe, Tokenise

    run = described(tmp_path, rows, method)
    found = read_checked_rows(run.data.path, data=run.data, method=method)
    sides = Tokenise(tokenizer, Recipe.of(run, found.kind)).sides(found.texts)
    prepared = prepare(run, tokenizer)
    trained = theirs(method, prepared.train, tokenizer)
    assert len(trained) == len(rows)
    total = 0
    for index, row in enumerate(trained):
        for name, own in sides.items():
            side = own[index]
            answer = row[f"{name or 'completion'}_ids"]
            total += len(side.ids)
            assert side.ids == row.get("prompt_ids", []) + answer
            labels = [label for label in side.labels if label != IGNORED]
            assert labels == (answer[-1:] if method == "reward" else answer)
    assert prepared.report["tokens"] == total
    assert prepared.report["trained"] == len(rows)


@pytest.mark.slow
def test_pairs_become_answers_with_labels_for_kto(tokenizer: Any, tmp_path: Path) -> None:
    from unsloth_accel.data.prepare import prepare

    pairs = [{"prompt": f"Say {n}:", "chosen": f" {n}", "rejected": " no"} for n in range(20)]
    run = described(tmp_path, pairs, "kto")
    prepared = prepare(run, tokenizer)
    trained = theirs("kto", prepared.train, tokenizer)
    assert sorted((row["prompt"], row["label"]) for row in trained) == sorted(
        (pair["prompt"], label) for pair in pairs for label in (True, False)
    )
    assert {row["label"] for row in trained[:12]} == {True, False}  # KTO reads rows in their order
    assert prepared.report["trained"] == 40
    lengths = row_lengths(run.data, SMOLLM2, LIMIT, "kto")
    assert lengths is not None
    assert (lengths.total, lengths.rows) == (40, 20)
    again = prepare(run, tokenizer)  # TRL has left what it made beside the rows
    assert list(again.train) == list(prepared.train)


LONG = {"prompt": "word " * 70, "chosen": " a", "rejected": " b"}
CUT = {"prompt": "word " * 40, "chosen": " a" * 40, "rejected": " b"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "too_long", "kept", "note"),
    [
        ("dpo", "cut", 2, "1 row with nothing to learn dropped (1 cut before the response begins): row 2."),
        ("dpo", "drop", 1, "2 rows longer than 64 tokens dropped: rows 2, 3."),
        ("reward", "cut", 1, "2 rows longer than 64 tokens dropped: rows 2, 3."),
    ],
)
def test_rows_that_are_too_long(
    method: str, too_long: str, kept: int, note: str, tokenizer: Any, tmp_path: Path
) -> None:
    from unsloth_accel.data.prepare import prepare

    run = described(tmp_path, [PAIR, LONG, CUT], method, too_long=too_long)
    prepared = prepare(run, tokenizer)
    assert note in prepared.notes
    assert len(prepared.train) == kept == len(theirs(method, prepared.train, tokenizer, LIMIT))
    with pytest.raises(
        ConfigError, match=r"no row is left to train on: 1 of 1 are longer than model\.max_seq_length=64"
    ):
        prepare(described(tmp_path / "all", [LONG], method, too_long=too_long), tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_streamed_pairs_are_checked_and_tokenised_by_trl(method: str, tokenizer: Any, tmp_path: Path) -> None:
    from itertools import islice

    from unsloth_accel.data.streaming import streamed

    run = described(tmp_path, [{**CHATS, **TOOLS}, CHATS], method, {"max_steps": 1}, streaming=True)
    rows, _ = streamed(run, tokenizer)
    first = list(islice(rows, 4))
    assert {("completion" in row) for row in first} == {method == "kto"}
    assert all(row["prompt"] == ASKED for row in first)
    assert {json.dumps(row["tools"]) for row in first} == {json.dumps(TOOLS["tools"]), "null"}


def test_preview_shows_both_sides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "rows.jsonl", [PAIR, {**PAIR, "prompt": "The sea is"}])
    words = [f"model.name={SMOLLM2}", f"data.path={path}", "model.max_seq_length=64"]
    assert main(["preview", *words, "method=dpo", "--rows", "1"]) == 0
    told = capsys.readouterr().out
    assert "row 1, chosen: 6 tokens, 3 trained\nThe sky is⟦ blue.<|im_end|>⟧" in told
    assert "row 1, rejected: 6 tokens, 3 trained\nThe sky is⟦ green.<|im_end|>⟧" in told
    assert "tokens of 4 answers, preference" in told
    assert "packing" not in told
    assert main(["preview", *words, "method=reward", "--rows", "1", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [(row["side"], row["trained"]) for row in shown["rows"]] == [("chosen", 1), ("rejected", 1)]
    write(path, [LABELLED])
    assert main(["preview", *words, "method=kto"]) == 0
    assert "row 1, label true: 6 tokens, 3 trained" in capsys.readouterr().out


def test_lengths_count_both_sides(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"prompt": "a" * 40, "chosen": "b" * 39, "rejected": "c" * 119}] * 3)
    found = row_lengths(DataConfig(path=str(path)), tmp_path, 1000, "dpo")
    assert found is not None
    assert found.mean == (80 + 160) / 2 / 4  # four characters a token, and a line between prompt and answer
    assert (found.rows, found.total) == (3, 3)


def test_the_examples_rows_are_what_their_program_writes(tmp_path: Path) -> None:
    """And none of its held-out questions or answers is among those that are trained."""
    for name in ("make_answers.py", "make_elements.py"):
        shutil.copy(ROOT / "examples" / "data" / name, tmp_path)
    subprocess.run([sys.executable, tmp_path / "make_answers.py"], check=True, capture_output=True)
    for split in ("train", "eval"):
        name = f"answers-{split}.jsonl"
        assert (tmp_path / name).read_bytes() == (ROOT / "examples" / "data" / name).read_bytes()
    told = [
        {
            json.dumps(message)
            for row in read_rows(tmp_path / f"answers-{split}.jsonl", method="dpo")
            for name in row
            for message in row[name]
        }
        for split in ("train", "eval")
    ]
    assert not told[0] & told[1]


@pytest.mark.parametrize("method", ["dpo", "kto", "reward"])
def test_the_examples_have_nothing_to_correct(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(ROOT / "examples" / "configs" / f"{method}.yaml")]) == 0
    assert "nothing to correct" in capsys.readouterr().out
