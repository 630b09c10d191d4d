"""Models with a tower for images, trained on text through `launch`, saved, merged and loaded again."""

from __future__ import annotations

import json
import sys
from math import isfinite
from pathlib import Path

import fork_server
import pytest
from conftest import ROOT, SCRIPTS, Run, adapter, steps, variable_rows, write_yaml
from other_models import TOWERS_TRAINED as TRAINED

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("towers")
    words = [str(SCRIPTS / "write_other_families.py"), str(directory), *TRAINED]
    fork_server.run([sys.executable, *words], cwd=ROOT, check=True, capture_output=True, env=paths())
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("family", TRAINED)
def test_a_model_with_a_tower_is_trained_on_text(family: str, checkpoints: Path, cli: Run, tmp_path: Path) -> None:
    rows = variable_rows(tmp_path / "rows.jsonl", [9 + (37 * i) % 48 for i in range(8)])
    for strategy, processes in (("single", 1), (TRAINED[family], 2)):
        values = {
            "model": {"name": str(checkpoints / family), "max_seq_length": 64, "dtype": "float32"},
            "lora": {"r": 4},
            "data": {"path": str(rows)},
            "batch": {"global_size": 4, "rehearse": "false"},
            "distributed": {"strategy": strategy, "num_processes": processes, "device": "cpu"},
            "training": {"max_steps": 2, "learning_rate": 1e-2, "bf16": False, "per_device_train_batch_size": 2}
            # Else a gradient that is zero but for rounding moves its weight by the learning rate, up or down.
            | {"adam_epsilon": 1e-4},
            "logging": {"progress": False},
            "output_dir": str(tmp_path / strategy),
        }
        done = cli("launch", write_yaml(tmp_path / f"{strategy}.yaml", values), forked=True)
        assert done.returncode == 0, done.stdout + done.stderr
    one, several = (adapter(tmp_path / strategy) for strategy in ("single", TRAINED[family]))
    assert len(one) == 28
    assert all("language_model.layers." in name for name in one), "the tower has no LoRA"
    assert max(float((tensor - several[name]).abs().max()) for name, tensor in one.items()) < TOLERANCE
    for a, b in zip(steps(tmp_path / "single"), steps(tmp_path / TRAINED[family]), strict=True):
        assert isfinite(a["loss"])
        assert abs(a["loss"] - b["loss"]) < TOLERANCE
        assert abs(a["grad_norm"] - b["grad_norm"]) < TOLERANCE
    done = cli("merge", str(tmp_path / "single"), "--dtype", "float32", forked=True)
    assert done.returncode == 0, done.stdout + done.stderr
    words = [str(SCRIPTS / "reload_towers.py"), str(checkpoints / family), str(tmp_path / "single")]
    found = fork_server.run([sys.executable, *words], cwd=ROOT, check=True, capture_output=True, text=True, env=paths())
    moved, lost = json.loads(found.stdout.splitlines()[-1])
    assert moved > 1e-3
    assert lost < 1e-4


def paths() -> dict[str, str]:
    import os

    joined = os.pathsep.join((str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")))
    return {**os.environ, "PYTHONPATH": joined}


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
