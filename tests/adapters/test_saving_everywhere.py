"""Saving, going on and agreeing in real processes: what is on disk is what the ranks hold, for what a CPU can run."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
from pathlib import Path

import fork_server
import pytest
from conftest import ROOT, SCRIPTS, Run, adapter, cli_command, steps, variable_rows, write_small_run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("uncompiled")]
STRATEGIES = ["ddp", *(["fsdp2_native"] if importlib.util.find_spec("triton") else [])]
"""Unsloth's sharding imports triton, also on a CPU."""


@pytest.fixture(scope="module")
def described(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps of the tiny model, eight rows each, a checkpoint every two."""
    place = tmp_path_factory.mktemp("described")
    return write_small_run(place, tiny, 64, max_steps=6, save_strategy="steps", save_steps=2)


def planned(described: Path, out: Path, *overrides: str) -> tuple[list[str], dict[str, str]]:
    """Write the run's two files to `out`; the launch flags that name them, and the strategy's variables."""
    from unsloth_accel.config.read_run import load
    from unsloth_accel.hardware.hardware import Hardware
    from unsloth_accel.planning.planner import plan

    decided = plan(load(described, [f"output_dir={out}", *overrides]), Hardware.detect())
    decided.write(out)
    return ["--config_file", str(out / "accelerate.yaml")], {**os.environ, **decided.accelerate_config.environment}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_is_saved_is_what_the_ranks_hold(strategy: str, described: Path, tmp_path: Path) -> None:
    """At checkpoints, and with `unsloth_accel.save` of a Trainer and of a model; to the bit. A checkpoint that rank 0
    can't write is given up, and the training is not. Each follows an evaluation, which leaves units whole; as the best
    is loaded at the end, ranks meet at a barrier within each."""
    evaluated = [f"data.eval_path={described.parent / 'rows.jsonl'}", "training.eval_strategy=steps"]
    evaluated += ["training.eval_steps=1", "training.save_steps=1", "evaluation.loss=false"]
    evaluated += ["training.load_best_model_at_end=true"]
    flags, variables = planned(described, tmp_path, f"distributed.strategy={strategy}", *evaluated)
    command = cli_command("launch", *flags, SCRIPTS / "watch_saving.py", tmp_path / "run.planned.yaml")
    done = fork_server.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, env=variables)
    assert done.returncode == 0, done.stdout + done.stderr
    for what in ("checkpoint-4", "checkpoint-6", "trainer", "model"):
        assert f"equal: {what}, 28 tensors" in done.stdout
    for step in (2, 3):
        assert f"gone: checkpoint-{step}" in done.stdout
        told = rf"warning: checkpoint-{step} was not saved: (OSError|the adapter was .*): \[Errno 28\] No space left on"
        assert re.search(told, done.stderr), done.stderr
    # And in that of step 4 rank 1 can't write its random state.
    assert "checkpoint-4 lacks rng_state_1.pth, the random state of rank 1: PermissionError: [Errno 13]" in done.stderr
    assert (tmp_path / "trainer" / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("difference", "told"),
    [
        ("data.path={other}", "data.path is 'rows with fingerprint"),
        ("rows=60", "train_dataset is '60 rows"),
    ],
    ids=["another file", "other rows in a plain Trainer"],
)
def test_a_rank_that_differs_ends_all(difference: str, told: str, described: Path, tmp_path: Path) -> None:
    """One error, from rank 0, before the first step; without the check the run trains, or waits for ever."""
    other = variable_rows(tmp_path / "other.jsonl", [20] * 64)
    flags, variables = planned(described, tmp_path / "out", "distributed.strategy=ddp")
    command = cli_command("launch", *flags, SCRIPTS / "one_rank_differs.py", tmp_path / "out" / "run.planned.yaml")
    variables["DIFFERENCE"] = difference.format(other=other)
    done = fork_server.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, env=variables)
    assert done.returncode == 1
    assert done.stderr.count("the ranks would not train the same run") == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert "step 1/" not in done.stdout
    assert not list((tmp_path / "out").glob("checkpoint-*"))
    if "rows=" in difference:
        seen = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"')))
        assert {why for why in seen["let be"].items() if why[1] != "trained"} == set()
        order = "rank 1 draws the rows of this epoch in another order than rank 0"
        labels = "what the collator makes of rows 0, 8, 16, 25: labels is 'int64 (4, 4), fingerprint"
        expected = {
            "seeded by rank": f"step 0: {order}",
            "rows shared out by tokens": f"step 0: {order}",
            "an order that ends otherwise": f"step 7: {order}",
            "an order that ends otherwise in the second epoch": f"step 14: {order}",
            "other labels": f"step 0: the ranks would not train the same run: {labels}",
            "other rows": "step 0: the ranks would not train the same run: what the collator makes of rows",
            "other batches": "step 0: the ranks would not train the same run: length of the order is 9 on rank 1",
        }
        assert seen["stopped"].keys() == expected.keys()
        wrong = {name: told for name, told in seen["stopped"].items() if not told.startswith(expected[name])}
        assert wrong == {}
        assert "training argument learning_rate is 0.02 on rank 1 and 0.01 on rank 0" in done.stderr


def test_going_on_past_a_broken_checkpoint(described: Path, tmp_path: Path, cli: Run) -> None:
    """Two processes stop, two checkpoints cut short; one process goes on from the whole one as if nothing had been."""
    straight, out = tmp_path / "straight", tmp_path / "out"
    assert cli("launch", described, f"output_dir={straight}", forked=True).returncode == 0
    shutil.copytree(straight, out)
    shutil.rmtree(out / "adapter")
    weights = out / "checkpoint-6" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (out / "checkpoint-4" / "rng_state_1.pth").unlink()
    done = cli(
        "launch", described, f"output_dir={out}", "training.resume=true", "distributed.num_processes=1", forked=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for told in (
        "checkpoint-6: adapter_model",
        "checkpoint-4: rng_state_1.pth is missing",
        "goes on from checkpoint-2",
    ):
        assert told in done.stderr
    assert f"going on from {out / 'checkpoint-2'}" in done.stdout
    assert [step["step"] for step in steps(out)] == [1, 2, 3, 4, 5, 6]
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(steps(straight), steps(out), strict=True)) <= 1e-5
    first, second = adapter(straight), adapter(out)
    assert max(float((first[name] - second[name]).abs().max()) for name in first) <= 1e-5
