"""Bad input of every kind: one clear line each, status 2, nothing trained, nothing written."""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, finished_run, write_checkpoint, write_yaml
from row_files import CHAT, write

from unsloth_accel.artifacts.checkpoints import checkpoints
from unsloth_accel.config.read_run import from_dict
from unsloth_accel.config.run_config import RunConfig
from unsloth_accel.data.rows import MOST_SHOWN
from unsloth_accel.errors import Problem
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.models.spec import ModelSpec
from unsloth_accel.validation.inputs import input_problems, output_problems

CPU = Hardware(cpu_cores=2, host_memory_gib=8, reason="no driver")


def refused(cli: Run, path: Path, *overrides: str) -> str:
    """What the command prints to stderr when it refuses; it must leave the output directory alone."""
    done = cli("launch", path, *overrides)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert not (path.parent / "out").exists()
    return done.stderr.strip()


@pytest.fixture
def file(tmp_path: Path, description: dict[str, Any]) -> Path:
    return write_yaml(tmp_path / "run.yaml", description)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.path=nowhere.jsonl", "data.path='nowhere.jsonl': no such file."),
        ("trainig.max_steps=2", "trainig: unknown key. Fix: did you mean training?"),
        ("lora.r=high", "lora.r='high': wrong type: int is needed, this is str."),
        ("model.name=./nowhere", "model.name='./nowhere': no such directory."),
        ("model.name=examples/data", "has no config.json, so it is not a model directory."),
        ("output_dir=/proc/forbidden", "below /proc"),
        ("output_dir=LICENSE/x", "is a file."),
        ("distributed.device=cuda", "no GPU is visible"),
        ("batch.global_size=7", "Fix: batch.global_size=6 or batch.global_size=8"),
        ("training.resume=true", "there is no checkpoint"),
        (f"output_dir={'x' * 300}", "can't be made or written"),
        ("data.path=LICENSE/x.jsonl", "Not a directory"),
        ("training.max_steps=${nothing}", "training.max_steps: Interpolation key 'nothing' not found."),
        ("model.name=~nobody-here/x", "no such directory."),
        ("model.name=examples/nothing", "no such directory."),
        ("training.eval_strategy=steps", "data.eval_path names none."),
        ("training.auto_find_batch_size=true", "batch.global_size would not hold."),
        ("training.fp16=true", "accelerate refuses fp16 there."),
        ("lora.dropout=5", "must be at least 0 and below 1."),
    ],
)
def test_the_command_refuses_in_one_line(cli: Run, file: Path, override: str, words: str) -> None:
    message = refused(cli, file, override)
    assert words in message
    assert len(message.splitlines()) == 1
    assert "Fix: " in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the file has no rows."),
        ("\n\n", "the file has no rows."),
        ('{"text": "a"}\n{"txt": "b"}\n', ":2: has none of the needed fields (fields: txt)."),
        ('{"text": "a"}\n{"text": "b"\n', ":2: malformed JSON"),
        ('{"text": "a"}\n[1]\n', ":2: is not a JSON object."),
        ('{"text": 5}\n', ":1: field 'text' is int, not text."),
        ('{"text": ""}\n', ":1: field 'text' is empty"),
        ('{"prompt": "a"}\n', ":1: has no field 'completion'"),
        ('{"messages": [{"role": "user"}]}\n', ":1: a message has no 'content' text."),
        ('{"messages": []}\n', ":1: `messages` is not a list of messages."),
        ('{"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}\n', ":1: `prompt` and `completion`"),
        ('{"prompt": [], "completion": []}\n', ":1: `prompt` is not a list of messages."),
        (
            '{"text": "a"}\n{"prompt": "a", "completion": "b"}\n',
            ":2: is a row of prompt-completion, and the first of text",
        ),
    ],
)
def test_bad_rows_are_named_with_their_line(cli: Run, file: Path, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "bad.jsonl").write_text(text, encoding="utf-8")
    message = refused(cli, file, f"data.path={tmp_path / 'bad.jsonl'}")
    assert words in message
    assert "Fix: " in message


def test_rows_without_an_answer(tmp_path: Path, description: dict[str, Any]) -> None:
    question = {"role": "user", "content": "?"}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": [question]}) + "\n", encoding="utf-8")
    data = {"path": str(path), "eval_path": str(path), "train_on": "responses"}
    run = from_dict({**description, "data": data, "evaluation": {"exact_match": True}, "batch": {"global_size": 1}})
    found = [problem.key for problem in input_problems(run)]
    assert found == ["data.train_on", "data.train_on", "evaluation.exact_match"]


def test_an_epoch_that_ends_in_a_smaller_step_is_told(description: dict[str, Any]) -> None:
    by_number = {"global_size": 3, "balance": "rows"}
    assert not input_problems(from_dict({**description, "batch": {"global_size": 3}}))  # no row is repeated
    (only,) = input_problems(from_dict({**description, "batch": by_number}))
    assert only.severity == "warning"
    assert "an epoch of 8 rows ends with a step of 2" in str(only)
    by_tokens = {**description, "batch": {"global_size": 3}}
    for training in ({"average_tokens_across_devices": False}, {"train_sampling_strategy": "group_by_length"}):
        (only,) = input_problems(from_dict({**by_tokens, "training": training}))
        assert "over several processes some rows are repeated there" in str(only), "balance falls back to rows"
        assert "balance=tokens" not in only.fix


def test_tokens_do_not_share_out_pairs(tmp_path: Path, description: dict[str, Any]) -> None:
    rows = write(tmp_path / "pairs.jsonl", [{"prompt": "?", "chosen": "a", "rejected": "b"}] * 8)
    pairs = {**description, "method": "dpo", "data": {"path": str(rows)}}
    (only,) = input_problems(from_dict({**pairs, "batch": {"global_size": 3, "balance": "rows"}}))
    assert "some rows are repeated there" in str(only)
    assert "batch.balance" not in only.fix, "it would help nothing"


def test_everything_wrong_is_told_in_one_go(cli: Run, file: Path) -> None:
    message = refused(cli, file, "data.path=none", "distributed.device=cuda", "model.name=./none")
    assert [line.split()[2].split("=")[0] for line in message.splitlines()] == [
        "distributed.device",
        "model.name",
        "data.path",
    ]


def test_a_directory_that_may_not_be_searched(description: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.stat

    def stat(path: Any, **kwargs: Any) -> os.stat_result:
        if str(path) == description["output_dir"]:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, **kwargs)

    monkeypatch.setattr(os, "stat", stat)
    (only,) = output_problems(from_dict(description))
    assert "can't be made or written" in str(only)


def test_a_place_that_is_a_link_to_nowhere(description: dict[str, Any], tmp_path: Path) -> None:
    """The directory itself, or one above it: a disk that is not mounted, say."""
    (tmp_path / "link").symlink_to("disk")
    for name in ("link", "link/runs/a"):
        (only,) = output_problems(from_dict({**description, "output_dir": str(tmp_path / name)}))
        assert f"{tmp_path / 'link'} is a link to {tmp_path / 'disk'}, which isn't there" in only.consequence
        assert only.fix.startswith(f"mkdir -p {tmp_path / 'disk'} ")
    (tmp_path / "disk").mkdir()
    assert output_problems(from_dict({**description, "output_dir": str(tmp_path / "link" / "runs" / "a")})) == []


def test_problems_of_model_and_data_come_together(description: dict[str, Any]) -> None:
    run = from_dict({**description, "model": {"name": "./none"}, "data": {"path": "none", "eval_path": "none"}})
    assert [problem.key for problem in input_problems(run)] == ["model.name", "data.path", "data.eval_path"]


def test_responses_need_chat_rows(description: dict[str, Any]) -> None:
    run = from_dict({**description, "data": {**description["data"], "train_on": "responses"}})
    assert [problem.key for problem in input_problems(run)] == ["data.train_on"]


def test_a_finished_run_is_kept(cli: Run, file: Path, tmp_path: Path, description: dict[str, Any]) -> None:
    kept = tmp_path / "out" / "adapter" / "adapter_model.safetensors"
    finished_run(tmp_path / "out")
    kept.write_text("precious", encoding="utf-8")
    done = cli("launch", file)
    assert done.returncode == 2
    assert "already holds a finished run" in done.stderr
    assert kept.read_text(encoding="utf-8") == "precious"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["accelerate.yaml", "adapter", "results.json"]
    told = from_dict({**description, "training": {"overwrite": True}})
    assert output_problems(told) == []


def test_checkpoints_of_an_unfinished_run_are_kept(tmp_path: Path, description: dict[str, Any]) -> None:
    for step in (10, 9):
        write_checkpoint(tmp_path / "out" / f"checkpoint-{step}", from_dict(description))
    (tmp_path / "out" / "checkpoint-x").mkdir()
    (tmp_path / "out" / "checkpoint-11").mkdir()  # cut short: without its last file
    assert [path.name for path in checkpoints(tmp_path / "out")] == ["checkpoint-9", "checkpoint-10"]
    assert "checkpoints up to checkpoint-10" in str(output_problems(from_dict(description))[0])
    told = output_problems(from_dict({**description, "training": {"resume": True}}))
    assert [problem.severity for problem in told] == ["warning"]
    assert "goes on from checkpoint-10" in told[0].consequence


@pytest.mark.parametrize(
    ("section", "package"),
    [({"training": {"use_liger_kernel": True}}, "liger-kernel"), ({"lora": {"init_lora_weights": "loftq"}}, "scipy")],
)
def test_what_needs_a_package_says_so(
    section: dict[str, Any], package: str, description: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    run = from_dict({**description, **section})
    (found,) = input_problems(run)
    assert f"{package}, which is not installed" in str(found)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert input_problems(run) == []


def test_a_server_needs_vllm_where_it_trains_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n', encoding="utf-8")
    nobody = {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": "http://127.0.0.1:9"}
    values = {"model": {"name": str(tmp_path)}, "data": {"path": str(tmp_path / "rows.jsonl")}, "training": nobody}
    more = {"method": "grpo", "rewards": {"functions": ["format"]}, "output_dir": str(tmp_path / "out")}
    run = from_dict(values | more)
    told = [str(one) for one in input_problems(run) if one.key.startswith("training.")]
    assert any("package vllm where it trains, too" in one for one in told)
    assert any("no server answers at http://127.0.0.1:9" in one for one in told)
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if name == "vllm" else found(name))
    assert not any("package vllm" in str(one) for one in input_problems(run))


def test_four_bit_needs_bitsandbytes(description: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from unsloth_accel.config.read_run import from_dict
    from unsloth_accel.validation import inputs

    description["model"]["load_in_4bit"] = True
    monkeypatch.setattr(inputs.importlib.util, "find_spec", lambda name: None)
    (found,) = [p for p in inputs.input_problems(from_dict(description)) if p.key == "model.load_in_4bit"]
    assert "needs the package bitsandbytes" in found.consequence
    assert "pip install bitsandbytes" in found.fix


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("broken.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n{"text": "b"}\n{"text": "\xe9"}\n', "broken.jsonl:4"),
        ("broken.csv", b"text\na\n\xff\n", "broken.csv:3: is not UTF-8 text (byte 1 of the line)."),
        ("more.csv", b"text\na,b\n", "more.csv:2: has more fields than the first line names."),
        ("quote.csv", b'text\n"a"b\n', "malformed CSV"),
        ("cut.json", b'[{"text": "a"},\n{"text"]', "cut.json:2: malformed JSON"),
        ("bad.parquet", b"PAR1 not", "can't be read as Parquet"),
        ("bad.arrow", b"not arrow at all", "can't be read as Arrow"),
        ("empty.csv", b"text\n", "the file has no rows."),
        ("roles.jsonl", b'{"conversations": [{"from": "cat", "value": "miaow"}]}', "a message is from 'cat'"),
        ("half.jsonl", b'{"instruction": "a"}', "has no field 'output'"),
        ("dumb.jsonl", b'{"instruction": "a", "output": " "}', "field 'output' is empty"),
        ("mute.jsonl", b'{"messages": [{"role": "user", "content": ""}]}', "there is nothing to learn"),
        (
            "mixed.jsonl",
            b'{"text": "a"}\n{"instruction": "a", "output": "b"}',
            ":2: is a row of messages, and the first",
        ),
    ],
)
def test_bad_files_are_told_by_the_command(
    tmp_path: Path, description: dict[str, Any], cli: Run, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    done = cli("launch", write_yaml(tmp_path / "run.yaml", description), f"data.path={tmp_path / name}")
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert all("Fix: " in line for line in done.stderr.strip().splitlines())
    assert not (tmp_path / "out").exists()


def test_rows_that_responses_leave_nothing_of(tmp_path: Path, description: dict[str, Any]) -> None:
    question = {"messages": [{"role": "user", "content": "?"}]}
    late = {"messages": [*CHAT["messages"], {"role": "user", "content": "?"}]}
    path = write(tmp_path / "rows.jsonl", [CHAT, *[question] * 25, late])
    run = from_dict({**description, "data": {"path": str(path), "train_on": "responses"}})
    (error, *_) = input_problems(run)
    assert error.severity == "error"
    assert "25 rows without an assistant's message" in str(error)
    assert "rows 2, 3, 4" in str(error)
    assert f"and {25 - MOST_SHOWN} more" in str(error)
    write(path, [CHAT, late])
    warning = input_problems(run)[0]
    assert (warning.severity, warning.key) == ("warning", "data.train_on")
    assert "(row 2)" in str(warning)


def test_markers_that_nobody_looks_for(tmp_path: Path, description: dict[str, Any]) -> None:
    def told(row: dict[str, Any], train_on: str) -> list[str]:
        path = write(tmp_path / "rows.jsonl", [row])
        data = {"path": str(path), "train_on": train_on, "instruction_marker": "Q:", "response_marker": "A:"}
        found = input_problems(from_dict({**description, "data": data}))
        return [str(one) for one in found if one.key == "data.response_marker"]

    assert told(CHAT, "responses") == told({"text": "Q: Is it? A: Yes."}, "responses") == []
    unheeded = {**CHAT, "messages": [*CHAT["messages"], {**CHAT["messages"][-1], "weight": 0}]}
    assert told(unheeded, "all") == [], "by which the message that isn't trained is found"
    assert "data.train_on=auto trains every token" in told({"text": "Q: Is it? A: Yes."}, "auto")[0]
    assert "rows of prompt-completion say" in told({"prompt": "Is it?", "completion": " Yes."}, "responses")[0]


def test_arguments_of_a_template_that_no_row_passes_through(tmp_path: Path, description: dict[str, Any]) -> None:
    def told(row: dict[str, Any], **changes: Any) -> list[str]:
        path = write(tmp_path / "rows.jsonl", [row] * 8)
        data = {"path": str(path), "chat_template_kwargs": {"enable_thinking": False}}
        found = input_problems(from_dict({**description, "data": data, **changes}))
        return [str(one) for one in found if one.key == "data.chat_template_kwargs"]

    question, answer = [{"role": "user", "content": "a"}], [{"role": "assistant", "content": "b"}]
    pair = {"prompt": question, "chosen": answer, "rejected": answer}
    assert told(CHAT) == told({"prompt": question, "completion": answer}) == told(pair, method="dpo") == []
    (word,) = told({"text": "a"})
    assert word.startswith("warning: data.chat_template_kwargs={'enable_thinking': False}: changes nothing")
    assert len(told({"prompt": "a", "completion": "b"})) == 1
    assert len(told({"prompt": "a", "chosen": "b", "rejected": "c"}, method="dpo")) == 1
    assert len(told({"prompt": "a"}, method="grpo", rewards={"functions": ["format"]})) == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{% for m in messages %}{{ m.content }}", "is no template of Jinja: line 1, Unexpected end of template"),
        ("\n{{ messages | tojsn }}", "is no template of Jinja: line 2, no filter named 'tojsn'"),
        ("{{ 2 ** (2 ** 26) }}" + "{% if a is sme %}{% endif %}", "line 1, no test named 'sme'"),
        (" \n", "is empty"),
        ("{% for m in messages %}{% generation %}{{ m }}{% endgeneration %}{% continue %}{% endfor %}", ""),
    ],
)
def test_a_file_of_a_chat_template(text: str, told: str, tmp_path: Path, description: dict[str, Any]) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text(text, encoding="utf-8")
    description["model"] |= {"chat_template": str(file)}
    found = [str(one) for one in input_problems(from_dict(description)) if one.key == "model.chat_template"]
    assert len(found) == bool(told)
    assert told in "".join(found)


def test_a_model_that_nobody_can_load_is_told(description: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(key="config.json: model_type", value="new", consequence="is no model.", fix="another model")
    spec = replace(ModelSpec.load(description["model"]["name"]), unloadable=(problem,))
    monkeypatch.setattr(ModelSpec, "load", lambda *_, **__: spec)
    assert problem in input_problems(from_dict(description))


def test_fewer_rows_than_a_batch(description: dict[str, Any]) -> None:
    small = {**description, "batch": {"global_size": 16}}
    (only,) = input_problems(from_dict(small))
    assert only.severity == "warning"
    assert "8 rows in all: every step is an epoch of 8, and never 16" in str(only)
    (only,) = input_problems(from_dict({**small, "training": {"dataloader_drop_last": True}}))
    assert only.severity == "error"
    assert "no step" in str(only)


def test_a_disk_without_room_for_checkpoints(description: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three, since the oldest goes last; a warning, since it is not the adapter's size that is known so well."""
    from types import SimpleNamespace

    from unsloth_accel.validation.inputs import room_problems

    run = from_dict(description)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=5 * 2**30))
    assert room_problems(run, 1.5) == room_problems(run, None) == []
    (only,) = room_problems(run, 2.0)
    assert (only.severity, only.key) == ("warning", "output_dir")
    assert "has 5.0 GiB left, and three checkpoints take 6.0 GiB. Fix: make room" in str(only)
    assert room_problems(from_dict({**description, "training": {"save_minutes": 0}}), 2.0) == []


def test_none_whole_is_refused(description: dict[str, Any], planned: RunConfig, tmp_path: Path) -> None:
    from unsloth_accel.validation.inputs import output_problems

    path = write_checkpoint(tmp_path / "out" / "checkpoint-2", planned)
    (path / "optimizer.pt").unlink()
    (problem,) = output_problems(from_dict({**description, "training": {"resume": True}}))
    assert problem.severity == "error"
    assert "checkpoint-2: optimizer.pt is missing" in problem.consequence
