"""unsloth-accel merge: the merged model is base plus adapter, and what would stop it is told before it starts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import SMOLLM2

from unsloth_accel.artifacts import merge as merging
from unsloth_accel.artifacts.own_files import write_record
from unsloth_accel.cli import merge
from unsloth_accel.errors import ConfigError
from unsloth_accel.files import this_machine


@pytest.fixture
def finished(description: dict[str, Any], tmp_path: Path) -> Path:
    """A run's directory with an adapter on the model that `description` names."""
    adapter = tmp_path / "run" / "adapter"
    adapter.mkdir(parents=True)
    header = json.dumps({"a.lora_A.weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (adapter / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    config = {"base_model_name_or_path": description["model"]["name"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return tmp_path / "run"


def refused(*arguments: Any, **options: Any) -> str:
    with pytest.raises(ConfigError) as told:
        merging.plan_merge(*arguments, **options)
    return str(told.value)


def test_a_score_head_is_not_left_behind(finished: Path) -> None:
    path = finished / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"task_type": "SEQ_CLS"}
    path.write_text(json.dumps(config), encoding="utf-8")
    assert "it would lose its score head" in refused(finished)


def test_a_run_and_its_adapter_mean_the_same(finished: Path) -> None:
    found = merging.plan_merge(finished)
    assert found == merging.plan_merge(finished / "adapter")
    assert found.target == finished / "merged"
    assert found.dtype == "bfloat16"  # the base is float32
    assert merging.plan_merge(finished, dtype="float32").bytes == 2 * found.bytes


def test_what_is_there_is_not_overwritten(finished: Path) -> None:
    (finished / "merged").mkdir()
    merging.plan_merge(finished)
    (finished / "merged" / "model.safetensors").write_text("precious", encoding="utf-8")
    for overwrite in (False, True):
        told = refused(finished, overwrite=overwrite)
        assert "holds files that no merge recorded, which may be your own. Fix: remove it" in told
    write_record(finished / "merged")
    assert "is not empty. Fix: --overwrite" in refused(finished)
    merging.plan_merge(finished, overwrite=True)
    assert "would be merged" in refused(finished, finished / "adapter", overwrite=True)
    assert "would be merged" in refused(finished, finished, overwrite=True)
    other = finished / "checkpoint-2"
    shutil.copytree(finished / "adapter", other)
    write_record(other)
    assert "that no merge recorded" in refused(finished, other, overwrite=True), "an adapter's record is another's"


def test_a_link_that_leads_nowhere(finished: Path) -> None:
    (finished / "merged").symlink_to(finished / "disk" / "merged")
    told, target = refused(finished), finished / "disk" / "merged"
    assert f"merged is a link to {target}, which isn't there" in told
    assert f"Fix: mkdir -p {target} " in told
    target.mkdir(parents=True)
    assert merging.plan_merge(finished).target == finished / "merged"


def test_what_a_killed_merge_left_is_removed(finished: Path) -> None:
    """Before its room is looked for: it is as large as what is to be written."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    left = finished / f".merged.unsloth-accel-{this_machine()}-{process.pid}-abcdefgh"
    left.mkdir()
    (left / "model.safetensors").write_text("half", encoding="utf-8")
    merging.plan_merge(finished)
    assert [path.name for path in finished.iterdir()] == ["adapter"]


def test_a_directory_without_an_adapter(tmp_path: Path, finished: Path) -> None:
    assert "adapter_config.json is missing" in refused(tmp_path)
    weights = finished / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "cut short" in refused(finished)
    weights.unlink()
    assert "adapter_model.safetensors is missing" in refused(finished)


def test_too_little_room(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 8, 1))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1, "total": 2**40})())
    told = refused(finished)
    assert "are free there" in told
    assert "one copy of the model takes" in told


@pytest.mark.parametrize(
    ("trained_on", "base"),
    [
        ("unsloth/Llama-3.2-1B-Instruct-unsloth-bnb-4bit", "unsloth/Llama-3.2-1B-Instruct"),
        ("unsloth/Llama-3.2-1B-Instruct-bnb-4bit", "unsloth/Llama-3.2-1B-Instruct"),
        ("unsloth/Llama-3.2-1B-Instruct", "unsloth/Llama-3.2-1B-Instruct"),
    ],
)
def test_an_adapter_of_a_4_bit_base_goes_into_the_original(trained_on: str, base: str, finished: Path) -> None:
    config = {"base_model_name_or_path": trained_on}
    (finished / "adapter" / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    found = merging.plan_merge(finished)
    assert (found.base, found.trained_on) == (base, trained_on)
    told = refused(finished, base="unsloth/Llama-3.2-1B-Instruct-bnb-4bit")
    assert "bnb-4bit: what is merged into them would be rounded again" in told


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    ["SmolLM2", "tied, with a trained lm_head", "tied, with LoRA on lm_head", "tied, with LoRA on embed_tokens"],
)
def test_the_merged_model_is_base_plus_adapter(
    model: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same logits in float32, which are not the base's; a head that was trained is no longer the embeddings."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    base = SMOLLM2
    if model != "SmolLM2":
        base = tmp_path / "tied"
        config = AutoConfig.from_pretrained(tiny)
        config.tie_word_embeddings = True
        AutoModelForCausalLM.from_config(config).save_pretrained(base)
        AutoTokenizer.from_pretrained(tiny).save_pretrained(base)
    torch.manual_seed(0)
    whole = ["lm_head"] if "trained" in model else None
    targets = ["q_proj", "down_proj", *([model.split()[-1]] if "LoRA" in model else [])]
    lora = LoraConfig(r=8, target_modules=targets, modules_to_save=whole, task_type="CAUSAL_LM")
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), lora)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad and "lora_A" not in name:
                parameter.add_((0.03 if "LoRA" in model else 0.005) * torch.randn_like(parameter))
    adapted.save_pretrained(tmp_path / "run" / "adapter")
    ends = AutoTokenizer.from_pretrained(base)
    before, ends.eos_token = ends.eos_token_id, "!"  # as a run with training.eos_token leaves it
    ends.save_pretrained(tmp_path / "run" / "adapter")
    assert merge.run([str(tmp_path / "run"), str(tmp_path / "out"), "--dtype", "float32"]) == 0
    assert f"base     {base}" in capsys.readouterr().out
    inputs = AutoTokenizer.from_pretrained(base)("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)(inputs).logits
        bare = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        expected = PeftModel.from_pretrained(bare, tmp_path / "run" / "adapter").eval()(inputs).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()(inputs).logits
    assert float((merged - expected).abs().max()) <= 1e-3
    assert float((merged - plain).abs().max()) > 0.1
    assert AutoTokenizer.from_pretrained(tmp_path / "out").eos_token == "!"
    assert AutoConfig.from_pretrained(tmp_path / "out").eos_token_id == ends.eos_token_id
    stops = GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id
    assert stops == [ends.eos_token_id, *([] if before is None else [before])]
    assert AutoConfig.from_pretrained(tmp_path / "out").tie_word_embeddings == (model == "SmolLM2")
    assert not list(tmp_path.glob(".out*")), "temporary directories are left"
