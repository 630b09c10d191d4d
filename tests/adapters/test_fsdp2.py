"""The FSDP2 adapter. What needs GPUs (memory, speed, fetching from peers) is in benchmarks/; the rest runs here."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, SCRIPTS, adapter

from unsloth_accel.adapters.fsdp2.peer_fetch.peer_reach import SWITCH

BLOCK = 4 * (64 * 64 * 2 + 32 * 64 * 2 + 64 * 128 * 3)
"""Bytes of the seven weights in a block of `tiny`."""


def torchrun(script: str, *arguments: str | Path, processes: int = 2, **variables: str) -> str:
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(several if processes > 1 else []), str(SCRIPTS / script), *map(str, arguments)]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"} | variables
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def alone(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[dict[str, Any], Path]]:
    """What one process finds with this rank of LoRA, and where it saved; trained once for each."""

    @functools.cache
    def trained(r: int) -> tuple[dict[str, Any], Path]:
        out = tmp_path_factory.mktemp(f"one-{r}") / "out"
        return train(tiny, out, r=r, processes=1), out

    return trained


def train(tiny: Path, out: Path, *, r: int, processes: int, **variables: str) -> dict[str, Any]:
    torchrun("fsdp2_on_cpu.py", tiny, out, str(r), processes=processes, **variables)
    found: dict[str, Any] = json.loads((out / "found.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("r", "whole", "peers", "mapped"),
    [(1, True, False, 0), (1, True, True, 0), (1, True, True, 2), (1, True, True, 1), (8, False, False, 0)],
)
def test_fsdp2_trains_like_one_process(
    tiny: Path, tmp_path: Path, alone: Any, r: int, whole: bool, peers: bool, mapped: int
) -> None:
    """With few LoRA weights, which stay whole, and with many, which are sharded; gathered, and fetched from peers, with
    own rows copied and mapped: in both blocks, and in the first alone, since in the second one rank can't."""
    expected, one = alone(r)
    variables = {"PEERS_IN_FILES": "1" if peers else "0"} | ({} if mapped else {SWITCH: "copied"})
    if mapped == 1:
        variables["MAPPING_FAILS"] = "20"  # the trial maps twice, each of a block's seven weights too
    shared = train(tiny, tmp_path / "two", r=r, processes=2, **variables)
    assert shared["mapped"] == mapped * BLOCK // 2
    assert (shared["fetched"] > 8) is peers  # at least the head, in each of eight passes
    # Of 20 passes, 12 of them evaluation's, those with more tokens than it would pay for gather the embedding too.
    assert 12 < shared["looked_up"] < 20 if peers else shared["looked_up"] == 0
    assert shared["eval"] == pytest.approx(expected["eval"], abs=1e-5)
    assert shared["eval"][0] == shared["eval"][1]
    assert shared["sums"] == pytest.approx(expected["sums"], rel=1e-4)
    assert expected["units"] == 0
    assert shared["units"] >= 4
    assert shared["lora_whole"] is whole
    assert shared["averages"] == (4 if whole else 0)  # of the whole adapter's gradients, in four steps
    assert shared["frozen_sharded"]
    for wanted, seen in zip(expected["log"], shared["log"], strict=True):
        assert seen == pytest.approx(wanted, abs=1e-5)
    first, second = adapter(one), adapter(tmp_path / "two")
    assert first.keys() == second.keys()
    assert len(first) == 8
    assert max(float((first[name] - second[name]).abs().max()) for name in first) < 1e-5
    assert max(float(tensor.abs().max()) for tensor in first.values()) > 1e-2  # it has learned


@pytest.mark.slow
def test_gradients_are_averaged_once_where_transformers_would_too(tiny: Path, tmp_path: Path, alone: Any) -> None:
    """A second average changes no number, but costs an all-reduce for each weight."""
    expected, _ = alone(1)
    shared = train(tiny, tmp_path / "two", r=1, processes=2, TRANSFORMERS_AVERAGES="1")
    assert shared["lora_whole"]
    assert shared["averages"] == 4
    for wanted, seen in zip(expected["log"], shared["log"], strict=True):
        assert seen == pytest.approx(wanted, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_rank_out_of_memory_goes_on(tiny: Path, tmp_path: Path, alone: Any, where: str) -> None:
    """Where weights are fetched from peers, no rank waits for one that does its part again, in halves."""
    expected, one = alone(1)
    shared = train(tiny, tmp_path / "two", r=1, processes=2, PEERS_IN_FILES="1", RANK_1_FAILS=where)
    assert (shared["parts"], shared["reason"]) == (2, None)
    assert shared["eval"] == pytest.approx(expected["eval"], abs=1e-5)
    for wanted, seen in zip(expected["log"], shared["log"], strict=True):
        assert seen == pytest.approx(wanted, abs=1e-5)
    first, second = adapter(one), adapter(tmp_path / "two")
    assert max(float((first[name] - second[name]).abs().max()) for name in first) < 1e-4


@pytest.mark.slow
def test_blocks_that_the_benchmark_keeps_are_fetched_once(tiny: Path, tmp_path: Path, alone: Any) -> None:
    expected, _ = alone(1)
    kept = train(tiny, tmp_path / "two", r=1, processes=2, PEERS_IN_FILES="1", BENCHMARK_KEEP="1")
    assert kept["fetched"] == 26  # 36 where blocks take turns
    for wanted, seen in zip(expected["log"], kept["log"], strict=True):
        assert seen == pytest.approx(wanted, abs=1e-5)


@pytest.mark.slow
def test_four_bit_rows_are_the_whole_models_bytes(tiny: Path, tmp_path: Path) -> None:
    said = torchrun("four_bit_rows.py", tiny, tmp_path)
    assert said.count("14 weights of") == 4
    assert said.count("of quantised intact") == 2
