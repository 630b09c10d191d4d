"""The checks of `benchmarks.gpu_checks` in which a model writes what it is trained on: groups, ranks, time, memory."""

from __future__ import annotations

import json
import statistics
from typing import Any

import yaml

from benchmarks.checks import CLI, Place, expect
from unsloth_accel.artifacts.run_directory import RunDirectory

GROUP, STEPS, WARM_UP = 8, 5, 2
"""Completions to a prompt, steps of a check, and those of them that are left out: kernels are compiled in them."""
REWARD = """
import fcntl
import json
import os
import time
from pathlib import Path

HERE, RANK = Path(__file__).parent, int(os.environ.get("RANK", 0))
CALLS = []
TURN = (HERE.parent / "grpo-turn").open("w")


def noted(prompts, completions, completion_ids, **columns):
    with (HERE / f"seen-{RANK}.jsonl").open("a") as file:
        file.write(json.dumps([str(prompt) for prompt in prompts]) + "\\n")
    CALLS.append(len(prompts))
    if len(CALLS) == WARM_UP:
        if RANK == 0:
            fcntl.flock(TURN, fcntl.LOCK_EX)
            (HERE / "turn.txt").touch()
        while not (HERE / "turn.txt").exists():
            time.sleep(0.02)
    return [sum(token % 2 == 0 for token in ids) / max(len(ids), 1) for ids in completion_ids]
"""
"""Reward for even tokens, which a random model learns; notes the prompts of each call.

Runs that stand side by side start together and take their measured steps one after the other: in the last step that
isn't measured, rank 0 waits until no other run holds the lock, which goes with its process. The others wait for rank 0
here, since a rank that waits in NCCL keeps its GPU busy.
"""


def grpo_run(strategy: str, place: Place) -> dict[str, Any]:
    """Steps of `method: grpo` at the 1.5B shape, on several ranks: groups whole, ranks equal, where the seconds go, and
    memory against the plan. A random model hardly ever ends, so completions are as long as they may be, and prompts
    of one length leave one shape to compile for."""
    on_cpu = place.device == "cpu"
    rows, length, limit = (16, 24, 96) if on_cpu else (64, 128, 256)
    place.directory.mkdir(parents=True, exist_ok=True)
    for left in (*place.directory.glob("seen-*.jsonl"), place.directory / "turn.txt"):
        left.unlink(missing_ok=True)
    (place.directory / "noting.py").write_text(f"WARM_UP = {WARM_UP}\n{REWARD}", encoding="utf-8")
    prompts = [{"prompt": f"Number {number:02}: {'and ' * 10}so on."} for number in range(64)]
    data = place.directory / "prompts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in prompts), encoding="utf-8")
    values = place.values(
        "run",
        strategy,
        model={"name": "tiny" if on_cpu else "1.5B", "max_seq_length": limit},
        batch={"global_size": rows},
        rewards={"functions": [f"{place.directory / 'noting.py'}:noted"]},
        logging={"rank_sync_steps": 1},  # ranks that differ in a bit end the run (callbacks/rank_sync.py)
    )
    values["training"] = {
        "max_steps": STEPS,
        "learning_rate": 1e-4,
        "num_generations": GROUP,
        "max_completion_length": length,
        "save_strategy": "no",
        "overwrite": True,
    }
    described = place.directory / "run.yaml"
    described.write_text(yaml.safe_dump(values | {"method": "grpo", "data": {"path": str(data)}}), encoding="utf-8")
    place.run("run", *CLI, "launch", described)
    files = RunDirectory(place.directory / "run")
    lines = [json.loads(line) for line in files.step_log.read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "loss" in line]
    expect(len(steps) == STEPS, f"{len(steps)} steps")
    whole = _whole_groups(place, rows)
    plan = json.loads(files.plan.read_text(encoding="utf-8"))
    memory = json.loads(files.results.read_text(encoding="utf-8")).get("memory_gib", {})
    parts = {
        part: round(statistics.median(step[f"{part}_seconds"] for step in steps[WARM_UP:]), 4)
        for part in ("generating", "scoring", "updating")
    }
    return {
        "batch": f"{rows} completions, {GROUP} to a prompt, {length} tokens at most",
        "per_device": plan["per_device_batch_size"],
        "whole_groups": whole,
        "steps_with_equal_ranks": len(steps),
        "seconds": {"step": round(sum(parts.values()), 4)} | parts,
        "planned_seconds": plan["estimated_step_seconds"],
        "gib": memory,
        "planned_gib": plan["memory_gib"],
        "length": round(statistics.mean(step["completions/mean_length"] for step in steps), 1),
        "reward": [round(step["reward"], 4) for step in (steps[0], steps[-1])],
    }


def _whole_groups(place: Place, rows: int) -> int:
    """Return how many groups of one prompt the ranks' prompts make, one rank after the other, in all calls together;
    raises `CheckError` where one is cut."""
    seen = [path.read_text(encoding="utf-8").splitlines() for path in sorted(place.directory.glob("seen-*.jsonl"))]
    equal = len({len(calls) for calls in seen}) == 1
    expect(len(seen) == place.processes and equal, f"calls by rank: {list(map(len, seen))}")
    for number, parts in enumerate(zip(*seen, strict=True), start=1):
        prompts = [prompt for part in parts for prompt in json.loads(part)]
        expect(len(prompts) == rows, f"call {number} had {len(prompts)} completions, not {rows}")
        groups = [set(prompts[start : start + GROUP]) for start in range(0, rows, GROUP)]
        expect(all(len(group) == 1 for group in groups), f"call {number} cut a group: {groups}")
    return len(seen[0]) * rows // GROUP
