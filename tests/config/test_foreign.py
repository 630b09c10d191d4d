"""Other tools' files: each is known by its keys, and every key is translated or named with the reason."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from omegaconf import OmegaConf

from unsloth_accel.config import read_run
from unsloth_accel.config.field_help import field_help
from unsloth_accel.config.foreign import TOOLS, recognise
from unsloth_accel.config.foreign.__main__ import filled
from unsloth_accel.config.foreign.keys import Becomes, Chooses, Covered, Entry, Field, Theirs, Untranslated
from unsloth_accel.config.run_config import OWN_TRAINING_KEYS
from unsloth_accel.config.trainer_fields import training_fields
from unsloth_accel.config.translate import Translation, nested, translate
from unsloth_accel.errors import ConfigError
from unsloth_accel.methods import METHODS

LLAMA_FACTORY = {
    "model_name_or_path": "org/model",
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "lora_rank": 4,
    "dataset": "mine",
    "template": "llama3",
    "max_samples": 10,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "lora_target": "q_proj, v_proj",
    "warmup_ratio": 0.1,
    "plot_loss": True,
    "output_dir": "saves/x",
    "report_to": ["wandb"],
    "run_name": None,
}
AXOLOTL = {
    "base_model": "org/model",
    "adapter": "qlora",
    "sequence_len": 1024,
    "datasets": [{"path": "org/rows", "type": "chat_template", "field_messages": "conversations"}],
    "val_set_size": 0.05,
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "lora_target_linear": True,
    "evals_per_epoch": 2,
    "saves_per_epoch": 1,
    "num_epochs": 2,
    "sample_packing": True,
    "optimizer": "adamw_8bit",
    "bf16": "auto",
    "wandb_project": "p",
    "wandb_entity": "",
    "special_tokens": {"pad_token": "<pad>"},
}
TRL = {
    "model_name_or_path": "org/model",
    "torch_dtype": "bfloat16",
    "use_peft": True,
    "load_in_4bit": True,
    "dataset_name": "org/rows",
    "dataset_config": "part",
    "max_seq_length": 512,
    "per_device_train_batch_size": 2,
    "evaluation_strategy": "no",
    "packing": True,
    "packing_strategy": "ffd",
    "chat_template": "{% for message in messages %}{{ message.content }}{% endfor %}",
}
ACCELERATE = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "FSDP", "num_processes": 4}


def made(tmp_path: Path, values: dict[str, Any], *overrides: str, gpus: int | None = None) -> Translation:
    """What becomes of a file with these keys."""
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return translate([tmp_path / "theirs.yaml"], overrides=overrides, gpus=gpus)


def note(translation: Translation, key: str) -> str:
    (line,) = (line for line in translation.lines if line.key == key)
    return line.outcome.note


def entries() -> Iterator[tuple[str, str, Entry]]:
    for tool in TOOLS:
        yield from ((tool.name, key, entry) for key, entry in {**tool.keys, **tool.families}.items())


@pytest.mark.parametrize(
    ("values", "name"),
    [(LLAMA_FACTORY, "LLaMA-Factory"), (AXOLOTL, "axolotl"), (TRL, "TRL"), (ACCELERATE, "accelerate")],
)
def test_a_file_is_known_by_its_keys(values: dict[str, Any], name: str) -> None:
    tool = recognise(values)
    assert tool is not None
    assert tool.name == name


def test_a_run_yaml_and_anything_else_is_no_other_tools() -> None:
    assert recognise(["a", "b"]) is None
    assert recognise(["model_name_or_path"]) is None
    for file in (ROOT / "examples" / "configs").glob("*.yaml"):
        assert recognise(OmegaConf.load(file)) is None
    for file in (ROOT / "accelerate_configs").glob("*.yaml"):
        tool = recognise(OmegaConf.load(file))
        assert tool is not None
        assert not tool.trains


def test_every_setting_that_a_record_makes_is_one() -> None:
    fields = {name for method in METHODS for name in training_fields(method.config_sources)}

    def exists(key: str) -> bool:
        section, _, name = key.partition(".")
        if section == "training":
            return name in fields or name in OWN_TRAINING_KEYS
        return key in field_help()

    for tool, key, entry in entries():
        if isinstance(entry, Becomes):
            assert exists(entry.key), (tool, key)
        elif isinstance(entry, Field):
            assert any(name in fields for name in entry.names), (tool, key)
        elif isinstance(entry, Chooses):
            assert all(exists(name) for settings in entry.values.values() for name in settings), (tool, key)


def test_every_reason_is_a_sentence_and_says_what_to_do() -> None:
    for tool, key, entry in entries():
        reasons = {Untranslated: "reason", Becomes: "otherwise", Chooses: "otherwise"}
        reason = next((getattr(entry, name) for kind, name in reasons.items() if isinstance(entry, kind)), "…")
        assert reason.endswith((".", "…")), (tool, key)
        if isinstance(entry, Covered):
            assert not entry.note.endswith("."), (tool, key)
        assert entry.here, (tool, key)


@pytest.mark.parametrize("values", [LLAMA_FACTORY, AXOLOTL, TRL])
def test_no_field_with_another_place_here_passes_as_it_is(tmp_path: Path, values: dict[str, Any]) -> None:
    elsewhere = {*read_run._ELSEWHERE, *read_run._REFUSED, *METHODS["sft"].elsewhere}
    found = made(tmp_path, dict.fromkeys(elsewhere - {"max_length", "max_seq_length"}, "strange") | values)
    assert not {f"training.{key}" for key in elsewhere} & {*found.settings}
    assert elsewhere - {"max_length", "max_seq_length"} <= {line.key for line in found.lines}


def test_llama_factorys_keys(tmp_path: Path) -> None:
    found = made(tmp_path, LLAMA_FACTORY, gpus=2)
    run = nested(found.settings)
    assert run["model"] == {"name": "org/model"}
    assert run["lora"] == {"r": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    assert run["data"] == {"path": "mine", "train_on": "responses", "max_rows": 10}
    assert run["batch"] == {"global_size": 16}
    assert run["training"]["learning_rate"] == 5e-5
    assert run["logging"] == {"report_to": "wandb"}
    assert {line.key for line in found.of_kind("named")} == {"dataset", "template"}
    assert {line.key for line in found.of_kind("covered")} >= {"do_train", "plot_loss"}
    assert found.counts == (13, 15)  # run_name is blank


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


def test_axolotls_keys(tmp_path: Path) -> None:
    found = made(tmp_path, AXOLOTL)
    run = nested(found.settings)
    assert run["model"] == {"name": "org/model", "max_seq_length": 1024, "load_in_4bit": True}
    assert run["data"] == {
        "path": "org/rows",
        "format": "chat",
        "columns": {"messages": "conversations"},
        "train_on": "responses",
        "eval_fraction": 0.05,
    }
    assert run["batch"] == {"global_size": 8}
    assert "one GPU is assumed" in note(found, "micro_batch_size")
    training = run["training"]
    assert (training["eval_strategy"], training["eval_steps"]) == ("steps", 0.25)
    assert (training["save_strategy"], training["save_steps"]) == ("steps", 0.5)
    assert (training["lr_scheduler_type"], training["packing"]) == ("cosine", True)
    assert "WANDB_PROJECT=p" in note(found, "wandb_project")
    assert found.of_kind("named") == []


@pytest.mark.parametrize(
    ("template", "model"),
    [
        ({"chat_template": "chatml"}, {"chat_template": "chatml"}),
        ({"chat_template": "tokenizer_default"}, {}),
        ({"chat_template": "jinja", "chat_template_jinja": "{{ messages }}"}, {"chat_template": "{{ messages }}"}),
        ({"chat_template": "jinja", "chat_template_jinja": "own.jinja"}, {"chat_template": "own.jinja"}),
        ({"chat_template": "jinja", "chat_template_jinja": "none.jinja"}, None),
        ({"chat_template": "llama3"}, None),
        ({"chat_template_kwargs": {"enable_thinking": False}, "tokens": ["<a>"]}, {"added_tokens": ["<a>"]}),
    ],
)
def test_axolotls_templates_and_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: dict[str, Any], model: dict[str, Any] | None
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.jinja").write_text("{{ messages }}", encoding="utf-8")
    values = {key: value for key, value in AXOLOTL.items() if key not in ("chat_template", "special_tokens")}
    found = made(tmp_path, values | template)
    run = nested(found.settings)
    named = {line.key for line in found.of_kind("named")}
    assert ("chat_template" in named) is (model is None)
    assert {key: run["model"][key] for key in ("chat_template", "added_tokens") if key in run["model"]} == (model or {})
    assert run["data"].get("chat_template_kwargs") == template.get("chat_template_kwargs")


def test_llama_factorys_template_that_is_unsloths(tmp_path: Path) -> None:
    found = made(tmp_path, LLAMA_FACTORY | {"template": "chatml", "add_tokens": "<a>,<b>", "resize_vocab": True})
    model = nested(found.settings)["model"]
    assert (model["chat_template"], model["added_tokens"]) == ("chatml", ["<a>", "<b>"])
    assert "template" not in {line.key for line in found.of_kind("named")}


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


def test_trls_keys(tmp_path: Path) -> None:
    found = made(tmp_path, TRL)
    run = nested(found.settings)
    assert run["model"].pop("chat_template") == TRL["chat_template"]
    assert run["model"] == {"name": "org/model", "dtype": "bfloat16", "load_in_4bit": True, "max_seq_length": 512}
    assert run["lora"] == {"r": 16, "alpha": 32, "dropout": 0.05}
    assert run["data"] == {"path": "org/rows", "subset": "part"}
    assert run["training"]["eval_strategy"] == "no"
    assert run["training"]["packing_strategy"] == "bfd"
    assert found.of_kind("named") == []


@pytest.mark.parametrize(
    ("mixture", "data"),
    [
        (
            {"datasets": [{"id": "org/rows", "config": "c", "split": "a"}], "test_split_size": 100},
            {
                "path": "org/rows",
                "subset": "c",
                "split": "a[:-100]",
                "eval_path": "org/rows",
                "eval_split": "a[-100:]",
            },
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


@pytest.mark.parametrize(
    ("values", "name"),
    [
        (LLAMA_FACTORY | {"stage": "ppo"}, "ppo"),
    ],
)
def test_a_method_not_known_here_is_named_and_refused(tmp_path: Path, values: dict[str, Any], name: str) -> None:
    found = made(tmp_path, values)
    assert found.settings["method"] == name
    assert any("this version trains sft" in line.outcome.note for line in found.of_kind("named"))
    with pytest.raises(ConfigError, match="method="):
        read_run.from_dict(nested({key: value for key, value in found.settings.items() if "template" not in key}))


def test_a_grpo_script_of_open_r1_is_translated(tmp_path: Path) -> None:
    values = {key: value for key, value in TRL.items() if key not in ("max_seq_length", "chat_template")} | {
        "reward_funcs": ["accuracy", "format", "cosine", "trl.rewards.think_format_reward"],
        "reward_weights": [1.0, 0.5, 1.0, 1.0],
        "cosine_max_len": 3000,
        "dataset_prompt_column": "problem",
        "max_prompt_length": 512,
        "max_completion_length": 1024,
        "num_generations": 16,
        "use_vllm": True,
        "vllm_server_host": "10.0.0.1",
    }
    run = nested(made(tmp_path, values).settings)
    assert run["method"] == "grpo"
    assert run["model"]["max_seq_length"] == 1536
    assert run["rewards"]["functions"] == [
        "accuracy",
        {"name": "format", "weight": 0.5},
        {"name": "cosine", "weight": 1.0, "arguments": {"max_len": 3000}},
        "think_format_reward",
    ]
    assert (run["data"]["format"], run["data"]["columns"]) == ("question", {"prompt": "problem"})
    wanted = {"num_generations": 16, "vllm_mode": "server", "vllm_server_host": "10.0.0.1", "use_vllm": True}
    assert {name: run["training"][name] for name in wanted} == wanted
    read_run.from_dict(run)


def test_vllm_without_a_server_is_named(tmp_path: Path) -> None:
    found = made(tmp_path, TRL | {"reward_funcs": ["accuracy"], "reward_weights": [1, 2], "use_vllm": True})
    told = {line.key: line.outcome.note for line in found.of_kind("named")}
    assert "training.vllm_mode=server" in told["use_vllm"]
    assert "no list of 1 number" in told["reward_weights"]
    assert "use_vllm" not in nested(found.settings)["training"]


def test_weights_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    found = made(tmp_path, TRL | {"reward_funcs": ["accuracy", "format"], "reward_weights": [1.0, "half"]})
    told = {line.key: line.outcome.note for line in found.of_kind("named")}
    assert "no list of 2 numbers" in told["reward_weights"]
    assert nested(found.settings)["rewards"]["functions"] == ["accuracy", "format"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            LLAMA_FACTORY | {"stage": "dpo", "pref_beta": 0.2, "pref_loss": "ipo"},
            {"method": "dpo", "training": {"beta": 0.2, "loss_type": ["ipo"]}},
        ),
        (
            LLAMA_FACTORY | {"stage": "dpo", "pref_loss": "sigmoid", "pref_ftx": 0.5},
            {"method": "dpo", "training": {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}},
        ),
        (
            LLAMA_FACTORY | {"stage": "dpo", "pref_loss": "orpo", "pref_beta": 0.3},
            {"method": "orpo", "training": {"beta": 0.3}},
        ),
        (
            LLAMA_FACTORY | {"stage": "kto", "kto_chosen_weight": 1.5, "kto_rejected_weight": 1.0},
            {"method": "kto", "training": {"desirable_weight": 1.5, "undesirable_weight": 1.0}},
        ),
        (LLAMA_FACTORY | {"stage": "rm"}, {"method": "reward", "training": {}}),
        (
            AXOLOTL | {"rl": "kto", "rl_beta": 0.2, "kto_desirable_weight": 0.5},
            {"method": "kto", "training": {"beta": 0.2, "desirable_weight": 0.5}},
        ),
        (
            AXOLOTL | {"rl": "ipo", "rl_beta": 0.2, "precompute_ref_log_probs": True},
            {"method": "dpo", "training": {"beta": 0.2, "loss_type": ["ipo"], "precompute_ref_log_probs": True}},
        ),
        (AXOLOTL | {"rl": "orpo", "orpo_alpha": 0.1}, {"method": "orpo", "training": {"beta": 0.1}}),
        (
            AXOLOTL | {"reward_model": True, "center_rewards_coefficient": 0.01},
            {"method": "reward", "training": {"center_rewards_coefficient": 0.01}},
        ),
        (
            TRL | {"beta": 0.01, "loss_type": "hinge", "max_prompt_length": 64, "precompute_ref_log_probs": True},
            {"method": "dpo", "training": {"beta": 0.01, "loss_type": ["hinge"], "precompute_ref_log_probs": True}},
        ),
        (
            TRL | {"beta": 0.2, "undesirable_weight": 0.5, "loss_type": "apo_zero_unpaired"},
            {"method": "kto", "training": {"beta": 0.2, "undesirable_weight": 0.5, "loss_type": "apo_zero_unpaired"}},
        ),
        (
            TRL | {"center_rewards_coefficient": 0.01},
            {"method": "reward", "training": {"center_rewards_coefficient": 0.01}},
        ),
    ],
)
def test_the_fields_of_another_method_are_translated(
    tmp_path: Path, values: dict[str, Any], expected: dict[str, Any]
) -> None:
    found = made(tmp_path, values)
    assert found.settings["method"] == expected["method"]
    settings = nested(found.settings)
    assert settings["training"].items() >= expected["training"].items()
    own = METHODS[expected["method"]].config_sources
    assert {*expected["training"]} <= {*training_fields(own)} - {*training_fields(METHODS["sft"].config_sources)} | {
        "loss_type"
    }
    assert not {"stage", "rl", "method", *expected["training"]} & {line.key for line in found.of_kind("named")}
    asked = [key for key in values if key.startswith(("pref_", "kto_", "rl", "orpo_", "beta", "loss_type"))]
    assert not {*asked} & {line.key for line in found.of_kind("named")}


@pytest.mark.parametrize(
    ("values", "key", "reason"),
    [
        (LLAMA_FACTORY | {"stage": "dpo", "pref_loss": "kto_pair"}, "pref_loss", "takes TRL's losses"),
        (LLAMA_FACTORY | {"stage": "dpo", "dpo_label_smoothing": 0.1}, "dpo_label_smoothing", "[robust]"),
        (LLAMA_FACTORY | {"stage": "dpo", "ref_model": "org/other"}, "ref_model", "the base is the reference"),
        (LLAMA_FACTORY | {"stage": "dpo", "pref_loss": "simpo"}, "stage", "this version trains sft"),
        (AXOLOTL | {"rl": "simpo"}, "rl", "this version trains sft"),
        (AXOLOTL | {"rl": "dpo", "dpo_label_smoothing": 0.1}, "dpo_label_smoothing", "[robust]"),
        (TRL | {"beta": 0.1, "ref_model_init_kwargs": {"dtype": "auto"}}, "ref_model_init_kwargs", "the base is"),
    ],
)
def test_what_a_preference_cannot_become_is_named(
    tmp_path: Path, values: dict[str, Any], key: str, reason: str
) -> None:
    found = made(tmp_path, values)
    assert key in [line.key for line in found.of_kind("named")]
    assert reason in note(found, key)


@pytest.mark.parametrize(
    "values", [LLAMA_FACTORY | {"finetuning_type": "full"}, AXOLOTL | {"adapter": ""}, TRL | {"use_peft": False}]
)
def test_training_all_weights_is_named(tmp_path: Path, values: dict[str, Any]) -> None:
    assert any("all weights were trained" in line.outcome.note for line in made(tmp_path, values).of_kind("named"))


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


def test_what_is_given_to_init_is_listed_as_it_is_written(tmp_path: Path) -> None:
    found = made(tmp_path, AXOLOTL, "model.name=my/model")
    (line,) = (line for line in found.lines if line.key == "base_model")
    assert line.outcome.settings == {"model.name": "my/model"}
    assert line.outcome.note == "given to init"


def test_what_the_run_may_not_say_is_taken_back_with_the_reason(tmp_path: Path) -> None:
    found = made(tmp_path, TRL | {"evaluation_strategy": "steps", "dataset_name": "rows.jsonl", "lora_dropout": 2})
    assert "needs held-out rows" in note(found, "evaluation_strategy")
    assert "below 1" in note(found, "lora_dropout")
    assert not {"training.eval_strategy", "lora.dropout"} & {*found.settings}


def test_a_key_of_no_record_is_named_and_a_wrong_value_too(tmp_path: Path) -> None:
    found = made(tmp_path, AXOLOTL | {"strange": 1, "contxt_parallel_size": 2, "learning_rate": "fast", "datasets": 7})
    assert "is no key of axolotl that is known here" in note(found, "strange")
    assert "did you mean context_parallel_size?" in note(found, "contxt_parallel_size")
    assert "float is needed" in note(found, "learning_rate")
    assert {"strange", "learning_rate", "datasets"} <= {line.key for line in found.of_kind("named")}


def test_what_a_file_says_is_written_though_it_is_so_here_anyway(tmp_path: Path) -> None:
    found = made(tmp_path, AXOLOTL | {"gradient_checkpointing": True, "tf32": False})
    assert found.settings["model.gradient_checkpointing"] == "unsloth"
    assert found.settings["training.tf32"] is False


def test_a_run_is_overwritten_where_the_file_does_so_and_goes_on_from_nothing(tmp_path: Path) -> None:
    overwrites = LLAMA_FACTORY | {"overwrite_output_dir": True}
    assert made(tmp_path, overwrites).settings["training.overwrite"] is True
    found = made(tmp_path, overwrites | {"resume_from_checkpoint": True})
    assert found.settings["training.resume"] is True
    assert "training.overwrite" not in found.settings
    assert "resume_from_checkpoint" not in {line.key for line in found.of_kind("named")}


def test_one_row_per_gpu_stays_one_row_per_gpu(tmp_path: Path) -> None:
    values = LLAMA_FACTORY | {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
    found = made(tmp_path, values)
    assert found.settings["training.per_device_train_batch_size"] == 1
    assert "batch.global_size" not in found.settings
    assert made(tmp_path, values, gpus=4).settings["batch.global_size"] == 4


def test_an_accelerate_config_says_how_many_gpus_there_were(tmp_path: Path) -> None:
    file = tmp_path / "accelerate.yaml"
    file.write_text(yaml.safe_dump(ACCELERATE | {"mixed_precision": "fp16"}), encoding="utf-8")
    words = ["train.py", "--model_name_or_path", "org/model", "--dataset-name=org/rows", "--use_peft"]
    words += ["--learning_rate", "1e-4"]
    found = translate([file], [*words, "--per_device_train_batch_size", "2", "--lora_target_modules", "a", "b"])
    assert found.settings["batch.global_size"] == 8
    assert found.settings["training.fp16"] is True
    assert found.settings["training.learning_rate"] == 1e-4
    assert found.settings["lora.target_modules"] == ["a", "b"]
    assert found.of_kind("named") == []
    # What the training says of precision goes before what the launch says, as in transformers.
    assert "training.fp16" not in translate([file], [*words, "--bf16"]).settings


def test_a_secret_is_neither_shown_nor_written(tmp_path: Path) -> None:
    found = made(tmp_path, TRL | {"hub_token": "hf_0123456789"})
    assert "hf_0123456789" not in str(found.lines)
    assert "training.hub_token" not in found.settings
    assert "export HF_TOKEN" in note(found, "hub_token")


def test_two_trainings_make_no_run(tmp_path: Path) -> None:
    for name, values in (("a.yaml", TRL), ("b.yaml", AXOLOTL)):
        (tmp_path / name).write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(ConfigError, match="one run is made"):
        translate([tmp_path / "a.yaml", tmp_path / "b.yaml"])


def test_an_entry_reads_any_value() -> None:
    for tool in TOOLS:
        for key, entry in {**tool.keys, **tool.families}.items():
            for value in (True, False, 0, 1, 2.5, "x", ["x"], {"x": 1}, -1):
                try:
                    outcome = entry.read(value, Theirs(values={**tool.defaults, key: value}))
                except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError):
                    continue  # named as no value of that tool's, by translate
                assert outcome.translated or outcome.note, (tool.name, key, value)


def test_the_page_has_every_key() -> None:
    text = (ROOT / "docs" / "migrating.md").read_text(encoding="utf-8")
    assert filled(text) == text, "run python -m unsloth_accel.config.foreign"
    for tool in TOOLS:
        assert all(f"`{key}`" in text for key in tool.keys)


@pytest.mark.parametrize(
    ("given", "here"),
    [("wandb", "wandb"), (["wandb"], "wandb"), (["wandb", "trackio"], ["wandb", "trackio"]), (["swanlab"], None)],
)
def test_one_tracker_or_several(tmp_path: Path, given: Any, here: Any) -> None:
    found = made(tmp_path, LLAMA_FACTORY | {"report_to": given}, gpus=2)
    assert found.settings.get("logging.report_to") == here
