"""Models with a tower for images, trained on text through `launch`, saved, merged and loaded again."""

from __future__ import annotations

import json
from math import isfinite
from pathlib import Path

import pytest
from conftest import Run, adapter, steps, variable_rows
from other_models import TOWERS_TRAINED as TRAINED
from trained_runs import run_script, train_family

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("towers")
    run_script("write_other_families.py", directory, *TRAINED)
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("family", TRAINED)
def test_a_model_with_a_tower_is_trained_on_text(family: str, checkpoints: Path, cli: Run, tmp_path: Path) -> None:
    """Also in the last step of an epoch, whose three rows two processes don't share evenly."""
    rows = variable_rows(tmp_path / "rows.jsonl", [9 + (37 * i) % 48 for i in range(7)])
    for strategy, processes in (("single", 1), (TRAINED[family], 2)):
        train_family(cli, checkpoints / family, rows, strategy, processes)
    one, several = (adapter(tmp_path / strategy) for strategy in ("single", TRAINED[family]))
    assert len(one) == (30 if family == "qwen3_5" else 28), "a block with linear attention has eight layers"
    assert all("language_model.layers." in name for name in one), "the tower has no LoRA"
    assert max(float((tensor - several[name]).abs().max()) for name, tensor in one.items()) < TOLERANCE
    for a, b in zip(steps(tmp_path / "single"), steps(tmp_path / TRAINED[family]), strict=True):
        assert isfinite(a["loss"])
        assert abs(a["loss"] - b["loss"]) < TOLERANCE
        assert abs(a["grad_norm"] - b["grad_norm"]) < TOLERANCE
    done = cli("merge", str(tmp_path / "single"), "--dtype", "float32", forked=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = run_script("reload_merged.py", checkpoints / family, tmp_path / "single", "AutoModelForImageTextToText")
    moved, lost = json.loads(found.splitlines()[-1])
    assert moved > 1e-3
    assert lost < 1e-4


@pytest.mark.slow
def test_biases_of_a_tower_stay_frozen(checkpoints: Path) -> None:
    """PEFT's bias=all names every bias of the model; a tower's get no gradient of text, for which DDP would wait."""
    import unsloth  # noqa: F401  isort: skip

    from unsloth_accel.adapters.towers import towers_of
    from unsloth_accel.config.read_run import from_dict
    from unsloth_accel.training.load_model import add_adapter, load_model

    run = from_dict(
        {
            "model": {"name": str(checkpoints / "qwen2_5_vl"), "dtype": "float32"},
            "lora": {"bias": "all"},
            "data": {"path": "-"},
            "distributed": {"device": "cpu"},
            "output_dir": "-",
        }
    )
    model = add_adapter(load_model(run)[0], run)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert towers_of(model)
    assert not [name for name in trained if name.startswith(towers_of(model))]
    assert any(name.endswith("q_proj.base_layer.bias") for name in trained), "the text model's are trained"
