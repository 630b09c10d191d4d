"""init --from SCRIPT: the lines to add, and those that every process would run, by line and cell."""

import json
from pathlib import Path

import pytest
from conftest import ROOT

from unsloth_accel.cli.main import main
from unsloth_accel.launch.arguments import parse
from unsloth_accel.launch.script_lines import describe

SCRIPT = """\
import os
from unsloth import FastLanguageModel
from datasets import load_dataset
from trl import SFTTrainer
rows = load_dataset("json", data_files="x.jsonl", split="train").map(str)
model, tokenizer = FastLanguageModel.from_pretrained("x", device_map="auto")
trainer = SFTTrainer(
    model=model,
)
trainer.train()
print("done")
if trainer.is_world_process_zero():
    print("once")
else:
    print("others")
model.save_pretrained("lora")
model.save_pretrained_merged("merged", tokenizer)
model.save_pretrained_gguf("gguf", tokenizer)
model.push_to_hub("x")
model.push_to_hub_merged("x")
with open("log.txt", "w") as file, open("rows.txt") as other:
    file.write(other.read())
import wandb; wandb.init(project="x")
os.environ["CUDA_VISIBLE_DEVICES"] = "0"
model.generate()
"""
FOUND = {
    5: "main_process_first",
    6: "each process loads its own",
    11: "is_world_process_zero",
    15: "is_world_process_zero",
    16: "leave it, behind adapt",
    17: "unsloth-accel merge",
    18: "once after the launch has ended",
    19: "leave it, behind adapt",
    20: "once after the launch has ended",
    21: "is_world_process_zero",
    23: "report_to=",
    24: "in front of the launch",
    25: "unsloth_accel.generating(model)",
}


def lines_of(said: list[str]) -> dict[str, str]:
    """Each place that is named, with what is to be done there."""
    places = [(place, line) for place, line in enumerate(said) if line.startswith(("  line", "  cell"))]
    return {line[2:].split("  ")[0].rsplit(" ", 0)[0].strip(): said[place + 1] for place, line in places}


def test_a_script(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT, encoding="utf-8")
    said = describe(tmp_path / "train.py")
    assert said[0].endswith("2 lines to add")
    assert said[1].split()[:3] == ["before", "line", "2"]
    assert "import unsloth_accel" in said[1]
    assert said[2].strip().startswith("after line 9")
    assert said[2].endswith("trainer = unsloth_accel.adapt(trainer)")
    found = lines_of(said)
    assert [*found] == [f"line {number}" for number in FOUND]
    for number, told in FOUND.items():
        assert told in found[f"line {number}"], number


@pytest.mark.parametrize("name", ["sft.py", "accelerate_loop.py"])
def test_a_script_that_has_them_needs_none(name: str) -> None:
    assert describe(ROOT / "examples" / name)[0].endswith("has the lines already")


def test_a_notebook(tmp_path: Path) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# print(1)"]},
        {"cell_type": "code", "source": ["!pip install unsloth\n", "%matplotlib inline\n", "out = !ls\n", "print?\n"]},
        {"cell_type": "code", "source": "%%bash\nls"},
        {"cell_type": "code", "source": ["from unsloth import x\n", "if x:\n", "    !ls\n", "print(x)\n"]},
        {"cell_type": "code", "source": ["trainer = SFTTrainer()\n"]},
    ]
    (tmp_path / "n.ipynb").write_text(json.dumps({"cells": cells}), encoding="utf-8")
    said = describe(tmp_path / "n.ipynb")
    assert said[1].strip().startswith("before cell 3, line 1")
    assert said[2].strip().startswith("after cell 4, line 1")
    assert any(line.startswith("  cell 3, line 4") for line in said)
    assert sum(line.startswith("  cell") for line in said) == 1
    assert "nbconvert" in "\n".join(said)
    assert said[-1].endswith("n.py")


def test_the_launch_that_is_shown_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(SCRIPT, encoding="utf-8")
    *_, config, launch = describe("train.py")
    assert main(config.split()[2:]) == 0
    request = parse(launch.split()[3:])
    assert "train.py" in str(request)
    assert Path(launch.split()[4]).exists()
