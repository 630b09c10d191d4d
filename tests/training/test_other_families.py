"""Families without a record of their own, trained by the real Unsloth on a CPU."""

import json
import os
import sys
from math import isfinite
from pathlib import Path

import fork_server
import pytest
from conftest import ROOT, SCRIPTS, variable_rows
from other_models import TRAINED_ALONE


@pytest.mark.slow
def test_each_family_is_trained_saved_and_reloaded(tmp_path: Path) -> None:
    rows = variable_rows(tmp_path / "rows.jsonl", [9 + 7 * i for i in range(4)])
    paths = (str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", ""))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, str(SCRIPTS / "train_other_families.py"), str(rows), str(tmp_path)]
    done = fork_server.run(command, cwd=ROOT, env=environment, timeout=400, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for family in TRAINED_ALONE:
        found = json.loads((tmp_path / f"{family}.json").read_text(encoding="utf-8"))
        assert len(found["loss"]) == 2, family
        assert all(map(isfinite, found["loss"])), family
        assert found["parameters"] == found["of_transformers"], family
        # PEFT on a CPU reaches LFM2's convolutions by `out_proj`, which Unsloth's words on a GPU don't.
        beyond = 4 * (64 + 64) if family == "lfm2" else 0
        assert found["trained"] == found["planned"] + beyond, family
        assert found["moved"] > 1e-3, family
        assert found["lost"] < 1e-4, family
