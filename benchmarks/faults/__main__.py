"""Faults injected into real launches on a CPU: what is told, what is left, whether the run goes on from it.

    python -m benchmarks.faults [--only 'ddp/rank1-*' …] [--jobs 6] [--shard 1/2] [--out FILE.json]
    python -m benchmarks.faults --table docs/faults.md

Each trial launches a small run of some seconds with `unsloth-accel launch`, has a fault strike it at a step drawn by
--seed, and goes on from what is left; the adapter is compared with that of a run that nothing has struck. Needs a small
disk for some (mount, or unshare -rm); where there is none these are told as not run. --out is extended.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from unsloth_accel.adapters.saving import versions
from unsloth_accel.files import filled, read_json, write_atomically

from . import places, watched
from .described import ROOT, SMOLLM2
from .one_trial import run_trial
from .page import MARKS, OUT, table
from .places import begin_where_mounts_are_allowed
from .trial import Trial
from .trials import trials
from .workplace import Workplace


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--strategies", help="the first one gets all trials; default ddp and those that the device has")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=["*"], metavar="NAME", help="names of trials, or patterns")
    parser.add_argument("--shard", default="1/1", metavar="N/OF", help="every OF-th trial, from the Nth")
    parser.add_argument("--missing", action="store_true", help="leave out those that --out has as ok")
    parser.add_argument("--jobs", type=int, default=1, help="trials at once; each has three processes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no trial after so many")
    parser.add_argument("--out", default=str(OUT), help="JSON; default %(default)s")
    parser.add_argument("--work", default="runs/faults", help="where models, rows and runs go; failed trials stay")
    parser.add_argument("--forked", action="store_true", help="fork processes from one that has imported torch")
    parser.add_argument("--list", action="store_true", help="name the trials, and run none")
    parser.add_argument("--table", metavar="FILE", help="write --out's table into that page, and run nothing")
    options = parser.parse_args()
    out = Path(options.out)
    if options.table:
        page = Path(options.table)
        page.write_text(filled(page.read_text(encoding="utf-8"), MARKS, table(read_json(out))), encoding="utf-8")
        return 0
    strategies = options.strategies or ("ddp,fsdp2_native" if options.device == "cpu" else "ddp,fsdp2,fsdp2_native")
    every = trials(options.seed, strategies.split(","), options.processes)
    wanted = chosen(options, every, read_json(out))
    if options.list or not wanted:
        print("\n".join(trial.name for trial in wanted) or "no such trials")
        return 0 if wanted else 2
    begin_where_mounts_are_allowed()
    place = Workplace(Path(options.work).absolute(), options.device, options.forked)
    place.prepare()
    # A background job ignores some of them, and so would the launches.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, leave)
    return report(wanted, place, options, {trial.name: number for number, trial in enumerate(every)})


def leave(number: int, frame: Any) -> None:
    """End what was started, and leave at once: trials are in threads that nothing else ends."""
    for launch in [*watched.running]:
        launch.end()
    for disk in [*places.mounted]:
        disk.drop()
    os._exit(128 + number)


def chosen(options: argparse.Namespace, every: list[Trial], earlier: dict[str, Any]) -> list[Trial]:
    number, of = map(int, options.shard.split("/"))
    done = {name for name, seen in earlier.get("trials", {}).items() if options.missing and seen["verdict"] == "ok"}
    wanted = [one for one in every if any(fnmatch(one.name, pattern) for pattern in options.only)]
    return [one for one in wanted if one.name not in done][number - 1 :: of]


def report(wanted: list[Trial], place: Workplace, options: argparse.Namespace, order: dict[str, int]) -> int:
    """Run the trials, write what was seen of each at once in `order`, print a summary; returns the exit status."""
    out = Path(options.out)
    began = time.monotonic()
    writing = threading.Lock()
    out.parent.mkdir(parents=True, exist_ok=True)

    def run(trial: Trial) -> tuple[str, str]:
        if time.monotonic() - began > options.seconds:
            return trial.name, "not begun"
        if trial.model == "smollm2" and not (SMOLLM2 / "config.json").is_file():
            seen: dict[str, Any] = {"verdict": "not run", "why": f"no {SMOLLM2.relative_to(ROOT)}: make quickstart"}
        else:
            first = time.monotonic()
            try:
                seen = run_trial(trial, place, options.seed)
            except Exception as error:  # the others go on
                seen = {"verdict": "broken", "why": f"{type(error).__name__}: {error}"[:2000]}
            seen |= {
                "forked": place.forked,
                "date": time.strftime("%Y-%m-%d"),
                "seconds": round(time.monotonic() - first),
            }
        with writing:
            facts = {"command": "python -m benchmarks.faults", "versions": versions(), "device": place.device}
            known = read_json(out).get("trials", {}) | {trial.name: seen}
            names = sorted(known, key=lambda name: order.get(name, len(order)))
            text = json.dumps(facts | {"seed": options.seed, "trials": {name: known[name] for name in names}}, indent=1)
            for path in (place.work, ROOT, sys.prefix):  # where this machine keeps things is nobody's business
                text = text.replace(f"{path}/", "")
            write_atomically(out, text + "\n")
            print(f"{time.monotonic() - began:.0f}s {trial.name}: {seen['verdict']} {seen['why']}", flush=True)
        return trial.name, seen["verdict"]

    with ThreadPoolExecutor(options.jobs) as pool:
        found = dict(pool.map(run, wanted))
    counts = {verdict: [*found.values()].count(verdict) for verdict in dict.fromkeys(found.values())}
    print("\n".join(f"{verdict:10} {name}" for name, verdict in found.items() if verdict != "ok"))
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()), f"of {len(found)} trials")
    return 0 if {*counts} <= {"ok"} else 1


if __name__ == "__main__":
    sys.exit(main())
