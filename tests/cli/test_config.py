from pathlib import Path

import pytest
import yaml
from commands import NATIVE, out


def test_config_prints_and_writes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = out(capsys, "config", "--strategy", "fsdp2", "--gpus", "4")
    assert yaml.safe_load(text)["fsdp_config"]["fsdp_version"] == 2
    file = tmp_path / "made.yaml"
    words = ("--strategy", "fsdp2_native", "--gpus", "8", "--machines", "2", "--out", str(file))
    assert out(capsys, "config", *words) == f"wrote {file}\n"
    text = file.read_text(encoding="utf-8")
    assert yaml.safe_load(text)["num_processes"] == 16
    assert f"{NATIVE} accelerate launch {'--'}" in text
    assert "--machine_rank 1" in text
    planned = yaml.safe_load(out(capsys, "config", "examples/configs/quickstart.yaml", "--hardware", "2xT4"))
    assert planned["mixed_precision"] == "fp16"
