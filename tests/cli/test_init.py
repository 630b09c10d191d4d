"""unsloth-accel init: writes a run.yaml that is valid, says what it could not translate, and replaces nothing."""

import json
import os
import re
from pathlib import Path

import pytest
import yaml
from conftest import CONFIG, EVAL, ROOT, TRAIN, write_weights
from foreign_files import ACCELERATE, AXOLOTL, LLAMA_FACTORY, TRL

from unsloth_accel.cli.main import main
from unsloth_accel.config.field_help import field_help
from unsloth_accel.config.read_run import load
from unsloth_accel.hardware.hardware import Hardware


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    write_weights(tmp_path / "model")
    return "model"


def test_without_a_file_every_field_is_there_with_its_help(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--model", model, "--data", str(TRAIN), "lora.r=8"]) == 0
    said = capsys.readouterr().out
    assert "plan     ddp, 2 processes, 16 rows per step" in said
    text = Path("run.yaml").read_text(encoding="utf-8")
    run = load("run.yaml")
    assert (run.model.name, run.data.path, run.lora.r, run.batch.global_size) == (model, str(TRAIN), 8, 16)
    assert run.output_dir == "runs/model"
    words = " ".join(re.sub(r"^ *# ?", "", line) for line in text.splitlines())
    for key, help_text in field_help().items():
        assert help_text in words or key == "references", key
        assert key == "references" or re.search(rf"^ *(# )?{key.rpartition('.')[2]}:", text, flags=re.MULTILINE), key
    # What is commented out is what happens: with every comment taken away the run is the same.
    bare = re.sub(r"^( *)# (\w+:)", r"\1\2", text, flags=re.MULTILINE)
    Path("bare.yaml").write_text(bare, encoding="utf-8")
    assert load("bare.yaml") == run


def test_several_data_sets_become_a_mix(model: str) -> None:
    assert main(["init", "--model", model, "--data", str(TRAIN), "--data", str(EVAL)]) == 0
    run = load("run.yaml")
    assert [one["path"] for one in run.data.mix] == [str(TRAIN), str(EVAL)]
    assert run.data.path == ""


@pytest.mark.parametrize("values", [LLAMA_FACTORY, AXOLOTL, TRL])
def test_another_tools_file_becomes_a_run_that_starts(
    values: dict[str, object], model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("theirs.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    rows = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    Path("rows.jsonl").write_text(rows * 40, encoding="utf-8")
    words = ["--model", model, "--data", "rows.jsonl"]
    overrides = ["lora.target_modules=all-linear", "data.columns={}", "data.eval_path=rows.jsonl", "data.subset=null"]
    overrides += ["logging.report_to=none"]  # a tracker would have to be installed
    assert main(["init", "--from", "theirs.yaml", *words, *overrides]) == 0
    said = capsys.readouterr().out
    text = Path("run.yaml").read_text(encoding="utf-8")
    for key in (key for key, value in values.items() if value not in (None, "")):
        assert f"{key}=" in said
    assert main(["validate", "run.yaml"]) == 0
    template = yaml.safe_load(text)["model"].pop("chat_template", None)
    assert template is None or Path(template).read_text(encoding="utf-8") == TRL["chat_template"]
    assert main(["launch", "run.yaml", "--dry-run"]) == 0
    for line in text.splitlines():  # what is not translated stands at the head
        assert not line.startswith("#") or "Made by" in line or "Not translated" in line or text.index(line) < 1000


def test_what_is_not_translated_stands_in_the_file_and_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    Path("theirs.yaml").write_text(yaml.safe_dump(LLAMA_FACTORY), encoding="utf-8")
    assert main(["init", "--from", "theirs.yaml", "--gpus", "4"]) == 0
    said = capsys.readouterr().out
    assert "read theirs.yaml (LLaMA-Factory): 13 of 15 keys translated" in said
    assert "lora_rank=4 → lora.r: 4, lora.alpha: 8 (lora_alpha is left out: twice the rank)" in said
    text = Path("run.yaml").read_text(encoding="utf-8")
    assert "# Not translated: template=llama3: " in text
    assert "  r: 4  # lora_rank\n" in text
    assert "  global_size: 32  # " in text


def test_no_secret_is_listed_or_written(capsys: pytest.CaptureFixture[str]) -> None:
    keys = {"wandb_api_key": "S3CRET", "aws_secret_access_key": "S3CRET"}
    keys |= {"mlflow_tracking_uri": "https://me:S3CRET@a.b/c", "base_model": "a/b", "adapter": "lora"}
    Path("axolotl.yml").write_text(yaml.safe_dump(keys), encoding="utf-8")
    assert main(["init", "--from", "axolotl.yml", "--data", "rows.jsonl"]) == 0
    said = capsys.readouterr().out + Path("run.yaml").read_text(encoding="utf-8")
    assert "mlflow_tracking_uri=https://(not shown)@a.b/c" in said
    assert "S3CRET" not in said


def test_an_accelerate_config_needs_the_scripts_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    Path("accelerate.yaml").write_text(yaml.safe_dump(ACCELERATE), encoding="utf-8")
    assert main(["init", "--from", "accelerate.yaml"]) == 2
    assert "--model" in capsys.readouterr().err
    words = ["--model_name_or_path", "org/model", "--dataset_name", "org/rows", "--per_device_train_batch_size", "2"]
    assert main(["init", "--from", "accelerate.yaml", "--", *words]) == 0
    assert load("run.yaml").batch.global_size == 8


def test_a_file_that_is_there_is_not_replaced(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("run.yaml").write_text("mine", encoding="utf-8")
    assert main(["init", "--model", model, "--data", "rows.jsonl"]) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
    assert Path("run.yaml").read_text(encoding="utf-8") == "mine"
    assert main(["init", "--model", model, "--data", "rows.jsonl", "--overwrite"]) == 0
    assert load("run.yaml").model.name == model


def test_neither_a_template_nor_the_file_that_is_read_is_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    Path("theirs.yaml").write_text(yaml.safe_dump(TRL), encoding="utf-8")
    Path("run.chat_template.jinja").write_text("mine", encoding="utf-8")
    assert main(["init", "--from", "theirs.yaml"]) == 2
    assert "run.chat_template.jinja" in capsys.readouterr().err
    assert Path("run.chat_template.jinja").read_text(encoding="utf-8") == "mine"
    assert not Path("run.yaml").exists()
    assert main(["init", "--from", "theirs.yaml", "--out", "theirs.yaml", "--overwrite"]) == 2
    assert "is the file that is read" in capsys.readouterr().err
    assert yaml.safe_load(Path("theirs.yaml").read_text(encoding="utf-8")) == TRL


@pytest.mark.parametrize(("card", "in_4bit"), [("1xT4", True), ("1xH100-80GB", False)])
def test_a_model_too_large_in_16_bit_begins_in_4(
    card: str, in_4bit: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hardware = Hardware.parse(card)
    monkeypatch.setattr(Hardware, "detect", classmethod(lambda cls: hardware))
    assert main(["init", "--model", "unsloth/Llama-3.1-8B-Instruct", "--data", "rows.jsonl"]) == 0
    said = capsys.readouterr().out
    assert ("in 16 bit: none yet" in said) == in_4bit
    assert "plan     single, 1 process, " in said
    assert load("run.yaml").model.load_in_4bit == in_4bit


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("empty.yaml", b"", "is empty"),
        ("text.yaml", b"no mapping", "text.yaml"),
        ("unknown.yaml", b"a: 1", "init --model MODEL"),
        ("run.yaml", b"model: {name: x}\ndata: {path: y}", "is a run.yaml already"),
        ("broken.yaml", b"a: [1\n b: 2", "line 2"),
        ("binary.yaml", b"\xff\xfe\x00", "UTF-8"),
        ("nul.yaml", b"a: \x00", "nul.yaml"),
        ("broken.ipynb", b'{"cells": [', "is no notebook"),
        ("list.ipynb", b"[]", "it has no cells"),
        ("broken.py", b"def f(:\n", "line 1: invalid syntax"),
        ("nul.py", b"x\x00", "null bytes"),
        ("cell.ipynb", b'{"cells": [{"cell_type": "code", "source": "x = ("}]}', "cell 1, line 1"),
    ],
)
def test_a_bad_file_is_told(name: str, content: bytes, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(name).write_bytes(content)
    assert main(["init", "--from", name, "--out", "out.yaml"]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert all(line.startswith("unsloth-accel: error: ") and "Fix: " in line for line in error.strip().splitlines())
    assert not Path("out.yaml").exists()


@pytest.mark.parametrize("end", [".yaml", ".py", ".ipynb"])
def test_what_is_no_file_is_told(end: str, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(f"pipe{end}")
    Path(f"directory{end}").mkdir()
    for name, told in (("pipe", "is a pipe or a device"), ("directory", "irectory"), ("no", "no such file")):
        assert main(["init", "--from", f"{name}{end}"]) == 2
        assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "--model: is missing"),
        (["--model", "a/b"], "--data: is missing"),
        (["--model", "a/b", "--data", "c", "batch.globl_size=1"], "did you mean batch.global_size?"),
        (["--model", "a/b", "--data", "c", "--method", "nothing"], "method='nothing'"),
        (["train.yaml"], "init --from train.yaml"),
        (["--from", str(ROOT / "examples" / "sft.py"), "a.b=1"], "takes no other words"),
        (["--model", "model", "--data", "c", "--out", "/proc/no/run.yaml"], "--out"),
    ],
)
def test_bad_words_are_told(words: list[str], told: str, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", *words]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "Fix: " in error
