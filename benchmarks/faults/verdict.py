"""What a trial has shown: lost, silent, left or ok."""

from __future__ import annotations

from typing import Any

from .trial import Trial

PATIENCE = 60.0
"""Seconds in which a fault has to be told."""
TOLERANCE = {"cpu": 0.0, "cuda": 2e-3}
"""How far a number of an adapter may be from the undisturbed run's: kernels of a GPU add in any order."""


def verdict(trial: Trial, seen: dict[str, Any], device: str = "cpu") -> tuple[str, str]:
    """The verdict in a word, the worst first, and why."""
    for word, fault in (
        ("not struck", _not_struck(seen)),
        ("left", _left(seen)),
        ("lost", _lost(trial, seen, TOLERANCE[device])),
        ("silent", _silent(trial, seen)),
    ):
        if fault:
            return word, fault
    return "ok", ""


def _not_struck(seen: dict[str, Any]) -> str:
    for number, launch in enumerate(seen["launches"]):
        if not launch["struck"]:
            return f"launch {number + 1} never came to the place"
    return ""


def _left(seen: dict[str, Any]) -> str:
    found = [
        name for launch in [*seen["launches"], seen.get("resumed", {})] for name in launch.get("processes_left", ())
    ]
    return f"{len(found)} processes: {found[0]}" if found else ""


def _lost(trial: Trial, seen: dict[str, Any], tolerance: float) -> str:
    left, resumed = seen["left"], seen.get("resumed")
    if left.get("earlier_adapter") is False and left["adapter"] is None:
        return "the earlier run's adapter is gone"
    if trial.goes_on and left["adapter"] is None:
        return f"the run didn't finish: {seen['launches'][-1]['last_lines'][-200:]}"
    if trial.elsewhere and left["adapter"] is None and left["elsewhere"] is None:
        return f"no adapter anywhere: {seen['launches'][-1]['last_lines'][-200:]}"
    if resumed is not None:
        if resumed["status"] != 0 or resumed["adapter"] is None:
            return f"it can't be gone on with: status {resumed['status']}: {resumed['last_line'][-200:]}"
        due = due_step(trial, seen)
        if not trial.prior and (resumed["at"] or 0) < due:
            return f"goes on at step {resumed['at'] or 0}, a checkpoint of step {due} was due"
    differences = [(resumed or left)["adapter"], left["adapter"], left.get("elsewhere")]
    worst = max((one for one in differences if one is not None), default=0.0)
    return f"the adapter differs by {worst:.2g}" if trial.exact and worst > tolerance else ""


def due_step(trial: Trial, seen: dict[str, Any]) -> int:
    """The step from which the run has to go on at least."""
    last = trial.launches[-1][0]
    if trial.saves and seen["launches"][-1]["step"]:
        return int(seen["launches"][-1]["step"]) - 1
    return last.kept


def _silent(trial: Trial, seen: dict[str, Any]) -> str:
    for number, launch in enumerate(seen["launches"]):
        status, statuses = launch["status"], trial.statuses
        fine = status in statuses if statuses else (status == 0) == trial.goes_on
        if not fine:
            wanted = " or ".join(map(str, statuses)) or ("0" if trial.goes_on else "one that isn't 0")
            return f"launch {number + 1} ended with {status}, not {wanted}: {launch['last_lines'][-200:]}"
        for other, told in launch.get("other_launch", ()):
            if other != 2 or "process" not in told:
                return f"the second launch ended with {other}: {told[-200:]}"
        if not trial.says:
            continue
        if launch["first_word"] is None:
            return f"launch {number + 1} never says what happened: {launch['last_lines'][-200:]}"
        if launch["seconds_to_first_word"] > PATIENCE:
            return f"no word for {launch['seconds_to_first_word']:.0f} s"
    return ""
