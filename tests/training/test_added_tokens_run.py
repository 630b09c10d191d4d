"""Added tokens and a chat template by its name, from the launch to the merged model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, adapter, steps, write_yaml

from unsloth_accel.artifacts.merge import plan_merge, write_merged
from unsloth_accel.config.read_run import from_dict

pytestmark = pytest.mark.slow
ADDED = ["<call>", "</call>", *(f"<more-{number}>" for number in range(60))]
OWN, ROWS = 259, 320
"""Tokens of the model's tokenizer, and rows of its embedding, of which some belong to no token."""


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run of two processes, made by a real launch, and its description."""
    import fork_server
    from conftest import ROOT, cli_command

    place = tmp_path_factory.mktemp("added")
    said = [("What is it?", "<call>7</call> it is."), ("And then?", "Then <call>8</call>.")]
    rows = [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}
        for asked, answer in said * 8
    ]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values = {
        "model": {"name": str(tiny), "max_seq_length": 96, "dtype": "float32", "chat_template": "chatml"},
        "data": {"path": str(place / "rows.jsonl"), "train_on": "responses"},
        "lora": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
        "batch": {"global_size": 4},
        "training": {"learning_rate": 1e-2, "bf16": False, "max_steps": 3, "logging_steps": 1, "save_steps": 3},
        "distributed": {"num_processes": 2, "device": "cpu", "strategy": "ddp"},
        "output_dir": str(place / "run"),
    }
    values["model"]["added_tokens"] = ADDED
    command = cli_command("launch", write_yaml(place / "run.yaml", values))
    fork_server.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=400)
    return values


def test_what_is_trained_and_saved(trained: dict[str, Any]) -> None:
    from transformers import AutoTokenizer

    run = Path(trained["output_dir"])
    tokenizer = AutoTokenizer.from_pretrained(run / "adapter")
    new = tokenizer.convert_tokens_to_ids(ADDED)
    assert new == [*range(OWN, OWN + len(ADDED))]
    assert new[-1] == ROWS
    assert "<|im_start|>" in tokenizer.chat_template
    assert tokenizer.eos_token == "<|im_end|>"
    losses = [line["loss"] for line in steps(run)]
    assert losses[-1] < losses[0]
    saved = adapter(run)
    tables = {name: tensor for name, tensor in saved.items() if "lora_" not in name}
    assert {name.split(".")[-2] for name in tables} == {"embed_tokens", "lm_head"}, "each once"
    assert all(len(table) == ROWS + 1 for table in tables.values())
    table = next(table for name, table in tables.items() if "lm_head" in name)
    assert not (table[new[0]] == table[new[1]]).all(), "both began as the mean of the others, and were trained"
    card = (run / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "**Chat template**: chatml" in card
    assert "**Added tokens**: `<call>`, `</call>`" in card
    report = (run / "report.html").read_text(encoding="utf-8")
    assert "chatml" in report
    assert "&lt;call&gt; &lt;/call&gt;" in report


def test_it_is_loaded_gone_on_from_and_merged(trained: dict[str, Any], tmp_path: Path) -> None:
    import unsloth  # noqa: F401  isort: skip
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from unsloth_accel.training.load_model import add_adapter, load_model

    path = Path(trained["output_dir"]) / "adapter"
    ids = AutoTokenizer.from_pretrained(path)("Then <call>8</call>.", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = AutoPeftModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()(input_ids=ids).logits
    model = {**trained["model"], "name": str(path), "gradient_checkpointing": "false"}
    run = from_dict({**trained, "model": model})
    loaded, tokenizer = load_model(run)
    with torch.no_grad():
        again = add_adapter(loaded, run).eval()(input_ids=ids).logits
    assert float((again - expected).abs().max()) < 1e-5
    assert OWN in ids
    assert expected.shape[-1] == len(tokenizer) == ROWS + 1
    write_merged(plan_merge(path, tmp_path / "merged", dtype="float32"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    with torch.no_grad():
        assert float((merged.eval()(input_ids=ids).logits - expected).abs().max()) < 1e-4


def test_a_changed_template_is_told_on_resuming(trained: dict[str, Any], tmp_path: Path, cli: Run) -> None:
    run = write_yaml(tmp_path / "run.yaml", trained)
    more = ["training.max_steps=4", "training.resume=true", "--dry-run"]
    assert cli("launch", run, *more, forked=True).returncode == 0
    other = cli("launch", run, *more, "model.chat_template=zephyr", forked=True)
    assert "was made with chatml: rows would be made into other tokens" in other.stderr
