"""Models beyond Llama: the same run on one process and on two, launched by accelerate."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import fork_server
import pytest
from conftest import ROOT, SCRIPTS, accelerate_launch, variable_rows

from benchmarks.random_checkpoint import FAMILIES, SHAPES, config_values
from unsloth_accel.models.spec import from_config

TOLERANCE = 1e-5
TEXT = [family for family in FAMILIES if family not in ("llama", "gemma3_vl")]


@pytest.mark.slow
def test_two_processes_train_each_family_like_one(families: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    for family in TEXT:
        (models / family).symlink_to(families / family)
    rows = variable_rows(tmp_path / "rows.jsonl", [9 + (37 * i) % 88 for i in range(24)])
    words = [str(word) for word in (SCRIPTS / "train_families.py", models, rows)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    command = [sys.executable, *words, str(tmp_path / "one")]
    alone = fork_server.run(command, cwd=ROOT, env=environment, timeout=300, capture_output=True, text=True)
    assert alone.returncode == 0, alone.stdout + alone.stderr
    done = accelerate_launch("--config_file", "accelerate_configs/cpu_ddp.yaml", *words, tmp_path / "two", forked=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for family in TEXT:
        one, two = trained(tmp_path / "one", family), trained(tmp_path / "two", family)
        assert two["wrapped"] == "DistributedDataParallel"
        # Seven projections of two layers; a mixture's experts are two tensors a layer in place of three projections.
        assert len(one["adapter"]) == (24 if family == "qwen3_moe" else 28)
        assert one["adapter"].keys() == two["adapter"].keys()
        moved = max(float(tensor.abs().max()) for name, tensor in one["adapter"].items() if "lora_B" in name)
        assert moved > 1e-3
        far = {name: float((tensor - two["adapter"][name]).abs().max()) for name, tensor in one["adapter"].items()}
        assert max(far.values()) <= TOLERANCE, (family, far)
        assert len(one["steps"]) == 3
        for a, b in zip(one["steps"], two["steps"], strict=True):
            assert abs(a["loss"] - b["loss"]) <= TOLERANCE, family
            assert abs(a["grad_norm"] - b["grad_norm"]) <= TOLERANCE, family


def trained(out: Path, family: str) -> dict[str, Any]:
    from safetensors.torch import load_file

    found: dict[str, Any] = json.loads((out / f"{family}.json").read_text(encoding="utf-8"))
    return {**found, "adapter": load_file(out / family / "adapter_model.safetensors")}


@pytest.mark.parametrize("family", [None, *TEXT])
@pytest.mark.parametrize("shape", ["tiny", "1B"])
def test_the_shapes_are_known(family: str | None, shape: str) -> None:
    """A benchmark's model can be planned for from its config.json."""
    spec = from_config(config_values(shape, family), name="random")
    assert spec.decoder_layer_class
    least, most = (1e3, 1e6) if shape == "tiny" else (0.9e9, 4e9)
    assert least < spec.num_parameters < most


def test_a_shape_of_one_family_is_not_anothers() -> None:
    assert config_values("4B")["model_type"] == SHAPES["4B"]["model_type"] == "qwen3"
    with pytest.raises(ValueError, match="is a qwen3 shape"):
        config_values("4B", "mistral")
