"""What a run left in its directory, read so that a crash in the middle or an older run costs no more than its figures.

No file is required. A line that was cut short is left out, a step that was trained twice (a run that went on from a
checkpoint) counts as it was trained last.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..artifacts.checkpoints import STATE, checkpoints
from ..artifacts.run_directory import RunDirectory
from ..config.safe_reader import read_yaml
from ..config.start_adapter import ADAPTER_CONFIG
from ..errors import ConfigError, Problem
from ..files import parsed_json, read_bytes, read_json
from ..secret import HIDDEN, secrets_in, shown

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Rank:
    """One process, from its logs/rank-N.jsonl."""

    number: int
    start: Json
    """Its newest start: host, device, versions."""
    phases: tuple[Json, ...]
    steps: tuple[Json, ...]
    """A line per optimizer step, in order, each with the `world_size` that it was trained in."""
    messages: tuple[Json, ...]
    """Its warnings and errors."""
    end: Json
    """Line that it logged at its end; empty where the process did not come to its end."""
    starts: int
    """Number of its starts: two, where the run went on from a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """Everything that a run's directory tells; what is missing is empty."""

    directory: Path
    plan: Json
    """plan.json: `Plan.to_dict()`."""
    run: Json
    """run.planned.yaml."""
    planned_yaml: str
    accelerate_yaml: str
    results: Json
    summary: Json
    steps: tuple[Json, ...]
    """logs/steps.jsonl: rank 0's logged steps, those with a loss."""
    evaluations: tuple[Json, ...]
    """Figures on held-out rows while it trained, each with its step."""
    completions: tuple[Json, ...]
    """logs/completions.jsonl: some of those that were trained on, of every log."""
    ranks: tuple[Rank, ...]
    errors: tuple[Json, ...]
    """What failing ranks left, the first of them first; the launcher's own word comes before."""
    adapter: Path | None
    checkpoint: Path | None
    """The newest whole one."""
    attempts: int
    """How often training was started: 2 for a run that went on once."""

    @property
    def messages(self) -> tuple[Json, ...]:
        """Warnings and errors of all ranks, in the order of their time."""
        found = [message for rank in self.ranks for message in rank.messages] or tables(self.summary.get("warnings"))
        return tuple(sorted(found, key=lambda line: number(line.get("time")) or 0.0))

    @property
    def batch(self) -> dict[str, int]:
        """The rows of a step as they were trained, with the names of `planning.batch.Batch`; as planned, where no rank
        has told yet; empty where neither is known."""
        told = next((table(rank.start["batch"]) for rank in self.ranks if "batch" in rank.start), {})
        if told:
            return told
        training = table(at(self.run, "training"))
        found = {
            "per_device": at(self.plan, "per_device_batch_size") or training.get("per_device_train_batch_size"),
            "accumulation": at(self.plan, "gradient_accumulation_steps") or training.get("gradient_accumulation_steps"),
            "data_parallel": at(self.plan, "num_processes") or at(self.run, "distributed", "num_processes"),
            "global_size": at(self.results, "training", "global_batch_size")
            or at(self.plan, "global_batch_size")
            or at(self.run, "batch", "global_size"),
        }
        return {name: value for name, value in found.items() if value}

    @cached_property
    def totals(self) -> tuple[tuple[float, float, float], ...]:
        """Step, tokens of all ranks, seconds of the slowest one, for the steps that every rank logged."""
        found: dict[float, dict[int, tuple[float, float]]] = {}
        worlds: dict[float, int] = {}
        for rank in self.ranks:
            for step in rank.steps:
                tokens, seconds = number(step.get("tokens")), number(step.get("seconds"))
                if tokens is not None and seconds is not None:
                    found.setdefault(float(step["step"]), {})[rank.number] = (tokens, seconds)
                if rank.number == 0:  # a run may go on with another number of processes
                    worlds[float(step["step"])] = int(number(step.get("world_size")) or len(self.ranks))
        whole = [
            (step, [parts[n] for n in range(worlds[step])])
            for step, parts in sorted(found.items())
            if step in worlds and parts.keys() >= set(range(worlds[step]))
        ]
        return tuple((step, sum(n for n, _ in parts), max(s for _, s in parts)) for step, parts in whole)

    @property
    def adds_up(self) -> bool:
        """Whether the run went on from a checkpoint and its ranks' logs have all of it: summary.json and results.json
        tell of its last part only."""
        return self.attempts > 1 and bool(self.totals)


def read_run_record(directory: str | Path) -> Recorded:
    """Read a run's directory; raises `ConfigError` where it is none."""
    directory = Path(directory)
    files = RunDirectory(directory)
    if not files.is_run:
        what = "has no run's files" if directory.is_dir() else "no such directory"
        consequence = f"{what}, so there is nothing to report."
        fix = "name the output_dir of a run, or of a script with unsloth_accel.observe(trainer) before it trains"
        raise ConfigError(Problem(key=str(directory), consequence=consequence, fix=fix))
    ranks = tuple(sorted((_rank(path) for path in files.rank_logs()), key=lambda r: r.number))
    lines = read_lines(files.step_log)
    newest = checkpoints(directory)[-1:]
    trainer = read_json(newest[0] / STATE) if newest else {}
    description = read_yaml(files.description, dates=False)  # with a secret where an earlier version wrote it
    told = [*tables(trainer.get("log_history")), *lines]
    return Recorded(
        directory=directory,
        plan=read_json(files.plan),
        run=shown(description.values),
        planned_yaml=_without(description.text, secrets_in(description.values)),
        accelerate_yaml=_text(files.accelerate_yaml),
        results=read_json(files.results),
        summary=read_json(files.summary),
        steps=_by_step(line for line in lines if "loss" in line),
        evaluations=_by_step(line for line in told if "eval_loss" in line),
        completions=tuple(read_lines(files.completions)),
        ranks=ranks,
        errors=_errors(files, ranks),
        # A script's own may be beside its logs, by `trainer.save_model()`.
        adapter=next((path for path in (files.adapter, directory) if (path / ADAPTER_CONFIG).is_file()), None),
        checkpoint=newest[0] if newest else None,
        attempts=_attempts(lines, ranks),
    )


def _without(text: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return text


def number(value: Any) -> float | None:
    """`value` where it is a number that means something: neither NaN nor infinite, nor a whole number of any length."""
    if type(value) is float and -1e100 < value < 1e100:  # nearly always: long runs ask half a million times
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e100:
        return None
    return float(value)


def text(value: Any) -> str:
    """`value` as a reader should see it; empty for nothing."""
    return "" if value is None else str(value)


def at(values: Any, *keys: str) -> Any:
    """The value below `keys`; None where the way there ends."""
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    return values


def rows(value: Any) -> list[Any]:
    """`value` where it is a list, else none."""
    return value if isinstance(value, list) else []


def table(value: Any) -> Json:
    """`value` where it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def tables(value: Any) -> list[Json]:
    """The objects in a list; none where `value` is no list."""
    return [one for one in rows(value) if isinstance(one, dict)]


def values(lines: Iterable[Any], key: str) -> list[float]:
    """The numbers that `lines` have under `key`."""
    return [found for line in lines if (found := number(at(line, key))) is not None]


def _rank(path: Path) -> Rank:
    kinds: dict[str, list[Json]] = {}
    world = None
    for line in read_lines(path):
        kinds.setdefault(text(line.get("event")), []).append(line)
        world = line.get("world_size", world)
        line["world_size"] = world
    name = path.stem.removeprefix("rank-")
    start, end = (kinds.get(kind, [{}])[-1] for kind in ("start", "end"))
    return Rank(
        number=int(name) if name.isdecimal() else 0,
        start=start,
        phases=tuple(kinds.get("phase", [])),
        steps=_by_step(kinds.get("step", [])),
        messages=(*kinds.get("warning", []), *kinds.get("error", []), *kinds.get("hang", [])),
        # An end before the newest start is that of the attempt before.
        end=end if _time(end, unknown=math.inf) >= _time(start, unknown=-math.inf) else {},
        starts=len(kinds.get("start", [])),
    )


def _by_step(lines: Iterable[Json]) -> tuple[Json, ...]:
    """One line per step, the last that was written, in the order of steps."""
    found = {step: line for line in lines if (step := number(line.get("step"))) is not None}
    return tuple(found[step] for step in sorted(found))


def _attempts(lines: list[Json], ranks: tuple[Rank, ...]) -> int:
    # Without rank logs: `seconds` counts from the start of training, so it falls where a run went on.
    times = values(lines, "seconds")
    return max([1, *(rank.starts for rank in ranks), 1 + sum(b < a for a, b in itertools.pairwise(times))])


def _errors(files: RunDirectory, ranks: tuple[Rank, ...]) -> tuple[Json, ...]:
    """Those of the newest attempt: a run that was started again without `launch` still has the earlier ones."""
    if files.failed_report.exists():  # of an attempt that came to nothing: the run before it was put back
        return ()
    # The first of the newest starts: a rank may fail before the last one has started.
    since = min((_time(rank.start, unknown=0.0) for rank in ranks), default=0.0)
    since = max(since, files.results.stat().st_mtime if files.results.is_file() else 0.0)
    paths = [files.launch_error, *files.told_errors()]
    found = [error for error in map(read_json, paths) if error and _time(error, unknown=since) >= since]
    return tuple(sorted(found, key=lambda error: (error.get("rank") is not None, _time(error, unknown=0.0))))


def _time(line: Json, *, unknown: float) -> float:
    time = number(line.get("time"))
    return unknown if time is None else time


def read_lines(path: Path) -> list[Json]:
    """The objects of a file of JSON lines; those that are none, as after a crash, are left out."""
    lines = [line for line in _text(path).split("\n") if line.strip()]
    try:
        return tables(parsed_json(f"[{','.join(lines)}]"))  # at once, since a long run has many
    except ValueError:
        return tables([_value(line) for line in lines])


def _value(written: str) -> Any:
    try:
        return parsed_json(written)
    except ValueError:
        return None


def _text(path: Path) -> str:
    try:
        return read_bytes(path).decode("utf-8", errors="replace")
    except OSError:
        return ""
