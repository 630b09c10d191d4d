"""Models beyond Llama: the same run on one process and on two, through the real launch."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, adapter, random_checkpoint, steps, variable_rows, write_yaml

from benchmarks.random_checkpoint import FAMILIES, SHAPES, config_values
from unsloth_accel.hardware import Hardware
from unsloth_accel.model_spec import from_config
from unsloth_accel.planner import plan
from unsloth_accel.problems import ConfigError
from unsloth_accel.run_config import from_dict

TOLERANCE = 1e-5
TEXT = [family for family in FAMILIES if family not in ("llama", "gemma3_vl")]
VISION = {"model_type": "qwen2_5_vl", "vision_config": {"depth": 32}, "text_config": {"hidden_size": 2048}}


@pytest.mark.slow
@pytest.mark.parametrize("family", TEXT)
def test_two_processes_train_a_family_like_one(family: str, tmp_path: Path, cli: Run) -> None:
    described = write_yaml(
        tmp_path / "run.yaml",
        {
            "model": {"name": str(random_checkpoint(tmp_path / "model", family)), "max_seq_length": 96},
            "data": {"path": str(variable_rows(tmp_path / "rows.jsonl", [9 + (37 * i) % 88 for i in range(24)]))},
            "batch": {"global_size": 8},
            "training": {"max_steps": 3, "learning_rate": 1e-2, "bf16": False, "per_device_train_batch_size": 4},
            "output_dir": "overridden",
        },
    )

    def trained(name: str, *overrides: str) -> Path:
        done = cli("launch", described, "model.dtype=float32", f"output_dir={tmp_path / name}", *overrides)
        assert done.returncode == 0, done.stdout + done.stderr
        return tmp_path / name

    one, two = trained("one", "distributed.num_processes=1"), [trained("ddp")]
    if family == "gemma3" and find_spec("triton"):  # Unsloth's sharding imports it
        two.append(trained("native", "distributed.strategy=fsdp2_native"))
    first = adapter(one)
    # Seven projections of two layers; the experts of a mixture are two tensors a layer, and need no projection each.
    assert len(first) == (24 if family == "qwen3_moe" else 28)
    assert max(float(tensor.abs().max()) for name, tensor in first.items() if "lora_B" in name) > 1e-3
    for run in two:
        second = adapter(run)
        assert first.keys() == second.keys()
        assert max(float((first[name] - second[name]).abs().max()) for name in first) <= TOLERANCE
        for a, b in zip(steps(one), steps(run), strict=True):
            assert abs(a["loss"] - b["loss"]) <= TOLERANCE
            assert abs(a["grad_norm"] - b["grad_norm"]) <= TOLERANCE


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


@pytest.mark.parametrize("strategy", ["auto", "ddp", "fsdp2_native"])
@pytest.mark.parametrize("hardware", ["cpu", "4xH100-80GB"])
def test_a_vision_language_model_is_refused(strategy: str, hardware: str, tmp_path: Path) -> None:
    """By its config.json alone, and with weights that could be counted."""
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(VISION), encoding="utf-8")
    values: dict[str, Any] = {
        "model": {"name": str(directory)},
        "batch": {"global_size": 8},
        "distributed": {"strategy": strategy},
    }
    run = from_dict(values, to_plan=True)
    header = b'{"model.visual.patch.weight":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    for weights in (b"", len(header).to_bytes(8, "little") + header + bytes(8)):
        if weights:
            (directory / "model.safetensors").write_bytes(weights)
        with pytest.raises(ConfigError, match="reads rows of text only") as raised:
            plan(run, Hardware.parse(hardware))
        assert [problem.key for problem in raised.value.problems] == ["model.name"]
        assert "unsloth_accel.adapt(trainer)" in raised.value.problems[0].fix
