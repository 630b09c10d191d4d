"""Methods that learn from preferences, trained for real in two processes: as in one, saved, gone on with, reloaded."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import fork_server
import pytest
from conftest import ROOT, cli_command, steps, write_yaml
from trained_runs import difference

from unsloth_accel.methods import METHODS

pytestmark = pytest.mark.slow
TOLERANCE = 1e-5
PREFERENCES = [method.name for method in METHODS if "preference" in " ".join(method.row_kinds)]
EXACT = [name for name in PREFERENCES if not METHODS[name].depends_on_ranks]
ROUNDED = {"orpo": {"grad_norm": 1e-4, "adapter": 0.01}}
"""What differs more: AdamW makes a step of the rate, here 0.01, of a gradient that is nothing but rounding, and ORPO's
odds have such; before the first of these steps all is equal."""
LOADING = """
import json, sys
by_unsloth = sys.argv[3] == "unsloth"
if by_unsloth:
    import unsloth
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel
where, scores = sys.argv[1], sys.argv[2] == "scores"
if scores:
    base = PeftConfig.from_pretrained(where).base_model_name_or_path
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model = PeftModel.from_pretrained(model, where)
    model.config.pad_token_id = 0
else:
    model = AutoPeftModelForCausalLM.from_pretrained(where)
if by_unsloth:
    other, _ = unsloth.FastLanguageModel.from_pretrained(where, load_in_4bit=False)
    assert any("lora_B" in name and float(one.abs().max()) > 0 for name, one in other.named_parameters())
named = {name: one for name, one in model.named_parameters() if "lora_B" in name or "score.modules_to_save" in name}
print(json.dumps({name: float(one.abs().max()) for name, one in named.items()}))
"""


def rows(path: Path, method: str, count: int) -> Path:
    """Pairs of which the chosen answer begins with yes, or answers with a label that says whether they do."""
    made: list[dict[str, Any]] = []
    for number in range(count):
        answers = [f" yes {'word ' * ((7 * number) % 9)}", f" no {number * number}"]
        row: dict[str, Any] = {"prompt": f"Question {number}?"}
        if method == "kto":
            made.append(row | {"completion": answers[number % 2], "label": number % 2 == 0})
        else:
            made.append(row | dict(zip(("chosen", "rejected"), answers, strict=True)))
    path.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=PREFERENCES)
def described(request: pytest.FixtureRequest, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps with a checkpoint after two, and held-out rows; eight rows a step."""
    place = tmp_path_factory.mktemp(request.param)
    values = {
        "method": request.param,
        "model": {"name": str(tiny), "max_seq_length": 96, "dtype": "float32"},
        "data": {
            "path": str(rows(place / "rows.jsonl", request.param, 32)),
            "eval_path": str(rows(place / "eval.jsonl", request.param, 9)),
        },
        "batch": {"global_size": 8},
        "training": {
            "learning_rate": 1e-2,
            "bf16": False,
            "per_device_train_batch_size": 4,
            "max_steps": 4,
            "save_strategy": "steps",
            "save_steps": 2,
        },
        "distributed": {"device": "cpu", "num_processes": 2},
        "output_dir": str(place / "two"),
    }
    launch(path := write_yaml(place / "run.yaml", values))
    return path


def launch(described: Path, *overrides: str) -> str:
    command = cli_command("launch", described, *overrides)
    done = fork_server.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_two_processes_train_as_one_and_go_on_and_are_loaded(described: Path, tmp_path: Path) -> None:
    method, two = METHODS[described.parent.name.rstrip("0123456789")], described.parent / "two"
    # The same rows with one process × accumulation 2.
    launch(described, f"output_dir={tmp_path / 'one'}", "distributed.num_processes=1", "batch.rehearse=false")
    found = difference(two, tmp_path / "one")
    if method.name in EXACT:
        allowed = dict.fromkeys(found, TOLERANCE) | ROUNDED.get(method.name, {})
        assert all(value <= allowed[name] for name, value in found.items()), found
        told = [[line[name] for line in steps(run) for name in method.charts] for run in (two, tmp_path / "one")]
        assert told[0] == pytest.approx(told[1], rel=1e-3, abs=1e-5)
    else:
        assert found["loss"] <= 1e-2, found
    # Gone on with after step 2, the first method in two processes, the others in one.
    again, run = tmp_path / "again", two if method.name == PREFERENCES[0] else tmp_path / "one"
    shutil.copytree(run / "checkpoint-2", again / "checkpoint-2")
    processes = f"distributed.num_processes={2 if run == two else 1}"
    launch(described, f"output_dir={again}", "training.resume=true", processes)
    assert [step["step"] for step in steps(again)] == [3, 4]
    found = difference(run, again, last=True)
    assert all(value <= TOLERANCE for value in found.values()), found
    results = json.loads((two / "results.json").read_text(encoding="utf-8"))
    assert results["after"]["loss"] < results["before"]["loss"]
    if method.accuracy:
        assert results["after"]["pair_accuracy"] == 1
    if method.accuracy and method.reference_passes:
        assert results["before"]["pair_accuracy"] == 0.5
    by_unsloth = "unsloth" if method.name == PREFERENCES[0] else ""  # it takes seconds to import
    command = [sys.executable, "-c", LOADING, str(two / "adapter"), "scores" if method.has_score else "", by_unsloth]
    done = fork_server.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    trained = json.loads(done.stdout.splitlines()[-1])
    assert trained
    assert all(trained.values())
    assert any("score" in name for name in trained) == method.has_score
    for told in (two / "adapter" / "README.md", two / "report.html"):
        assert ("num_labels=1" in told.read_text(encoding="utf-8")) == method.has_score


@pytest.mark.parametrize("described", ["dpo"], indirect=True)
def test_a_loss_that_trl_has_not_with_another_setting_is_told(described: Path, tmp_path: Path) -> None:
    settings = ("training.loss_type=[aot]", "training.use_weighting=true", "distributed.num_processes=1")
    command = cli_command("launch", described, f"output_dir={tmp_path / 'run'}", *settings)
    done = fork_server.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 2
    assert "TRL refuses it: WPO-style weighting is not implemented" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("described", ["dpo"], indirect=True)
def test_a_run_that_begins_with_an_adapter_goes_on_with_the_trained_one(described: Path, tmp_path: Path) -> None:
    """Its reference, TRL's copy of that adapter, is in no checkpoint, from which transformers would load it alone."""
    begins = f"model.name={described.parent / 'two' / 'adapter'}"
    launch(described, begins, f"output_dir={tmp_path / 'whole'}")
    assert not [*(tmp_path / "whole").rglob("ref")]
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "again" / "checkpoint-2")
    launch(described, begins, f"output_dir={tmp_path / 'again'}", "training.resume=true")
    found = difference(tmp_path / "whole", tmp_path / "again", last=True)
    assert all(value <= TOLERANCE for value in found.values()), found


@pytest.mark.parametrize("described", ["dpo"], indirect=True)
def test_a_reference_computed_beforehand_is_the_same(described: Path, tmp_path: Path) -> None:
    """In two processes, of which each reads half of the rows with it, and of a run that goes on."""
    again = tmp_path / "again"
    shutil.copytree(described.parent / "two" / "checkpoint-2", again / "checkpoint-2")
    beforehand = "training.precompute_ref_log_probs=true"
    told = launch(described, f"output_dir={again}", "training.resume=true", beforehand)
    assert "reading all rows with the reference, before training" in told
    assert "Computing reference log probs" not in told, "nobody watches the bars"
    found = difference(described.parent / "two", again, last=True)
    assert all(value <= TOLERANCE for value in found.values()), found
    results = json.loads((again / "results.json").read_text(encoding="utf-8"))
    assert results["before"]["pair_accuracy"] == 0.5
