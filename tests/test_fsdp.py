"""The FSDP2 adapter. What needs GPUs (memory, speed, fetching from peers) is in benchmarks/; the rest runs here."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, SCRIPTS, adapter

from unsloth_accel.adapters import fsdp


def torchrun(script: str, *arguments: str | Path, processes: int = 2, **variables: str) -> str:
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(several if processes > 1 else []), str(SCRIPTS / script), *map(str, arguments)]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"} | variables
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def train(tiny: Path, out: Path, *, r: int, processes: int, **variables: str) -> dict[str, Any]:
    torchrun("fsdp2_on_cpu.py", tiny, out, str(r), processes=processes, **variables)
    found: dict[str, Any] = json.loads((out / "found.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("r", "whole", "peers"), [(1, True, False), (1, True, True), (8, False, False)])
def test_fsdp2_trains_like_one_process(tiny: Path, tmp_path: Path, r: int, whole: bool, peers: bool) -> None:
    """With few LoRA weights, which stay whole, and with many, which are sharded; gathered, and fetched from peers."""
    alone = train(tiny, tmp_path / "one", r=r, processes=1)
    shared = train(tiny, tmp_path / "two", r=r, processes=2, PEERS_IN_FILES="1" if peers else "0")
    assert (shared["fetched"] > 8) is peers  # at least embedding and head, tied, in each of eight passes
    assert shared["eval"] == pytest.approx(alone["eval"], abs=1e-5)
    assert shared["eval"][0] == shared["eval"][1]
    assert shared["sums"] == pytest.approx(alone["sums"], rel=1e-4)
    assert alone["units"] == 0
    assert shared["units"] >= 4
    assert shared["lora_whole"] is whole
    assert shared["frozen_sharded"]
    for one, two in zip(alone["log"], shared["log"], strict=True):
        assert two == pytest.approx(one, abs=1e-5)
    first, second = adapter(tmp_path / "one"), adapter(tmp_path / "two")
    assert first.keys() == second.keys()
    assert len(first) == 8
    assert max(float((first[name] - second[name]).abs().max()) for name in first) < 1e-5
    assert max(float(tensor.abs().max()) for tensor in first.values()) > 1e-2  # it has learned


@pytest.mark.slow
def test_four_bit_rows_are_the_whole_models_bytes(tiny: Path, tmp_path: Path) -> None:
    said = torchrun("four_bit_rows.py", tiny, tmp_path)
    assert said.count("14 weights of") == 4
    assert said.count("of quantised intact") == 2


@pytest.mark.parametrize(
    ("environ", "launched"),
    [
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "WORLD_SIZE": "2"}, True),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1", "WORLD_SIZE": "2"}, False),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "WORLD_SIZE": "1"}, False),
        ({"ACCELERATE_USE_FSDP": "false", "FSDP_VERSION": "2", "WORLD_SIZE": "2"}, False),
        ({"WORLD_SIZE": "2"}, False),
    ],
)
def test_rows_are_loaded_in_an_fsdp2_launch_only(environ: dict[str, str], launched: bool) -> None:
    assert fsdp.is_launched(environ) is launched


def test_rows_are_not_loaded_where_the_config_places_weights_itself() -> None:
    launch = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "WORLD_SIZE": "2", "FSDP_OFFLOAD_PARAMS": "false"}
    assert fsdp.loads_rows(launch)
    for name in ("FSDP_OFFLOAD_PARAMS", "FSDP_CPU_RAM_EFFICIENT_LOADING", "ACCELERATE_USE_PARALLELISM_CONFIG"):
        with pytest.warns(UserWarning, match="every GPU loads the whole model"):
            assert not fsdp.loads_rows({**launch, name: "true"})
