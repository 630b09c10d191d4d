"""Blocks that keep their activations, with the real Unsloth; in several processes they are in test_fsdp2.py and
tests/training/."""

import json
import sys
from pathlib import Path

import fork_server
import pytest
from conftest import ROOT, SCRIPTS

from unsloth_accel.capabilities import probe
from unsloth_accel.capabilities.patches import PATCHES


@pytest.mark.slow
def test_as_many_keep_as_are_asked_for(tiny: Path, tmp_path: Path) -> None:
    """Up, beyond what there is, down and to none again: a block that keeps is computed once, others twice."""
    command = [sys.executable, str(SCRIPTS / "keep_blocks.py"), str(tiny), str(tmp_path / "found.json")]
    done = fork_server.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert [(one["asked"], one["returned"]) for one in found] == [(0, 0), (1, 1), (2, 2), (99, 2), (1, 1), (0, 0)]
    assert [one["computed"] for one in found] == [[2, 2], [2, 1], [1, 1], [1, 1], [2, 1], [2, 2]]
    assert all(one["kept"] == one["returned"] for one in found)
    assert all(one["same"] and one["gradients"] == 8 and one["loss"] > 0 for one in found)
    assert all(one["counts"] for one in found), "Unsloth would count on, and offload what it must not"
    assert [one["imported"] for one in found[:2]] == [False, True], "seconds of every start on a CPU"
    assert [one["told"] for one in found[:2]] == ["", "1 of 2 decoder blocks keep their activations"]


def test_a_release_without_unsloths_marks_goes_without(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from unsloth_accel.adapters.kept_activations import blocks, keep, told

    lost = next(one for one in PATCHES if one.adapter == "adapters.kept_activations")
    found = probe.Capabilities(versions={"unsloth": "2026.9.1"}, missing=(lost,))
    monkeypatch.setattr(probe, "here", lambda: found)
    model = torch.nn.Sequential(torch.nn.Linear(1, 1))
    assert keep(model, 0) == 0
    assert capsys.readouterr().out == "", "nothing was asked for"
    assert keep(model, 8) == 0
    assert capsys.readouterr().out.count("computes its activations again in the backward pass") == 1
    assert (len(blocks(model)), told(model)) == (0, "")
