"""The checks of `benchmarks.gpu_checks` in which a model writes what it is trained on: groups, ranks, time, memory."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import yaml

from benchmarks.checks import CLI, FEW_LORA, LOSS, Place, at_once, expect, relative
from benchmarks.memory_checks import results_of
from unsloth_accel.artifacts.run_directory import RunDirectory
from unsloth_accel.config.read_run import from_dict
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.planning.planner import plan

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
    data = _prompts(place)
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


def _prompts(place: Place) -> Path:
    """Write prompts of one length, and return their file."""
    data = place.directory / "prompts.jsonl"
    prompts = ({"prompt": f"Number {number:02}: {'and ' * 10}so on."} for number in range(64))
    data.write_text("".join(json.dumps(row) + "\n" for row in prompts), encoding="utf-8")
    return data


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


EVEN = """
def even(prompts, completions, completion_ids, **columns):
    return [sum(token % 2 == 0 for token in ids) / max(len(ids), 1) for ids in completion_ids]
"""
ROWS_AT_ONCE, FEWER, LONGEST = 32, 8, 384
"""Completions on each GPU, those of a micro-batch where memory is spared, and tokens of one at most."""


def grpo_in_parts(place: Place) -> dict[str, Any]:
    """One of the GPUs with too little memory for the gradients of a step: they are computed in parts, from completions
    that were written once. Where the longest step is rehearsed, that is found out before the first."""
    peaks: dict[str, dict[str, float]] = {}

    def measured(label: str) -> None:
        peaks[label] = _short_run(place, label, ROWS_AT_ONCE if label == "whole" else FEWER)["memory_gib"]

    at_once(measured, ("whole", "fewer"))
    whole, fewer = (peaks[label]["reserved"] for label in ("whole", "fewer"))
    limit = round((whole + fewer) / 2, 2)
    found: dict[str, dict[str, Any]] = {}

    def short(label: str) -> None:
        found[label] = _short_run(place, label, ROWS_AT_ONCE, rehearse=label == "rehearsed", limit=f"{limit}:1")

    at_once(short, ("limited", "rehearsed"))
    told = found["limited"].get("out_of_memory", [])
    expect(bool(told), f"{limit} GiB were enough, between {fewer} and {whole}")
    expect({one["rank"] for one in told} == {1}, f"another rank than the one without memory halved: {told}")
    rehearsal = found["rehearsed"].get("rehearsal", {})
    expect("told" in rehearsal, f"nothing was rehearsed: {rehearsal}")
    late = found["rehearsed"].get("out_of_memory", [])
    expect(all(one["step"] == 0 for one in late), f"out of memory after the rehearsal: {late}")
    off = {label: _first_steps_apart(place, "whole", label) for label in ("limited", "rehearsed")}
    gib = [round(whole, 2), limit, round(fewer, 2)]
    return {"gib": gib, "out_of_memory": told, "rehearsed": rehearsal["told"], "first step": off}


def grpo_rehearsed(strategy: str, place: Place) -> dict[str, Any]:
    """A run whose longest step was rehearsed writes the same completions, and trains the same first step."""
    found: dict[str, dict[str, Any]] = {}

    def one(label: str) -> None:
        found[label] = _short_run(place, label, FEWER, rehearse=label == "on", strategy=strategy)

    at_once(one, ("off", "on"))
    told = found["on"].get("rehearsal", {}).get("told")
    expect(bool(told), "nothing was rehearsed")
    return {"first step": _first_steps_apart(place, "off", "on"), "told": told}


def _short_run(
    place: Place,
    label: str,
    per_device: int,
    *,
    rehearse: bool = False,
    limit: str | None = None,
    strategy: str = "ddp",
) -> dict[str, Any]:
    """Return the results of three steps of `method: grpo`, `per_device` completions in a micro-batch."""
    rows, longest = (8, 24) if place.device == "cpu" else (ROWS_AT_ONCE, LONGEST)
    place.directory.mkdir(parents=True, exist_ok=True)
    (place.directory / "even.py").write_text(EVEN, encoding="utf-8")
    data = _prompts(place)
    values = place.values(
        label,
        strategy,
        model={"max_seq_length": 64 + longest, "keep_activations": 0},
        batch={"global_size": rows * place.processes, "rehearse": rehearse},
        rewards={"functions": [f"{place.directory / 'even.py'}:even"]},
        **FEW_LORA,
    )
    values["training"] = {
        "max_steps": 3,
        "learning_rate": 1e-4,
        "per_device_train_batch_size": min(per_device, rows),
        "num_generations": GROUP,
        "max_completion_length": longest,
        "save_strategy": "no",
    }
    decided = plan(from_dict(values | {"method": "grpo", "data": {"path": str(data)}}), Hardware.detect())
    decided.write(place.directory / label)
    return results_of(place, label, decided, limit)


def _first_steps_apart(place: Place, one: str, other: str) -> float:
    """Return by how much the gradients of the first step differ in two runs; raises `CheckError` where that is much,
    or where not the same was written."""
    steps = []
    for label in (one, other):
        lines = RunDirectory(place.directory / label).step_log.read_text(encoding="utf-8").splitlines()
        steps.append(next(line for line in map(json.loads, lines) if "loss" in line))
    rewards, norms = ([step[name] for step in steps] for name in ("reward", "grad_norm"))
    expect(rewards[0] == rewards[1], f"other completions were written: rewards {rewards}")
    off = relative(norms[:1], norms[1:])
    expect(off <= LOSS, f"gradient norms differ by {off:.2g}: {norms}")
    return off
