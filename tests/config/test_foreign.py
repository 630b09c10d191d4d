"""Other tools' files: each is known by its keys, and every key is translated or named with the reason."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from foreign_files import ACCELERATE, AXOLOTL, LLAMA_FACTORY, TRL, made, note
from omegaconf import OmegaConf

from unsloth_accel.config import read_run
from unsloth_accel.config.field_help import field_help
from unsloth_accel.config.foreign import TOOLS, recognise
from unsloth_accel.config.foreign.__main__ import MARKS, tables
from unsloth_accel.config.foreign.keys import Becomes, Chooses, Covered, Entry, Field, Theirs, Untranslated
from unsloth_accel.config.run_config import OWN_TRAINING_KEYS
from unsloth_accel.config.trainer_fields import training_fields
from unsloth_accel.config.translate import nested, translate
from unsloth_accel.errors import ConfigError
from unsloth_accel.files import filled
from unsloth_accel.methods import METHODS


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


def test_a_method_not_known_here_is_named_and_refused(tmp_path: Path) -> None:
    found = made(tmp_path, LLAMA_FACTORY | {"stage": "ppo"})
    assert found.settings["method"] == "ppo"
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
    assert filled(text, MARKS, tables()) == text, "run python -m unsloth_accel.config.foreign"
    for tool in TOOLS:
        assert all(f"`{key}`" in text for key in tool.keys)


@pytest.mark.parametrize(
    ("given", "here"),
    [("wandb", "wandb"), (["wandb"], "wandb"), (["wandb", "trackio"], ["wandb", "trackio"]), (["swanlab"], None)],
)
def test_one_tracker_or_several(tmp_path: Path, given: Any, here: Any) -> None:
    found = made(tmp_path, LLAMA_FACTORY | {"report_to": given}, gpus=2)
    assert found.settings.get("logging.report_to") == here
