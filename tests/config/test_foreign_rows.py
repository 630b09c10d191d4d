"""The data sets of other tools' files: of one, of several, with rows held out."""

import json
from pathlib import Path
from typing import Any

import pytest
from foreign_files import AXOLOTL, LLAMA_FACTORY, TRL, made, note

from unsloth_accel.config.translate import nested


def test_a_data_set_is_looked_up_in_dataset_info(tmp_path: Path) -> None:
    known = {
        "mine": {"file_name": "mine.json", "formatting": "sharegpt", "columns": {"messages": "talk"}},
        "far": {"hf_hub_url": "org/rows", "subset": "s", "columns": {"prompt": "ask", "response": "output"}},
        "pairs": {"file_name": "pairs.json", "ranking": True},
        "one": {"file_name": "one.json"},
        "two": {"file_name": "two.json"},
        "odd": {"file_name": "odd.json", "formatting": "sharegpt", "tags": {"role_tag": "who", "content_tag": "what"}},
    }
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(known), encoding="utf-8")

    def data(name: str) -> dict[str, Any]:
        return dict(nested(made(tmp_path, LLAMA_FACTORY | {"dataset": name}).settings)["data"])

    first = {"max_rows": 10, "train_on": "responses"}
    mine = {"path": str(tmp_path / "data" / "mine.json"), "format": "sharegpt", "columns": {"conversations": "talk"}}
    far = {"path": "org/rows", "format": "alpaca", "columns": {"instruction": "ask"}, "subset": "s"}
    assert data("mine") == mine | first
    assert data("far") == far | first
    for name, said in (("pairs", "pairs of answers"), ("odd", "tags of its own"), ("mine,odd", "tags of its own")):
        assert said in note(made(tmp_path, LLAMA_FACTORY | {"dataset": name}), "dataset")
    mix = [mine | {"max_rows": 10}, far | {"max_rows": 10}]
    assert data("mine,far") == {"mix": mix, "train_on": "responses"}
    one, two = ({"path": f"{tmp_path}/data/{name}.json", "max_rows": 10} for name in ("one", "two"))
    assert data("one,two") == {"mix": [one, two], "format": "alpaca", "train_on": "responses"}
    interleaved = {"mix_strategy": "interleave_over", "interleave_probs": "0.7, 0.3", "val_size": 0.1}
    found = made(tmp_path, LLAMA_FACTORY | {"dataset": "one,two"} | interleaved)
    assert nested(found.settings)["data"] == {
        "mix": [one | {"weight": 0.7}, two | {"weight": 0.3}],
        "stopping_strategy": "all_exhausted",
        "format": "alpaca",
        "train_on": "responses",
        "eval_fraction": 0.1,
    }
    once = made(tmp_path, LLAMA_FACTORY | {"dataset": "one,two", "mix_strategy": "interleave_once"})
    assert "first_exhausted or all_exhausted" in note(once, "mix_strategy")
    both = made(tmp_path, LLAMA_FACTORY | {"dataset": "mine", "eval_dataset": "one,two"})
    assert both.settings["data.eval_path"] == f"{tmp_path}/data/{{one.json,two.json}}"


@pytest.mark.parametrize(
    ("dataset", "settings", "said"),
    [
        ({"type": "alpaca"}, {"format": "alpaca", "train_on": "responses"}, "Alpaca prompt"),
        (
            {"type": "completion", "field": "body"},
            {"format": "text", "columns": {"text": "body"}, "train_on": "all"},
            "",
        ),
        (
            {"type": "chat_template", "message_property_mappings": {"role": "from", "content": "value"}},
            {"format": "sharegpt", "columns": {"conversations": "messages"}, "train_on": "responses"},
            "",
        ),
        ({"type": "chat_template", "roles_to_train": ["user"]}, None, "roles_to_train"),
        ({"type": "input_output"}, None, "input_output is a prompt of axolotl's"),
        ({"type": "chat_template", "message_field_role": "who"}, None, "who and content"),
    ],
)
def test_axolotls_data_sets(
    tmp_path: Path, dataset: dict[str, Any], settings: dict[str, Any] | None, said: str
) -> None:
    found = made(tmp_path, AXOLOTL | {"datasets": [{"path": "rows.jsonl"} | dataset], "val_set_size": 0})
    assert said in note(found, "datasets")
    if settings is None:
        assert "datasets" in [line.key for line in found.of_kind("named")]
    else:
        assert nested(found.settings)["data"] == {"path": "rows.jsonl"} | settings
    # As axolotl, which evaluates nothing where no rows are held out.
    assert "evals_per_epoch" in [line.key for line in found.of_kind("covered")]


def test_axolotls_data_sets_are_mixed(tmp_path: Path) -> None:
    chats = {"path": "org/rows", "type": "chat_template", "split": "a"}
    files = {"path": "json", "data_files": ["x.jsonl", "y.jsonl"], "type": "alpaca"}
    found = made(tmp_path, AXOLOTL | {"datasets": [chats, files], "embedding_lr": 1e-5})
    assert nested(found.settings)["data"] == {
        "mix": [
            {"path": "org/rows", "split": "a", "format": "chat"},
            {"path": "x.jsonl", "format": "alpaca"},
            {"path": "y.jsonl", "format": "alpaca"},
        ],
        "train_on": "responses",
        "eval_fraction": 0.05,
    }
    assert "neither embed_tokens nor lm_head" in note(found, "embedding_lr")
    trained = {"lora_modules_to_save": ["embed_tokens"], "lora_target_linear": False, "embedding_lr": 1e-5}
    assert made(tmp_path, AXOLOTL | trained).settings["training.embedding_learning_rate"] == 1e-5
    texts = {"path": "z.jsonl", "type": "completion"}
    found = made(tmp_path, AXOLOTL | {"datasets": [chats, texts]})
    assert "differ in data.train_on" in note(found, "datasets")
    assert found.settings["data.mix"] == ["org/rows", "z.jsonl"]


@pytest.mark.parametrize(
    ("mixture", "data"),
    [
        (
            {"datasets": [{"id": "org/rows", "config": "c", "split": "a"}], "test_split_size": 100},
            {"path": "org/rows", "subset": "c", "split": "a[:-100]", "eval_path": "org/rows", "eval_split": "a[-100:]"},
        ),
        (
            {"datasets": [{"id": "org/rows", "split": "a"}, {"id": "org/rows", "split": "b", "weight": 1.0}]},
            {"path": "org/rows", "split": "a+b"},
        ),
        (
            {"datasets": [{"id": "org/rows", "split": "a"}, {"id": "x/y", "weight": 0.5}], "test_split_size": 0.1},
            {
                "mix": [{"path": "org/rows", "split": "a"}, {"path": "x/y", "split": "train[:50%]"}],
                "eval_fraction": 0.1,
            },
        ),
        ({"datasets": [{"id": "org/rows", "weight": 0.5}]}, {"path": "org/rows", "split": "train[:50%]"}),
        ({"datasets": [{"id": "rows.jsonl", "weight": 0.5}]}, {"path": "rows.jsonl", "split": "train"}),
    ],
)
def test_a_mixture_of_data_sets_is_translated(tmp_path: Path, mixture: dict[str, Any], data: dict[str, Any]) -> None:
    values = {key: value for key, value in TRL.items() if not key.startswith("dataset_")}
    found = made(tmp_path, values | {"dataset_mixture": mixture})
    assert nested(found.settings)["data"] == data
    named = [line.key for line in found.of_kind("named")]
    assert ("dataset_mixture" in named) == (data.get("path") == "rows.jsonl"), "of a file there is no part"


def test_a_number_of_a_files_rows_is_held_out_as_a_share(tmp_path: Path) -> None:
    """Its held-out rows are not its last ones: data.split means nothing of a file."""
    rows = {"datasets": [{"path": "data/rows.jsonl", "type": "alpaca"}], "val_set_size": 50}
    found = made(tmp_path, AXOLOTL | rows)
    assert "as a share of all" in note(found, "val_set_size")
    assert not {"data.split", "data.eval_path"} & {*found.settings}


def test_rows_in_place_of_the_files_own_come_without_its_split_form_and_held_out_rows(tmp_path: Path) -> None:
    theirs = AXOLOTL | {"val_set_size": 50}
    found = made(tmp_path, theirs, "data.path=mine.jsonl")
    assert nested(found.settings)["data"] == {"path": "mine.jsonl", "train_on": "responses"}
    assert "in whose place mine.jsonl is given" in note(found, "val_set_size")
    assert "needs held-out rows" in note(found, "evals_per_epoch")
    with_rows = made(tmp_path, theirs, "data.path=mine.jsonl", "data.eval_path=held.jsonl")
    assert nested(with_rows.settings)["data"]["eval_path"] == "held.jsonl"
    assert with_rows.settings["training.eval_strategy"] == "steps"
    several = made(tmp_path, AXOLOTL, "data.mix=[a.jsonl,b.jsonl]")
    assert nested(several.settings)["data"] == {
        "mix": ["a.jsonl", "b.jsonl"],
        "train_on": "responses",
        "eval_fraction": 0.05,
    }
