"""The table of injected faults, from the results to docs/faults.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

OUT = Path("benchmarks/results/faults-cpu.json")
MARKS = ("<!-- injected -->", "<!-- /injected -->")
HEADER = ("trial", "fault", "struck", "ended with", "told after", "all ended after", "left", "goes on at", "adapter")


def table(report: dict[str, Any]) -> str:
    """Return the Markdown table of the trials, below how many there are."""
    trials: dict[str, dict[str, Any]] = report["trials"]
    verdicts = [seen["verdict"] for seen in trials.values()]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(sorted(verdicts)))
    known = ", ".join(
        f"{name} {report['versions'][name]}" for name in ("torch", "unsloth", "accelerate", "transformers")
    )
    lines = [f"{len(trials)} trials on a {report['device'].upper()}: {counts}. {known}.", ""]
    lines += ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    return "\n".join(lines + [f"| {' | '.join(row(name, seen))} |" for name, seen in trials.items()])


def row(name: str, seen: dict[str, Any]) -> list[str]:
    if "launches" not in seen:
        return [name, f"{seen['verdict']}: {' '.join(seen['why'].split())[:120]}", *[""] * (len(HEADER) - 2)]
    launches, left, resumed = seen["launches"], seen["left"], seen.get("resumed")
    if seen["verdict"] != "ok":
        name = f"{name}, **{seen['verdict']}**"
    adapter = (resumed or left)["adapter"]
    held = [f"checkpoint-{step}" for step in left["checkpoints"][-1:]]
    held += ["adapter"] * (left["adapter"] is not None) + ["adapter elsewhere"] * (left.get("elsewhere") is not None)
    return [
        name,
        f"{seen['fault']}: {seen['who']}",
        "; ".join(", ".join(places) for places in seen["at"]),
        ", ".join(str(launch["status"]) for launch in launches),
        ", ".join(_seconds(launch["seconds_to_first_word"]) for launch in launches),
        ", ".join(_seconds(launch["seconds_to_end"]) for launch in launches),
        ", ".join(held) or "nothing",
        "" if resumed is None else str(resumed["at"] or 0),
        "none" if adapter is None else "the same" if adapter == 0 else f"differs by {adapter:.1g}",
    ]


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} s"
