"""What is told around a run's curves: its batch, its machine, its phases, and how to load what it made."""

from __future__ import annotations

import shlex
from typing import Any

from ..artifacts.run_directory import RunDirectory
from ..artifacts.score_adapter import score_code
from ..config.start_adapter import ADAPTER_CONFIG
from ..files import read_json
from . import numbers
from .run_record import Recorded, at, number, rows, table, text


def loading(run: Recorded) -> dict[str, Any]:
    """What stands in the code that loads what the run made, and in the commands for it."""
    adapter, hub = run.adapter or run.checkpoint, table(at(run.results, "hub"))
    return {
        "adapter": adapter,
        "is_checkpoint": run.adapter is None and run.checkpoint is not None,
        "score": score_code(read_json(adapter / ADAPTER_CONFIG), str(adapter)) if adapter else "",
        "path": repr(str(adapter)),
        "length": at(run.run, "model", "max_seq_length") or 2048,
        "in_4bit": bool(at(run.run, "model", "load_in_4bit")),
        "hub": "" if hub.get("error") else text(hub.get("url")),
        "merge": shlex.quote(str(run.directory if run.adapter else adapter)),
        "resume": shlex.quote(str(RunDirectory(run.directory).description)),
    }


def batch(run: Recorded) -> list[tuple[str, str]]:
    """The factors of the global batch, and their product."""
    names = {
        "per_device": "rows per device",
        "accumulation": "accumulation",
        "data_parallel": "processes",
        "global_size": "rows per step",
    }
    told = run.batch
    return [(text(told[key]), name) for key, name in names.items()] if names.keys() <= told.keys() else []


def data(run: Recorded) -> list[tuple[str, str]]:
    """The rows that it trained on and was examined with, and what became of them."""
    told = [(name, text(at(run.run, "data", key))) for name, key in (("rows", "path"), ("held-out rows", "eval_path"))]
    share = number(at(run.run, "data", "eval_fraction"))
    told += [("held-out rows", f"{share:.3%} of them".replace(".000", ""))] if share else []
    sources = table(at(run.results, "data", "sources"))
    total = sum(number(count) or 0 for count in sources.values())
    told += [(f"of {name}", f"{numbers.figure(count)} rows, {count / total:.1%}") for name, count in sources.items()]
    told.append(("trained on", text(at(run.run, "data", "train_on"))))
    told.append(("chat template", text(at(run.run, "model", "chat_template"))))
    told.append(("added tokens", " ".join(map(text, rows(at(run.run, "model", "added_tokens"))[:8]))))
    counts = table(at(run.results, "data")).items()
    told += [
        (name.replace("_", " "), numbers.figure(found))
        for name, value in counts
        if (found := number(value)) is not None
    ]
    return [(name, value) for name, value in told if value]


def phases(run: Recorded) -> list[tuple[str, str]]:
    """How long each phase took on the slowest rank."""
    longest: dict[str, float] = {}
    for rank in run.ranks:
        for phase in rank.phases:
            name = text(phase.get("name"))
            longest[name] = max(longest.get(name, 0.0), number(phase.get("seconds")) or 0.0)
    return [(name, numbers.duration(seconds)) for name, seconds in longest.items() if name]


def hardware(run: Recorded) -> list[tuple[str, str]]:
    """The machine as the plan saw it, and each rank's place in it."""
    found = table(at(run.plan, "hardware"))
    told = []
    cores, host = number(at(found, "cpu_cores")), number(at(found, "host_memory_gib"))
    if cores is not None:
        told.append(("host", f"{cores:.0f} cores" + (f", {numbers.gib(host)}" if host is not None else "")))
    if at(found, "link"):
        told.append(("link", text(found["link"])))
    if at(found, "reason"):
        told.append(("found by", text(found["reason"])))
    for rank in run.ranks:
        place = filter(None, (text(rank.start.get("device")), text(rank.start.get("host"))))
        told += [(f"rank {rank.number}", ", ".join(place))] if rank.start else []
    if not run.ranks:
        for device in rows(at(found, "devices")):
            memory = numbers.gib(number(at(device, "memory_gib")))
            told.append((f"GPU {text(at(device, 'index'))}", f"{text(at(device, 'name'))}, {memory}"))
    return told


def versions(run: Recorded) -> dict[str, str]:
    """Return the versions of packages, as they ran."""
    told = [at(run.results, "versions"), *(rank.start.get("versions") for rank in run.ranks)]
    found = next((one for one in told if isinstance(one, dict) and one), {})
    return {text(name): text(version) for name, version in found.items()}
