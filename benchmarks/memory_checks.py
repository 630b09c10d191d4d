"""The checks of `benchmarks.gpu_checks` of memory: too little of it, made so by limiting torch's allocator, and spent
on activations that are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import checks
from benchmarks.worker import GIB, MODULE
from unsloth_accel.artifacts.run_directory import RunDirectory
from unsloth_accel.planning.plan import Plan

LIMIT_GIB = 14.0
"""Below what the 8B shape's weights take, 15 GiB."""


def limited(strategy: str, place: checks.Place) -> dict[str, Any]:
    """The 8B shape on GPUs that have less memory than its weights take: one can't train it, several that shard can."""
    training = {"max_steps": 3, "per_device_train_batch_size": 1}
    model = {"name": "8B", "max_seq_length": 512, "keep_activations": 0}
    decided = place.planned("run", strategy, model=model, training=training, batch={"global_size": place.processes})
    if strategy == "single":
        try:
            results_of(place, "run", decided, str(LIMIT_GIB))
        except checks.CheckError as error:
            # The rank leaves its word for a launcher of ours; accelerate's own, here, doesn't read it.
            told = RunDirectory(place.directory / "run").rank_error(0)
            checks.expect(told.is_file() and "out of memory" in told.read_text(encoding="utf-8"), str(error))
            return {"gib": LIMIT_GIB, "ended": "out of memory, as it should"}
        raise checks.CheckError(f"one GPU trained it in {LIMIT_GIB} GiB")
    memory = results_of(place, "run", decided, str(LIMIT_GIB))["memory_gib"]
    checks.expect(max(memory["loading"], memory["training"]) < LIMIT_GIB, f"it took more: {memory}")
    return {"gib": LIMIT_GIB, "loading": memory["loading"], "training": memory["training"],
            "loss": checks.losses(place.directory / "run")}  # fmt: skip


def of_70b(place: checks.Place) -> dict[str, Any]:
    """The 70B shape in 16 bit, which no GPU of 140 GiB holds: refused for one, trained by several as planned."""
    changes: dict[str, Any] = {
        "model": {"name": "70B", "max_seq_length": 2048, "keep_activations": 0},
        "training": {"max_steps": 3, "per_device_train_batch_size": 1},
        "batch": {"global_size": place.processes},
        **checks.FULL_ROWS,
    }
    alone = place.description("one", "auto", distributed={"num_processes": 1}, **changes)
    said = place.run("one", *checks.CLI, "plan", alone, status=2)
    refused = next((line for line in said.splitlines() if "GiB" in line), "")
    checks.expect(bool(refused), f"not refused for its memory: {said[-600:]}")
    decided = place.planned("run", "fsdp2", **changes)
    memory = results_of(place, "run", decided)["memory_gib"]
    measured = {phase: memory[phase] for phase in ("loading", "training")}
    assert decided.memory is not None
    error = decided.memory.allocated / max(measured.values()) - 1
    checks.expect(abs(error) <= 0.1, f"planned {decided.memory.allocated:.2f} GiB, measured {measured}")
    return {"refused": refused.strip()[:200], "gib": measured, "error": round(error, 3),
            "loss": checks.losses(place.directory / "run")}  # fmt: skip


def halving(strategy: str, place: checks.Place) -> dict[str, Any]:
    """One of the GPUs with too little memory for 8 rows of 2048 at once, and enough for fewer: the same run, slower."""
    model = {"name": "llama", "max_seq_length": 2048, "keep_activations": 0}

    def trained(label: str, rows: int, limit: str | None = None) -> dict[str, Any]:
        changes = {"model": model, "batch": {"global_size": 8 * place.processes}, **checks.FULL_ROWS, **checks.FEW_LORA}
        training = {"max_steps": 4, "per_device_train_batch_size": rows}
        return results_of(place, label, place.planned(label, strategy, training=training, **changes), limit)

    peaks = [trained(label, rows)["memory_gib"] for label, rows in (("whole", 8), ("fewer", 2))]
    whole, fewer = (peak["reserved"] - peak["shared"] for peak in peaks)  # the limit is the allocator's
    limit = round((whole + fewer) / 2, 2)
    told = trained("limited", 8, f"{limit}:1").get("out_of_memory", [])
    checks.expect(bool(told), f"{limit} GiB were enough, between {fewer} and {whole}")
    checks.expect({one["rank"] for one in told} == {1}, f"another rank than the one without memory halved: {told}")
    off = checks.relative(checks.losses(place.directory / "whole"), checks.losses(place.directory / "limited"))
    checks.expect(off < checks.LOSS, f"losses differ by {off:.2g}")
    return {"gib": [round(whole, 2), limit, round(fewer, 2)], "out_of_memory": told, "loss": off}


def results_of(place: checks.Place, label: str, decided: Plan, limit: str | None = None) -> dict[str, Any]:
    """Launch a planned run, with `limit` GiB where that is given, and return its results."""
    run = place.directory / label
    words: list[str | Path] = ["--config_file", run / "accelerate.yaml", "-m", MODULE, run / "run.planned.yaml"]
    place.run(label, *checks.LAUNCH, *words, variables=decided.environment | ({GIB: limit} if limit else {}))
    found: dict[str, Any] = json.loads((run / "results.json").read_text(encoding="utf-8"))
    return found


def rehearsed(strategy: str, place: checks.Place) -> dict[str, Any]:
    """A run whose longest step was rehearsed is the same run; with too little memory it is corrected before step 1."""

    def trained(label: str, rehearse: bool, limit: str | None = None, **model: Any) -> dict[str, Any]:
        # With an adapter that fsdp2 divides, ranks meet in each pass and none can do it again.
        batch = {"global_size": 8 * place.processes, "rehearse": rehearse}
        changes = {"batch": batch, "model": model, **checks.FEW_LORA}
        decided = place.planned(label, strategy, training={"per_device_train_batch_size": 8}, **changes)
        return results_of(place, label, decided, limit)

    ways: dict[str, tuple[bool, Any]] = {"off": (False, 0), "off-again": (False, 0), "on": (True, 0)}
    ways["all"] = (False, "all")
    found: dict[str, dict[str, Any]] = {}

    def one(label: str) -> None:
        rehearse, kept = ways[label]
        found[label] = trained(label, rehearse, keep_activations=kept)

    checks.at_once(one, list(ways))
    runs = {label: checks.losses(place.directory / label) for label in found}
    chance, off = (max(abs(a - b) for a, b in zip(runs["off"], runs[way], strict=True)) for way in ("off-again", "on"))
    # Both are largest differences of two runs: by chance alone either may be the larger one.
    checks.expect(off <= 2 * chance, f"losses differ by {off} from a run without, which by itself differs by {chance}")
    peaks = {label: one["memory_gib"]["reserved"] - one["memory_gib"]["shared"] for label, one in found.items()}
    limit = round((peaks["all"] + peaks["off"]) / 2, 2)
    short = trained("limited", True, str(limit), keep_activations="all")
    told = short.get("rehearsal", {})
    before, after = told.get("keep_activations", (0, 0))
    checks.expect(after < before, f"{limit} GiB were enough, between {peaks['off']} and {peaks['all']}: {told}")
    checks.expect(not short.get("out_of_memory"), f"out of memory in a step: {short.get('out_of_memory')}")
    apart = checks.relative(runs["off"], checks.losses(place.directory / "limited"))
    checks.expect(apart < checks.LOSS, f"losses differ by {apart:.2g}")
    gib = [round(peaks["all"], 2), limit, round(peaks["off"], 2)]
    return {"off": off, "chance": chance, "gib": gib, "told": told.get("told"), "loss": apart}


def packed_kept(strategy: str, place: checks.Place) -> dict[str, Any]:
    """Packed rows train alike whether no decoder block keeps its activations or all do, which takes more memory."""
    ways: dict[str, int | str] = {"none": 0, "all": "all"}
    found: dict[str, dict[str, Any]] = {}

    def one(label: str) -> None:
        changes = {"model": {"keep_activations": ways[label]}, "training": {"packing": True}}
        place.run(label, *checks.CLI, "launch", place.description(label, strategy, **changes))
        found[label] = json.loads((place.directory / label / "results.json").read_text(encoding="utf-8"))

    checks.at_once(one, list(ways))
    counts = {label: results["training"]["keep_activations"] for label, results in found.items()}
    blocks = found["all"]["training"]["blocks"]
    checks.expect(counts == {"none": 0, "all": blocks} and blocks > 0, f"of {blocks} blocks were kept {counts}")
    packed = {label: results["data"].get("packed") for label, results in found.items()}
    checks.expect(all(packed.values()), f"rows were not packed: {packed}")
    runs = {label: checks.losses(place.directory / label) for label in ways}
    off = checks.relative(runs["none"], runs["all"])
    checks.expect(off <= checks.LOSS / 10, f"losses differ by {off:.2g}: {runs}")
    gib = {label: results["memory_gib"]["training"] for label, results in found.items() if "memory_gib" in results}
    checks.expect(not gib or gib["all"] > gib["none"], f"kept activations take no memory: {gib}")
    return {"loss": off, "kept": counts, "gib": gib}
