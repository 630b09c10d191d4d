"""Runs that were trained, beside each other."""

import os
import sys
from pathlib import Path
from typing import Any

import fork_server
from conftest import ROOT, SCRIPTS, Run, adapter, steps, write_yaml


def difference(one: Path, other: Path, *, last: bool = False) -> dict[str, float]:
    """The largest differences between two runs: logged loss and grad norm, and the saved adapters' tensors.

    With `last` of the last steps of `one`, as many as `other` has.
    """
    theirs = steps(other)
    ours = steps(one)[-len(theirs) if last else 0 :]
    assert [step["step"] for step in ours] == [step["step"] for step in theirs]
    first, second = adapter(one), adapter(other)
    assert first.keys() == second.keys()
    return {
        **{key: max(abs(a[key] - b[key]) for a, b in zip(ours, theirs, strict=True)) for key in ("loss", "grad_norm")},
        "adapter": max(float((first[name] - second[name]).abs().max()) for name in first),
    }


def run_script(name: str, *words: object) -> str:
    """Run one of tests/scripts that imports what tests share; returns what it prints."""
    joined = os.pathsep.join((str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")))
    command = [sys.executable, str(SCRIPTS / name), *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": joined}
    return fork_server.run(command, cwd=ROOT, check=True, capture_output=True, text=True, env=environment).stdout


def train_family(cli: Run, model: Path, rows: Path, strategy: str, processes: int, **training: Any) -> Path:
    """Train two steps of a small model by `strategy`, beside its `rows`; returns the run's directory."""
    out = rows.parent / strategy
    values = {
        "model": {"name": str(model), "max_seq_length": 64, "dtype": "float32"},
        "lora": {"r": 4},
        "data": {"path": str(rows)},
        "batch": {"global_size": 4, "rehearse": "false"},
        "distributed": {"strategy": strategy, "num_processes": processes, "device": "cpu"},
        "training": {"max_steps": 2, "learning_rate": 1e-2, "bf16": False, "per_device_train_batch_size": 2}
        # Else a gradient that is zero but for rounding moves its weight by the learning rate, up or down.
        | {"adam_epsilon": 1e-4, **training},
        "logging": {"progress": False},
        "output_dir": str(out),
    }
    done = cli("launch", write_yaml(rows.parent / f"{strategy}.yaml", values), forked=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out
