import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, write_yaml

from unsloth_accel.cli.main import main


def test_all_problems_at_once(description: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    description["data"]["path"] = "nowhere.jsonl"
    file = write_yaml(tmp_path / "run.yaml", description)
    assert main(["verify", str(file), "--strategy", "fsdp2"]) == 2
    told = capsys.readouterr().err
    assert "data.path='nowhere.jsonl': no such file." in told
    assert "no FSDP on a CPU" in told
    for words, said in (
        ([str(tmp_path / "none.yaml")], "no such file"),
        ([str(file), "other.yaml"], "give one RUN.yaml"),
        ([str(file), "lora.rr=2"], "did you mean lora.r?"),
        ([str(file), "--json", "/proc/no/x.json"], "--json"),
        ([str(file), "--keep", "/proc/no/x"], "--keep"),
    ):
        assert main(["verify", *words]) == 2
        told = capsys.readouterr().err
        assert said in told
        assert "Fix: " in told
    assert not (tmp_path / "out").exists()


def test_nothing_heavy_is_imported(tmp_path: Path) -> None:
    program = (
        "import sys; from unsloth_accel.cli import verify\n"
        "from unsloth_accel.verify import verification, table\n"
        "print([n for n in ('torch', 'transformers', 'accelerate', 'unsloth', 'numpy') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
