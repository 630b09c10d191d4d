"""The FSDP2 adapter. What needs GPUs (memory, speed, fetching from peers) is in benchmarks/; the rest runs here."""

import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fork_server
import pytest
from conftest import ROOT, SCRIPTS, adapter

from unsloth_accel.adapters.fsdp2.peer_fetch.peer_reach import SWITCH
from unsloth_accel.adapters.fsdp2.shard import _compute_in_autocast

BLOCK = 4 * (64 * 64 * 2 + 32 * 64 * 2 + 64 * 128 * 3)
"""Bytes of the seven weights in a block of `tiny`."""


def torchrun(script: str, *arguments: str | Path, processes: int = 2, **variables: str) -> str:
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(several if processes > 1 else []), str(SCRIPTS / script), *map(str, arguments)]
    ours = map(str, (SCRIPTS / "plain_trl", ROOT, ROOT / "tests"))
    paths = os.pathsep.join([*ours, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"} | variables
    done = fork_server.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass(frozen=True)
class Case:
    r: int = 1
    """LoRA's rank: with 1 there are few weights, which stay whole; with 8 many, which are sharded."""
    variables: dict[str, str] = field(default_factory=dict)


PEERS = {"PEERS_IN_FILES": "1"}
COPIED = {SWITCH: "copied"}
UNCOMPILED = {"TORCH_COMPILE_DISABLE": "1"}
"""Compiling Unsloth's attention costs more than the case; those without this variable show that it goes together."""
IN_BF16 = {"IN_BF16": "1", "UNSLOTH_CPU_BF16": "1", "TOWER": "1"} | UNCOMPILED
"""Also on a CPU that has no bfloat16 of its own, for which Unsloth would turn it off."""
CASES = {
    "gathered": Case(1, COPIED),
    "sharded": Case(8, COPIED | {"KEPT": "1"}),
    "own rows copied": Case(1, PEERS | COPIED | {"KEPT": "1"}),
    "own rows mapped": Case(1, PEERS | UNCOMPILED | {"KEPT": "2"}),
    # The trial maps twice, each of a block's seven weights too.
    "one block mapped": Case(1, PEERS | {"MAPPING_FAILS": "20"} | UNCOMPILED),
    "transformers averages": Case(1, {"TRANSFORMERS_AVERAGES": "1"} | UNCOMPILED),
    "out of memory in forward": Case(1, PEERS | {"RANK_1_FAILS": "forward"} | UNCOMPILED),
    "out of memory in backward": Case(1, PEERS | {"RANK_1_FAILS": "backward", "KEPT": "2"} | UNCOMPILED),
    "tower": Case(1, PEERS | COPIED | {"TOWER": "1"} | UNCOMPILED),
    "in bf16": Case(1, PEERS | COPIED | IN_BF16),
    "disk full": Case(8, {"DISK_FULL": "1"} | UNCOMPILED),
    "blocks kept": Case(1, PEERS | {"BENCHMARK_KEEP": "1"} | UNCOMPILED),
}
ALONE = {
    "1": Case(1),
    "8": Case(8),
    "tower": Case(1, {"TOWER": "1"} | UNCOMPILED),
    "in bf16": Case(1, IN_BF16),
}


@dataclass(frozen=True)
class Found:
    """What was found in a case, by what the script writes, and where its adapter was saved."""

    values: dict[str, Any]
    out: Path

    def __getitem__(self, key: str) -> Any:
        return self.values[key]


def trained(tiny: Path, place: Path, cases: dict[str, Case], processes: int) -> Callable[[str], Found]:
    """Train all of `cases` in one launch; what one of them found, or why it failed, is asked for by its name."""
    described = []
    for name, case in cases.items():
        (place / name).mkdir()
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        described.append({"out": str(place / name), "r": str(case.r), "port": port, "variables": case.variables})
    file = place / "cases.json"
    file.write_text(json.dumps(described), encoding="utf-8")
    said = torchrun("fsdp2_on_cpu.py", tiny, file, processes=processes)

    def found(name: str) -> Found:
        out = place / name
        assert (out / "found.json").is_file(), said
        return Found(json.loads((out / "found.json").read_text(encoding="utf-8")), out)

    return found


@pytest.fixture(scope="module")
def two(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Found]:
    """What two processes find in each of `CASES`."""
    return trained(tiny, tmp_path_factory.mktemp("two"), CASES, 2)


@pytest.fixture(scope="module")
def alone(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Found]:
    """What one process finds with each rank of LoRA."""
    return trained(tiny, tmp_path_factory.mktemp("one"), ALONE, 1)


def assert_alike(shared: Found, expected: Found) -> None:
    for wanted, seen in zip(expected["log"], shared["log"], strict=True):
        assert seen == pytest.approx(wanted, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "mapped"),
    [("gathered", 0), ("own rows copied", 0), ("own rows mapped", 2), ("one block mapped", 1), ("sharded", 0)],
)
def test_fsdp2_trains_like_one_process(two: Any, alone: Any, case: str, mapped: int) -> None:
    """With few LoRA weights, which stay whole, and with many, which are sharded; gathered, and fetched from peers, with
    own rows copied and mapped: in both blocks, and in the first alone, since in the second one rank can't."""
    r, peers = CASES[case].r, "PEERS_IN_FILES" in CASES[case].variables
    whole = r == 1
    shared, expected = two(case), alone(str(r))
    assert shared["kept"] == int(CASES[case].variables.get("KEPT", "0"))
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
    assert_alike(shared, expected)
    first, second = adapter(expected.out), adapter(shared.out)
    assert first.keys() == second.keys()
    assert len(first) == 8
    assert max(float((first[name] - second[name]).abs().max()) for name in first) < 1e-5
    assert max(float(tensor.abs().max()) for tensor in first.values()) > 1e-2  # it has learned


@pytest.mark.slow
def test_a_tower_that_no_row_passes_is_never_gathered(two: Any, alone: Any) -> None:
    """The end of a backward pass that sums no gradients over the ranks looked for one in the tower's gathered weights:
    "'FSDPParam' object has no attribute '_unsharded_param'", seen with a Qwen3-VL on two GPUs."""
    shared, expected = two("tower"), alone("tower")
    assert_alike(shared, expected)
    assert shared["eval"] == pytest.approx(expected["eval"], abs=1e-5)
    assert shared["frozen_sharded"]
    # Nor is the head: TRL's loss puts that together itself.
    assert shared["never_gathered"] == ["base_model.model.model.visual", "base_model.model.lm_head"]
    assert shared["sums"] == pytest.approx(expected["sums"], rel=1e-4)
    assert sum(".visual." in name for name in shared["sums"]) > 20


@pytest.mark.slow
def test_lora_computes_in_16_bit_as_on_one_gpu(two: Any, alone: Any) -> None:
    """Accelerate has no autocast under FSDP2, so that LoRA weights which stay whole were computed with in float32."""
    shared, expected = two("in bf16"), alone("in bf16")
    assert shared["lora_whole"]
    assert shared["dtypes"] == expected["dtypes"] == ["torch.bfloat16"]
    assert_alike(shared, expected)
    assert shared["eval"] == pytest.approx(expected["eval"], abs=1e-5)


def test_what_is_wrapped_in_autocast_is_unwrapped_as_on_one_gpu() -> None:
    """GRPO unwraps its model in every step, and multiplies its hidden states with the head itself."""
    import torch
    from accelerate.utils import extract_model_from_parallel

    class Model(torch.nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            found = super().forward(input)
            seen.append(found.dtype)
            return found

    @contextmanager
    def autocast() -> Iterator[None]:
        with torch.autocast("cpu", torch.bfloat16):
            yield

    seen: list[torch.dtype] = []
    model, accelerator = Model(2, 2), SimpleNamespace(mixed_precision="bf16", autocast=autocast)
    before = model.forward
    _compute_in_autocast(model, accelerator)  # type: ignore[arg-type]
    assert model(torch.ones(1, 2)).dtype == model(torch.ones(1, 2)).dtype == torch.float32
    assert seen == [torch.bfloat16] * 2
    extract_model_from_parallel(model, keep_fp32_wrapper=False)
    assert model.forward == before
    accelerator.mixed_precision = "no"
    _compute_in_autocast(model, accelerator)  # type: ignore[arg-type]
    assert model.forward == before


@pytest.mark.slow
def test_a_full_disk_costs_that_checkpoint_only(two: Any, alone: Any) -> None:
    """Accelerate gathers the optimizer after it has written the weights: a rank that left then was waited for."""
    full = two("disk full")
    assert full["checkpoints"] == {"checkpoint-4": None}
    assert_alike(full, alone("8"))


@pytest.mark.slow
def test_gradients_are_averaged_once_where_transformers_would_too(two: Any, alone: Any) -> None:
    """A second average changes no number, but costs an all-reduce for each weight."""
    shared = two("transformers averages")
    assert shared["lora_whole"]
    assert shared["averages"] == 4
    assert_alike(shared, alone("1"))


@pytest.mark.slow
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_rank_out_of_memory_goes_on(two: Any, alone: Any, where: str) -> None:
    """Where weights are fetched from peers, no rank waits for one that does its part again, with fewer activations kept
    and in halves."""
    shared, expected = two(f"out of memory in {where}"), alone("1")
    assert (shared["kept"], shared["parts"], shared["reason"]) == (0, 2, None)
    assert shared["eval"] == pytest.approx(expected["eval"], abs=1e-5)
    assert_alike(shared, expected)
    first, second = adapter(expected.out), adapter(shared.out)
    assert max(float((first[name] - second[name]).abs().max()) for name in first) < 1e-4


@pytest.mark.slow
def test_blocks_that_the_benchmark_keeps_are_fetched_once(two: Any, alone: Any) -> None:
    kept = two("blocks kept")
    assert kept["fetched"] == 27  # 37 where blocks take turns
    assert_alike(kept, alone("1"))


@pytest.mark.slow
def test_four_bit_rows_are_the_whole_models_bytes(tiny: Path, tmp_path: Path) -> None:
    said = torchrun("four_bit_rows.py", tiny, tmp_path)
    assert said.count("14 weights of") == 4
    assert said.count("of quantised intact") == 2
