"""Mixtures of experts in two processes, by DDP and divided, each loaded whole: the run of one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Run, adapter, steps, variable_rows
from other_models import FUSED
from trained_runs import run_script, train_family

from unsloth_accel.artifacts.fused_experts import forget_old_names
from unsloth_accel.config.read_run import from_dict
from unsloth_accel.config.run_config import PROJECTIONS
from unsloth_accel.files import load_json
from unsloth_accel.models.lora_targets import targets
from unsloth_accel.models.spec import ModelSpec

TOLERANCE = 1e-5
LATER = 1e-4
"""Bound on what follows the first step, a hundredth of what it moves a weight by: Adam enlarges rounding."""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("mixtures")
    run_script("write_other_families.py", directory, *FUSED)
    return directory


@pytest.mark.slow
@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("family", FUSED)
def test_a_mixture_is_trained_by_two_processes_as_by_one(
    family: str, checkpoints: Path, cli: Run, tmp_path: Path
) -> None:
    """Also where a rank's rows, of six tokens, leave experts without one."""
    rows = variable_rows(tmp_path / "rows.jsonl", [5, 5, 5, 5, 48, 23, 31, 11])
    for strategy, processes in (("single", 1), ("ddp", 2), ("fsdp2_native", 2)):
        train_family(cli, checkpoints / family, rows, strategy, processes, train_sampling_strategy="sequential")
    single = tmp_path / "single"
    one = adapter(single)
    assert max(float(tensor.abs().max()) for name, tensor in one.items() if "lora_B" in name) > 1e-4
    for strategy in ("ddp", "fsdp2_native"):
        several = adapter(tmp_path / strategy)
        assert several.keys() == one.keys()
        assert max(float((tensor - several[name]).abs().max()) for name, tensor in one.items()) < LATER
        for a, b in zip(steps(tmp_path / "single"), steps(tmp_path / strategy), strict=True):
            allowed = TOLERANCE if a["step"] == 1 else LATER
            assert abs(a["loss"] - b["loss"]) < allowed
            assert abs(a["grad_norm"] - b["grad_norm"]) < allowed
    assert cli("merge", str(single), "--dtype", "float32", forked=True).returncode == 0
    found = run_script("reload_merged.py", checkpoints / family, single, "AutoModelForCausalLM")
    moved, lost = json.loads(found.splitlines()[-1])
    assert moved > 1e-3
    assert lost < 1e-4


NAMED: tuple[tuple[str, ...], ...] = (PROJECTIONS, ("q_proj", "gate_proj"), ("o_proj", "down_proj"))


@pytest.mark.slow
@pytest.mark.parametrize("family", FUSED)
def test_its_adapter_is_the_one_that_was_planned(family: str, checkpoints: Path, cli: Run, tmp_path: Path) -> None:
    """As on a GPU; and one with the names that Unsloth leaves in its config there is loaded and merged, too."""
    import unsloth  # noqa: F401  isort: skip
    import torch
    from transformers import AutoModelForCausalLM

    from unsloth_accel.training.load_model import add_adapter, load_model

    base, ids = checkpoints / family, torch.arange(5, 25)[None]
    rest = {"data": {"path": "-"}, "distributed": {"device": "cpu"}, "output_dir": "-"}
    model = {"name": str(base), "dtype": "float32", "gradient_checkpointing": "false"}
    for modules in NAMED:
        run = from_dict({"model": model, "lora": {"r": 4, "target_modules": [*modules]}, **rest})
        adapted = add_adapter(load_model(run)[0], run)
        trained = [value for value in adapted.parameters() if value.requires_grad]
        assert sum(value.numel() for value in trained) == targets(run, ModelSpec.load(base)).parameters, modules
        forget_old_names(adapted)
        assert adapted.peft_config["default"].target_modules == {*modules}, "by which Unsloth compares"
        with torch.no_grad():
            for value in trained:
                value.add_(torch.randn_like(value) * 0.05)
            expected = adapted.eval()(input_ids=ids).logits
        directory = tmp_path / "-".join(modules)
        adapted.save_pretrained(directory)
        own = {*modules} - {"gate_proj", "up_proj", "down_proj"}
        assert {*load_json(directory / "adapter_config.json")["target_modules"]} == own
        type(adapted).save_pretrained(adapted, directory)
        assert {*load_json(directory / "adapter_config.json")["target_modules"]} == {*modules}
        done = cli("merge", str(directory), str(directory / "merged"), "--dtype", "float32", forked=True)
        assert done.returncode == 0, done.stdout + done.stderr
        with torch.no_grad():
            found = AutoModelForCausalLM.from_pretrained(directory / "merged")(input_ids=ids).logits
        assert float((found - expected).abs().max()) < 1e-4, modules
