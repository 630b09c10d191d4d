"""One trial from its beginning to its verdict."""

from __future__ import annotations

import random
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from unsloth_accel.artifacts.checkpoints import checkpoints
from unsloth_accel.artifacts.run_directory import RunDirectory, step_of
from unsloth_accel.config.start_adapter import ADAPTER_WEIGHTS
from unsloth_accel.files import read_json
from unsloth_accel.verify.tensors import largest_difference, read_tensors

from .actions import Scene
from .places import Disk
from .striking import struck_launch
from .trial import Trial
from .verdict import verdict
from .workplace import PATIENCE, Workplace


def run_trial(trial: Trial, place: Workplace, seed: int) -> dict[str, Any]:
    """What was seen in `trial`, and the verdict on it."""
    directory = place.work / trial.name.replace("/", "-")
    with suppress(FileNotFoundError):
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    disk = Disk(directory)
    try:
        if trial.disk_mib:
            try:
                disk.make(trial.disk_mib)
            except OSError as error:
                return {"verdict": "not run", "why": f"no small disk: {error}"}
        seen = _seen(trial, place, directory, disk, random.Random(f"{seed} {trial.name}"))
    finally:
        disk.drop()
    found, why = verdict(trial, seen, place.device)
    if found == "ok":
        shutil.rmtree(directory, ignore_errors=True)
    return seen | {"verdict": found, "why": why}


def _seen(trial: Trial, place: Workplace, directory: Path, disk: Disk, chance: random.Random) -> dict[str, Any]:
    on_disk = bool(trial.disk_mib) and not trial.on_disk
    output_dir = disk.path / "out" if on_disk else directory / "out"
    reference = place.undisturbed(trial)
    with suppress(FileNotFoundError):  # what Unsloth writes at its import, for seconds, under some strategies
        shutil.copytree(reference.parent / "compiled", directory / "compiled")
    if trial.prior:
        before = reference if trial.prior == "finished" else place.undisturbed(trial, killed=True)
        shutil.copytree(before, output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    variables = {trial.on_disk: str(disk.path)} if trial.on_disk else {}
    launches: list[dict[str, Any]] = []
    for number, strikes in enumerate(trial.launches):
        overrides = trial.overrides if number == 0 or trial.prior else _going_on(trial, output_dir)
        points = directory / f"points-{number}"
        scene = Scene(output_dir, disk, chance, lambda: place.launch(trial, directory / "second", output_dir))
        launches.append(struck_launch(trial, strikes, scene, points, place, directory, overrides, variables))
    seen: dict[str, Any] = {
        "fault": trial.fault,
        "who": trial.who,
        "at": [[f"{one.at} {one.step or ''}".strip() for one in strikes] for strikes in trial.launches],
        "launches": launches,
    }
    seen["left"] = {
        "checkpoints": [step_of(path) for path in checkpoints(output_dir)],
        "adapter": _difference(RunDirectory(output_dir).adapter, reference),
    }
    elsewhere = [Path(path) for launch in launches if (path := launch.pop("elsewhere"))]
    if trial.elsewhere:
        seen["left"]["elsewhere"] = _difference(elsewhere[-1], reference) if elsewhere else None
    for path in elsewhere:
        shutil.rmtree(path.parent, ignore_errors=True)
    if trial.prior == "finished":
        kept = [_difference(path, reference) for path in output_dir.rglob(RunDirectory(output_dir).adapter.name)]
        seen["left"]["earlier_adapter"] = 0.0 in kept
    disk.heal()
    if seen["left"]["adapter"] is None or (trial.prior == "finished" and not trial.goes_on):
        overrides = _going_on(trial, output_dir)
        if trial.prior == "finished":
            overrides = trial.overrides
        running = place.launch(trial, directory, output_dir, overrides, variables=variables)
        running.wait(running.ended, PATIENCE)
        left = running.end()
        seen["resumed"] = {
            "status": running.process.returncode,
            "at": read_json(RunDirectory(output_dir).results).get("training", {}).get("resumed_at"),
            "adapter": _difference(RunDirectory(output_dir).adapter, reference),
            "last_line": running.last_line,
            "processes_left": left,
        }
    return seen


def _going_on(trial: Trial, output_dir: Path) -> tuple[str, ...]:
    """Return the words by which a user goes on, or a scheduler, which repeats a command whatever came of it."""
    if trial.who.startswith("launch"):
        return ("--resume-if-any",)
    return ("training.resume=true",) if checkpoints(output_dir) else ()


def _difference(adapter: Path, reference: Path) -> float | None:
    """The largest difference of any number from the undisturbed run's adapter; None where there is no whole one."""
    try:
        found = read_tensors(adapter / ADAPTER_WEIGHTS)
    except (OSError, ValueError):
        return None
    wanted = read_tensors(RunDirectory(reference).adapter / ADAPTER_WEIGHTS)
    return largest_difference(found, wanted) if found.keys() == wanted.keys() else None
