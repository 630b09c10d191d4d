"""Runs that don't fit their checkpoints: told before any process starts, without torch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import decided, finished_run, launched, write_checkpoint, write_yaml
from row_files import CHAT, write

from unsloth_accel.artifacts.checkpoints import RECORD, find_checkpoints
from unsloth_accel.artifacts.resume_facts import made_with, resume_problems, steps_problem
from unsloth_accel.config.read_run import load
from unsloth_accel.config.run_config import RunConfig
from unsloth_accel.errors import ConfigError
from unsloth_accel.hardware.device import Device
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.launch.launcher import plan_problems
from unsloth_accel.planning.planner import plan

CPU = Hardware(cpu_cores=2, host_memory_gib=8, reason="no driver")
GPU = Device(name="GPU", index=0, memory_gib=80, compute_capability=(9, 0))
TWO = Hardware(devices=(GPU, replace(GPU, index=1)), cpu_cores=8, host_memory_gib=64)

CHANGES: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "rank": ({"lora": {"r": 8}}, "lora.r", "8", "16"),
    "modules": ({"lora": {"target_modules": ["q_proj"]}}, "lora.target_modules", "['q_proj']", "down_proj"),
    "scale": ({"lora": {"alpha": 32}}, "lora.alpha", "32", "16"),
    "batch": ({"batch": {"global_size": 4}}, "batch.global_size", "4", "8"),
    "seed": ({"training": {"seed": 1}}, "training.seed", "1", "42"),
    "tokens": ({"model": {"max_seq_length": 512}}, "model.max_seq_length", "512", "2048"),
}


@pytest.mark.parametrize("record", [True, False], ids=["recorded", "not recorded"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_run_must_fit_its_checkpoint(
    name: str, record: bool, description: dict[str, Any], planned: RunConfig, tmp_path: Path
) -> None:
    """Both values are named. Without a record PEFT's adapter_config.json tells what it knows."""
    change, key, now, before = CHANGES[name]
    write_checkpoint(tmp_path / "out" / "checkpoint-2", planned, record=record)
    assert resume_problems(planned) == []
    merged = {section: {**description.get(section, {}), **values} for section, values in change.items()}
    changed = decided({**description, **merged})
    problems = resume_problems(changed)
    if not record and not key.startswith("lora"):
        assert problems == []
        return
    assert [(problem.key, problem.severity) for problem in problems] == [(key, "error")]
    assert now in str(problems[0].value)
    assert f"checkpoint-2 was made with {before}" in problems[0].consequence or before in problems[0].consequence


def test_a_changed_mix_is_told_once(description: dict[str, Any], planned: RunConfig, tmp_path: Path) -> None:
    def told(given: dict[str, Any], **changes: Any) -> list[str]:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        write_checkpoint(tmp_path / "out" / "checkpoint-2", decided(given))
        changed = {section: {**given.get(section, {}), **values} for section, values in changes.items()}
        return [f"{one.severity} {one.key}" for one in resume_problems(decided({**given, **changed}))]

    rows = description["data"]["path"]
    other = str(write(tmp_path / "other.jsonl", [CHAT]))

    def mixed(path: str, *weights: float) -> dict[str, Any]:
        return {"mix": [{"path": one, "weight": weight} for one, weight in zip((path, other), weights, strict=True)]}

    mix = {**description, "data": mixed(rows, 1, 3)}
    assert told(mix) == []
    moved = str(shutil.copy(rows, tmp_path / "moved.jsonl"))
    assert told(mix, data=mixed(moved, 1, 3)) == told(mix, data=mixed(rows, 0.25, 0.75)) == []
    assert told(mix, data=mixed(rows, 2, 3)) == ["error data.mix"]
    assert told(mix, data={"mix": [], "path": rows}) == ["error data.mix"]
    assert told(description, data={"mix": [rows], "path": ""}) == ["error data.mix"]
    assert told(mix, data={"eval_fraction": 0.5}) == ["error data.eval_fraction"]
    assert told(mix, data={"max_rows": 1}) == ["error data.max_rows"]
    assert told(mix, data={"stopping_strategy": "all_exhausted"}) == ["error data.stopping_strategy"]
    assert told(mix, training={"seed": 1}) == ["error training.seed"], "at an epoch's end, too"


@pytest.mark.parametrize("made_as", ["one table", "a table each"])
@pytest.mark.parametrize("record", [True, False], ids=["recorded", "not recorded"])
def test_tied_tables_go_on_as_they_were_made(
    made_as: str, record: bool, description: dict[str, Any], tmp_path: Path
) -> None:
    """Unsloth trains tied embeddings and head as one table on a GPU, and as two on a CPU."""
    lora = {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}
    run = decided({**description, "lora": lora})
    path = write_checkpoint(tmp_path / "out" / "checkpoint-2", run, record=record)
    made, on_gpu = path / "adapter_config.json", made_as == "one table"
    config = json.loads(made.read_text(encoding="utf-8")) | {"ensure_weight_tying": on_gpu}
    config["modules_to_save"] = ["embed_tokens"] if on_gpu else ["embed_tokens", "lm_head"]
    made.write_text(json.dumps(config), encoding="utf-8")
    if record:
        told = json.loads((path / RECORD).read_text(encoding="utf-8"))
        told["files"][made.name] = made.stat().st_size
        (path / RECORD).write_text(json.dumps(told), encoding="utf-8")
    assert resume_problems(run) == resume_problems(run, one_table=on_gpu) == []
    (problem,) = resume_problems(run, one_table=not on_gpu)
    assert str(problem).startswith(f"error: distributed.device: checkpoint-2 was made with {made_as} for embed_tokens")
    words = ["training.resume=true", "distributed.num_processes=2", "distributed.device=auto", "training.bf16=false"]
    file = write_yaml(tmp_path / "run.yaml", {**description, "lora": lora})
    with pytest.raises(ConfigError, match=r"distributed\.device: checkpoint-2 was made with"):
        launched(file, *words, hardware=CPU if on_gpu else TWO)
    launched(file, *words, hardware=TWO if on_gpu else CPU)
    planned = plan(load(file, words), CPU if on_gpu else TWO)
    assert [one.key for one in plan_problems(planned)] == ["distributed.device"]
    assert planned.spec is not None
    assert plan_problems(replace(planned, spec=replace(planned.spec, tie_word_embeddings=False))) == []


@pytest.mark.parametrize("record", [True, False], ids=["recorded", "not recorded"])
def test_modules_that_are_trained_whole_beside_others_are_the_same(
    record: bool, description: dict[str, Any], tmp_path: Path
) -> None:
    """PEFT's config and run.yaml have them in a list of their own."""
    lora = {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}
    run = decided({**description, "lora": lora})
    write_checkpoint(tmp_path / "out" / "checkpoint-2", run, record=record)
    assert resume_problems(run) == []
    fewer = decided({**description, "lora": lora | {"modules_to_save": ["lm_head"]}})
    (problem,) = resume_problems(fewer)
    assert problem.key == ("lora.modules_to_save" if record else "lora.target_modules")


@pytest.mark.parametrize("record", [True, False], ids=["recorded", "not recorded"])
def test_lists_without_order_are_the_same_in_any(record: bool, description: dict[str, Any], tmp_path: Path) -> None:
    lora: dict[str, Any] = {
        "target_modules": ["v_proj", "q_proj"],
        "modules_to_save": ["lm_head", "embed_tokens"],
        "layers_to_transform": [1, 0],
    }
    run = decided({**description, "lora": lora})
    write_checkpoint(tmp_path / "out" / "checkpoint-2", run, record=record)
    turned = {key: value[::-1] for key, value in lora.items()}
    assert resume_problems(decided({**description, "lora": turned})) == []
    fewer = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "layers_to_transform": [0]}
    for key, other in fewer.items():
        told = resume_problems(decided({**description, "lora": turned | {key: other}}))
        assert not record or [one.key for one in told] == [f"lora.{key}"]
    every = {key: value for key, value in lora.items() if key != "layers_to_transform"}  # would drop what was trained
    told = resume_problems(decided({**description, "lora": every}))
    assert not record or [one.key for one in told] == ["lora.layers_to_transform"]


def test_a_mapping_that_was_empty_is_taken_back_by_its_fix(description: dict[str, Any], tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "out" / "checkpoint-2", decided(description))
    given = {**description, "data": {**description["data"], "chat_template_kwargs": {"a": 1}}}
    (problem,) = resume_problems(decided(given))
    fix = problem.fix.partition(",")[0]
    assert fix == "data.chat_template_kwargs=null"
    assert load(write_yaml(tmp_path / "run.yaml", given), [fix]).data.chat_template_kwargs == {}


def test_markers_are_told_as_they_are_written(description: dict[str, Any], tmp_path: Path) -> None:
    marked = {"train_on": "responses", "instruction_marker": "[user]\n", "response_marker": "[model]\n"}
    write_checkpoint(tmp_path / "out" / "checkpoint-2", decided({**description, "data": description["data"] | marked}))
    _, _, problem = resume_problems(decided(description))
    assert problem.key == "data.response_marker"
    assert 'was made with "[model]\\n"' in problem.consequence
    assert problem.fix.startswith("give the marker that it was made with")


def test_another_rate_for_embeddings_is_told(description: dict[str, Any], tmp_path: Path) -> None:
    def problems(before: float | None, now: float | None) -> list[str]:
        runs = [
            decided(
                {
                    **description,
                    "lora": {"modules_to_save": ["lm_head"]},
                    "training": {**description.get("training", {}), "embedding_learning_rate": rate},
                }
            )
            for rate in (before, now)
        ]
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        write_checkpoint(tmp_path / "out" / "checkpoint-2", runs[0])
        return [f"{one.severity} {one.key}" for one in resume_problems(runs[1])]

    key = "training.embedding_learning_rate"
    assert problems(1e-5, 1e-5) == []
    assert problems(1e-5, 2e-5) == [f"warning {key}"]
    assert problems(None, 2e-5) == problems(2e-5, None) == [f"error {key}"]


@pytest.mark.parametrize("record", [True, False], ids=["recorded", "not recorded"])
def test_another_base_is_refused(record: bool, description: dict[str, Any], planned: RunConfig, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "out" / "checkpoint-2", planned, record=record)
    shutil.copytree(tmp_path / "model", tmp_path / "other")
    (problem,) = resume_problems(decided({**description, "model": {"name": str(tmp_path / "other")}}))
    assert (problem.key, problem.value) == ("model.name", str(tmp_path / "other"))
    assert str(tmp_path / "model") in problem.consequence


def test_unsloths_own_copy_of_the_base_is_the_base(planned: RunConfig, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "out" / "checkpoint-2", planned, record=False)
    config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = "unsloth/llama-3.2-1b-instruct-unsloth-bnb-4bit"
    (path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    planned.model.name = "meta-llama/Llama-3.2-1B-Instruct"
    assert resume_problems(planned) == []
    planned.model.name = "meta-llama/Llama-3.2-3B-Instruct"
    assert [problem.key for problem in resume_problems(planned)] == ["model.name"]


WHOLE: dict[str, tuple[list[str], dict[str, Any]]] = {
    "both": (["q_proj", "embed_tokens", "lm_head"], {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "tied": (
        ["q_proj", "embed_tokens", "lm_head"],
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "experts": (
        ["q_proj", "up_proj", "gate_proj", "down_proj"],
        {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
    ),
}


@pytest.mark.parametrize("record", [True, False], ids=["recorded", "not recorded"])
@pytest.mark.parametrize("name", WHOLE)
def test_modules_for_which_peft_has_lists_of_their_own(
    name: str, record: bool, description: dict[str, Any], tmp_path: Path
) -> None:
    """The embeddings that Unsloth trains whole, and experts: the same run goes on, with others it doesn't."""
    modules, said = WHOLE[name]
    run = decided({**description, "lora": {"target_modules": modules}})
    path = write_checkpoint(tmp_path / "out" / "checkpoint-2", run, record=record)
    file = path / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | {"target_modules": ["q_proj"], **said}
    file.write_text(json.dumps(config), encoding="utf-8")
    if record:
        values = json.loads((path / RECORD).read_text(encoding="utf-8"))
        values["files"][file.name] = file.stat().st_size
        (path / RECORD).write_text(json.dumps(values), encoding="utf-8")
    assert told(run) == []
    run.lora.target_modules = ["q_proj"]
    assert told(run) == [("lora.target_modules", "error")]


def test_other_rows_are_refused(planned: RunConfig, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "out" / "checkpoint-2", planned)
    moved = tmp_path / "moved.jsonl"
    shutil.move(planned.data.path, moved)
    planned.data.path = str(moved)
    assert resume_problems(planned) == []
    moved.write_text('{"text": "b"}\n' * 8, encoding="utf-8")
    assert [(problem.key, problem.severity) for problem in resume_problems(planned)] == [("data.path", "error")]


@pytest.mark.parametrize(
    ("key", "before", "now"),
    [("learning_rate", 1e-3, 1e-4), ("adam_beta2", 0.999, 0.9), ("optim_args", "nesterov=true", "nesterov=false")],
)
def test_what_the_restored_optimizer_has_its_own_of_is_told(
    key: str, before: Any, now: Any, planned: RunConfig, tmp_path: Path
) -> None:
    planned.training[key] = before
    write_checkpoint(tmp_path / "out" / "checkpoint-2", planned)
    planned.training[key] = now
    (problem,) = resume_problems(planned)
    assert (problem.key, problem.severity) == (f"training.{key}", "warning")


TRIED = {
    *(("single", "single"), ("single", "ddp"), ("ddp", "single"), ("ddp", "ddp")),
    *(("fsdp2_native", "single"), ("fsdp2_native", "ddp"), ("fsdp2_native", "fsdp2_native"), ("fsdp2", "fsdp2")),
}
"""From and to: what a run can go on with."""


@pytest.mark.parametrize("before", ["single", "ddp", "fsdp2", "fsdp2_native"])
@pytest.mark.parametrize("now", ["single", "ddp", "fsdp2", "fsdp2_native"])
def test_strategies_that_read_each_others_checkpoints(
    before: str, now: str, planned: RunConfig, tmp_path: Path
) -> None:
    planned.distributed.strategy = before
    write_checkpoint(tmp_path / "out" / "checkpoint-2", planned)
    planned.distributed.strategy = now
    keys = [problem.key for problem in resume_problems(planned)]
    assert keys == ([] if (before, now) in TRIED else ["distributed.strategy"])


def test_another_number_of_processes(planned: RunConfig, tmp_path: Path) -> None:
    """Goes on with the same rows, unless the order of rows depends on the number, or dropout draws per process."""
    write_checkpoint(tmp_path / "out" / "checkpoint-2", planned)
    planned.distributed.num_processes = 4
    assert resume_problems(planned) == []
    planned.lora.dropout = 0.1
    assert [(p.key, p.severity) for p in resume_problems(planned)] == [("lora.dropout", "warning")]
    planned.training["train_sampling_strategy"] = "group_by_length"
    assert ("distributed.num_processes", "error") in [(p.key, p.severity) for p in resume_problems(planned)]


@pytest.fixture
def at(planned: RunConfig, tmp_path: Path) -> Callable[..., None]:
    """Write a checkpoint of `planned` at a step, with facts beside those that are known before training."""

    def write(step: int, **facts: Any) -> None:
        path = write_checkpoint(tmp_path / "out" / f"checkpoint-{step}", planned)
        record = json.loads((path / RECORD).read_text(encoding="utf-8"))
        record["made_with"] |= facts
        (path / RECORD).write_text(json.dumps(record), encoding="utf-8")

    return write


def told(run: RunConfig) -> list[tuple[str, str]]:
    return [(problem.key, problem.severity) for problem in resume_problems(run)]


ORDER = [
    ("training.seed", 7),
    ("training.data_seed", 7),
    ("training.train_sampling_strategy", "sequential"),
    ("training.train_sampling_strategy", "group_by_length"),
]


@pytest.mark.parametrize(("key", "value"), ORDER)
def test_another_order_in_mid_epoch(key: str, value: Any, at: Callable[..., None], planned: RunConfig) -> None:
    """Is refused, with ways that work; at an epoch's end it is a new order from there on."""
    at(6, steps_per_epoch=4, rows=26)
    assert told(planned) == []
    planned.training[key.removeprefix("training.")] = value
    (problem,) = resume_problems(planned)
    assert (problem.key, problem.severity, problem.value) == (key, "error", value)
    assert "checkpoint-6 was made with" in problem.consequence
    assert f"{key}={'null' if key == 'training.data_seed' else ''}" in problem.fix
    assert "epoch's end" not in problem.fix, "there is none to go on from"
    saved = planned.training.pop(key.removeprefix("training."))
    at(4, steps_per_epoch=4, rows=26)
    planned.training[key.removeprefix("training.")] = saved
    assert "or go on from checkpoint-4, an epoch's end: move the later ones away" in resume_problems(planned)[0].fix
    at(8, steps_per_epoch=4, rows=26)
    before = made_with(planned)[key]
    planned.training[key.removeprefix("training.")] = {"sequential": "random", "group_by_length": "sequential"}.get(
        str(value), 8
    )
    assert before != made_with(planned)[key]
    assert told(planned) == [(key, "warning")]


@pytest.mark.parametrize("step", [6, 8], ids=["mid-epoch", "epoch's end"])
def test_another_seed_of_rows_shuffled_beforehand(step: int, at: Callable[..., None], planned: RunConfig) -> None:
    """Is refused at an epoch's end too, and going on from one is no way out: every epoch has other rows at a place."""
    planned.training["shuffle_dataset"] = True
    at(4, steps_per_epoch=4, rows=26)
    at(step, steps_per_epoch=4, rows=26)
    planned.training["seed"] = 7
    assert told(planned) == [("training.seed", "error")]
    assert "epoch's end" not in resume_problems(planned)[0].fix


def test_the_older_name_of_grouping(at: Callable[..., None], planned: RunConfig) -> None:
    planned.training["group_by_length"] = True
    at(6, steps_per_epoch=4)
    del planned.training["group_by_length"]
    planned.training["train_sampling_strategy"] = "group_by_length"
    assert told(planned) == []


@pytest.mark.parametrize(
    ("step", "rows", "severity"),
    [(5, 26, ["error"]), (4, 26, ["error"]), (3, 26, []), (2, 26, []), (5, 24, []), (9, 24, [])],
    ids=["later epoch", "one end", "other end", "first epoch", "no rest", "no rest, later"],
)
def test_a_last_step_that_is_dropped(
    step: int, rows: int, severity: list[str], at: Callable[..., None], planned: RunConfig
) -> None:
    """Epochs of 26 rows have 4 or 3 steps of 8; where there is no rest, or none has ended, the rows stay the same."""
    at(step, steps_per_epoch=4, rows=rows)
    planned.training["dataloader_drop_last"] = True
    assert told(planned) == [("training.dataloader_drop_last", one) for one in severity]
    if severity:
        (problem,) = resume_problems(planned)
        assert "was made with False" in problem.consequence
        assert "training.dataloader_drop_last=False" in problem.fix


TOKENS = [
    ("packing", True),
    ("truncation_mode", "keep_end"),
    ("shuffle_dataset", True),
    ("eos_token", "</s>"),
]
TEMPLATES = [
    ("model.chat_template", "chatml"),
    ("model.chat_template", "template.jinja"),
    ("model.added_tokens", ["<think>"]),
    ("data.chat_template_kwargs", {"enable_thinking": False}),
    ("data.response_marker", "### Answer:"),
]


@pytest.mark.parametrize(("key", "value"), TOKENS)
def test_other_rows_or_tokens(key: str, value: Any, at: Callable[..., None], planned: RunConfig) -> None:
    at(8, steps_per_epoch=4)
    planned.training[key] = value
    assert told(planned) == [(f"training.{key}", "error")]


@pytest.mark.parametrize(("key", "value"), TEMPLATES)
def test_another_template_or_other_tokens_of_it(
    key: str, value: Any, at: Callable[..., None], planned: RunConfig
) -> None:
    at(8, steps_per_epoch=4)
    section, name = key.split(".")
    setattr(getattr(planned, section), name, value)
    assert told(planned) == [(key, "error")]


def test_a_template_of_an_older_checkpoint_is_compared(
    at: Callable[..., None], planned: RunConfig, tmp_path: Path
) -> None:
    planned.model.chat_template = "chatml"
    at(2)
    (record,) = (tmp_path / "out").glob(f"checkpoint-*/{RECORD}")
    values = json.loads(record.read_text(encoding="utf-8"))
    facts = values["made_with"]
    facts["training.chat_template_path"] = facts.pop("model.chat_template")
    record.write_text(json.dumps(values), encoding="utf-8")
    assert told(planned) == []
    planned.model.chat_template = None
    assert told(planned) == [("model.chat_template", "error")]


def test_a_packing_strategy_counts_where_rows_are_packed(at: Callable[..., None], planned: RunConfig) -> None:
    at(2)
    planned.training["packing_strategy"] = "wrapped"
    assert told(planned) == []
    planned.training["packing"] = True
    at(4)
    planned.training["packing_strategy"] = "bfd"
    assert told(planned) == [("training.packing_strategy", "error")]


def test_a_template_is_known_by_its_text(at: Callable[..., None], planned: RunConfig, tmp_path: Path) -> None:
    file, moved = tmp_path / "a.jinja", tmp_path / "b.jinja"
    file.write_text("{{ messages }}", encoding="utf-8")
    planned.model.chat_template = str(file)
    at(2)
    file.rename(moved)
    planned.model.chat_template = str(moved)
    assert told(planned) == []
    moved.write_text("{{ messages[0] }}", encoding="utf-8")
    assert told(planned) == [("model.chat_template", "error")]
    assert resume_problems(planned)[0].fix.startswith("give the template that it was made with")


def test_a_checkpoint_from_before_these_facts(planned: RunConfig, tmp_path: Path) -> None:
    """Gives no alarm where it can't know; rows in groups of its time can't be gone on with in mid-epoch."""
    path = write_checkpoint(tmp_path / "out" / "checkpoint-6", planned)
    kept = ("method", "batch.global_size", "data.path", "model.name", "train_dataset", "training.seed", "lora.r")
    values = json.loads((path / RECORD).read_text(encoding="utf-8"))
    values["made_with"] = {key: values["made_with"].get(key, "26 rows") for key in kept}
    (path / RECORD).write_text(json.dumps(values), encoding="utf-8")
    changed = {"dataloader_drop_last": True, "packing": True, "eos_token": "</s>", "truncation_mode": "keep_end"}
    planned.training |= changed
    assert told(planned) == []
    planned.training["train_sampling_strategy"] = "group_by_length"
    assert told(planned) == [("training.train_sampling_strategy", "error")]
    state = {"global_step": 6, "epoch": 2.0}
    (path / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
    values["files"]["trainer_state.json"] = (path / "trainer_state.json").stat().st_size
    (path / RECORD).write_text(json.dumps(values), encoding="utf-8")
    assert told(planned) == [], "an epoch has ended there"


def test_rows_that_are_not_skipped(at: Callable[..., None], planned: RunConfig) -> None:
    at(6, steps_per_epoch=4)
    planned.training["ignore_data_skip"] = True
    assert told(planned) == [("training.ignore_data_skip", "warning")]
    at(8, steps_per_epoch=4)
    assert told(planned) == []


@pytest.mark.parametrize(("step", "before", "now", "refused"), [(5, 4, 3, True), (3, 4, 3, False), (3, 3, 4, False)])
def test_epochs_of_another_length(
    step: int, before: int, now: int, refused: bool, at: Callable[..., None], planned: RunConfig, tmp_path: Path
) -> None:
    at(step, steps_per_epoch=before)
    (checkpoint,) = find_checkpoints(tmp_path / "out")
    problem = steps_problem(checkpoint, now)
    assert (problem is not None) is refused
    assert steps_problem(checkpoint, before) is None
    assert steps_problem(checkpoint, None) is None


def test_a_finished_run_goes_on_only_with_more_steps(planned: RunConfig, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "out" / "checkpoint-6", planned)
    planned.training["max_steps"] = 6
    assert resume_problems(planned) == []  # its adapter was lost: going on writes it again
    finished_run(tmp_path / "out")
    assert [(p.key, p.severity) for p in resume_problems(planned)] == [("training.max_steps", "error")]
    planned.training["max_steps"] = 8
    (problem,) = resume_problems(planned)
    assert problem.severity == "warning"
    assert "the new adapter takes the old one's place" in problem.consequence


def test_a_finished_run_goes_on_only_with_more_epochs(planned: RunConfig, tmp_path: Path) -> None:
    """One that was counted in epochs has no number of steps to compare."""
    path = write_checkpoint(tmp_path / "out" / "checkpoint-6", planned, record=False)
    (path / "trainer_state.json").write_text('{"global_step": 6, "epoch": 3.0}', encoding="utf-8")
    finished_run(tmp_path / "out")
    for epochs, severity in ((3, "error"), (2.5, "error"), (4, "warning")):
        told = resume_problems(replace(planned, training=planned.training | {"num_train_epochs": epochs}))
        assert [problem.severity for problem in told] == [severity]
    (problem,) = resume_problems(planned)
    assert "has trained 3 epochs: nothing is left. Fix: a larger training.num_train_epochs" in str(problem)
    longer = planned.training | {"max_steps": 8}
    assert [problem.severity for problem in resume_problems(replace(planned, training=longer))] == ["warning"]


def test_what_a_run_is_made_with_survives_json(planned: RunConfig) -> None:
    assert json.loads(json.dumps(made_with(planned))) == made_with(planned)
