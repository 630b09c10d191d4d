"""What is written of a run holds its references as the user wrote them, and no secret."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import write_yaml

from unsloth_accel.config.read_run import from_dict, load
from unsloth_accel.config.written import as_yaml, described, variables_of
from unsloth_accel.errors import ConfigError, Problem
from unsloth_accel.secret import HIDDEN, Secret, is_secret, shown, shown_word

TOKEN = "hf_aSecretThatNobodyShouldSee"
VARIABLE = "UNSLOTH_ACCEL_TRAINING_HUB_TOKEN"


@pytest.mark.parametrize(
    "key", ["training.hub_token", "token", "a.HF_TOKEN", "a.api_key", "wandb_api_key", "password", "HUB_TOKEN"]
)
def test_names_of_secrets(key: str) -> None:
    assert is_secret(key)
    problem = Problem(key=key, value=TOKEN, consequence="is wrong.", fix="mend it")
    assert TOKEN not in f"{problem} {problem!r}"
    assert shown_word(f"{key}={TOKEN}") == f"{key}={HIDDEN}"


@pytest.mark.parametrize("key", ["training.eos_token", "pad_token", "max_tokens", "tokens", "data.token_column", "key"])
def test_names_that_are_none(key: str) -> None:
    assert not is_secret(key)
    assert str(Problem(key=key, value="<|end|>", consequence="x.", fix="y")).count("<|end|>") == 1


def test_a_secret_is_a_text_that_nothing_shows() -> None:
    secret = Secret(TOKEN)
    assert (secret, f"Bearer {secret}") == (TOKEN, f"Bearer {TOKEN}")
    assert TOKEN not in repr([secret, {"a": secret}])
    assert copy.deepcopy({"a": secret})["a"] is secret
    assert pickle.loads(pickle.dumps({"a": secret})) == {"a": None}
    assert shown({"token": TOKEN, "list": [{"api_key": TOKEN}, secret], "eos_token": "</s>"}) == {
        "token": HIDDEN,
        "list": [{"api_key": HIDDEN}, HIDDEN],
        "eos_token": "</s>",
    }
    assert shown({"hub_token": "${oc.env:HF_TOKEN}"}) == {"hub_token": "${oc.env:HF_TOKEN}"}
    assert shown({"hub_token": f"${{oc.env:HF_TOKEN,{TOKEN}}}"}) == {"hub_token": HIDDEN}


def written(run: Any) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(as_yaml(described(run), run))
    return values


def test_references_stay_references(description: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("RATE", "1e-3")
    monkeypatch.setenv("ROWS", str(Path(description["data"]["path"]).parent))
    given = {**description, "data": {"path": "${oc.env:ROWS}/rows.jsonl", "eval_path": "${data.path}"}}
    given["training"] = {"hub_token": "${oc.env:HF_TOKEN}", "learning_rate": "${oc.decode:${oc.env:RATE}}"}
    given["lora"] = {"r": 16, "alpha": "${lora.r}", "target_modules": ["q_proj", "${oc.env:MODULE,v_proj}"]}
    run = from_dict(given)
    assert (run.training["hub_token"], run.training["learning_rate"], run.lora.alpha) == (TOKEN, 1e-3, 16)
    kept = written(run)
    assert kept["data"]["path"] == "${oc.env:ROWS}/rows.jsonl"
    assert kept["data"]["eval_path"] == "${data.path}"
    assert kept["training"] == given["training"]
    assert (kept["lora"]["alpha"], kept["lora"]["target_modules"]) == ("${lora.r}", given["lora"]["target_modules"])
    assert variables_of(run) == {}
    assert from_dict(kept) == run
    monkeypatch.setenv("HF_TOKEN", "another")
    assert from_dict(kept).training["hub_token"] == "another", "on another machine, its own"
    # What was decided otherwise, or no longer has what it refers to, is written as it is.
    values = described(run)
    values["lora"]["alpha"] = 64
    del values["data"]["path"]
    text = yaml.safe_load(as_yaml(values, run))
    assert text["lora"]["alpha"] == 64
    assert text["data"]["eval_path"] == run.data.eval_path


@pytest.mark.parametrize(
    "training",
    [
        {"hub_token": TOKEN},
        {"hub_token": f"${{oc.env:NOT_SET,{TOKEN}}}"},
        {"hub_token": "${training.run_name}", "run_name": TOKEN},
        {"hub_token": TOKEN, "run_name": f"my-{TOKEN}"},
        {"lr_scheduler_kwargs": {"token": TOKEN, "num_cycles": 2}},
        {"lr_scheduler_kwargs": json.dumps({"token": TOKEN})},
        {"lr_scheduler_kwargs": {"a": [{"password": TOKEN}]}},
        {"lr_scheduler_kwargs": {"a": {}, "a.b": {"token": TOKEN}, 3: {"token": TOKEN}}},
    ],
    ids=["plain", "default", "referred to", "inside another", "nested", "json", "list", "dots and numbers"],
)
def test_a_secret_is_not_written(
    training: dict[str, Any], description: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = from_dict({**description, "training": training})
    text = as_yaml(described(run), run)
    assert TOKEN not in text + repr(run)
    variables = variables_of(run)
    assert all(TOKEN in value for value in variables.values())
    assert variables
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    again = from_dict(yaml.safe_load(text))
    assert again == run, "the processes of the launch have it"
    assert TOKEN not in as_yaml(described(again), again) + repr(again)
    for name in variables:
        monkeypatch.delenv(name)
    assert TOKEN not in str(described(from_dict(yaml.safe_load(text)))), "and nobody else"


def test_a_run_that_was_made_in_python(description: dict[str, Any]) -> None:
    run = from_dict(description)
    run.training = {"hub_token": TOKEN}
    assert TOKEN not in as_yaml(described(run), run) + str(described(run))
    assert variables_of(run) == {VARIABLE: TOKEN}


def test_a_reference_that_leads_nowhere_says_what_to_set(description: dict[str, Any], tmp_path: Path) -> None:
    file = write_yaml(tmp_path / "run.yaml", {**description, "training": {"hub_token": "${oc.env:NOT_SET}"}})
    with pytest.raises(ConfigError) as caught:
        load(file)
    (problem,) = caught.value.problems
    assert (problem.key, problem.fix) == ("training.hub_token", "export NOT_SET=…")
    with pytest.raises(ConfigError) as caught:
        load(file, [f"training.hub_token=[{TOKEN}"])
    assert TOKEN not in str(caught.value).replace(str(file), "")


def test_a_field_that_is_refused_does_not_show_its_secret(description: dict[str, Any]) -> None:
    for value in ({"token": TOKEN}, json.dumps({"token": TOKEN})):
        with pytest.raises(ConfigError) as caught:
            from_dict({**description, "training": {"model_init_kwargs": value}})
        assert TOKEN not in str(caught.value)
