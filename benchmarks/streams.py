"""What a step's time on the GPU goes into: by stream, how long it works and stands still, and its largest kernels.

    BENCHMARK_PROFILE=/tmp/fsdp2 \\
        unsloth-accel launch --config_file D/accelerate.yaml -m benchmarks.worker D/run.planned.yaml
    python -m benchmarks.streams /tmp/ddp-0.json /tmp/fsdp2-0.json

The second prints the files side by side: where a kernel takes longer beside copies, and where a stream waits. Of the
busiest stream's gaps it tells what another stream was done with right before each ended, which it may have waited for;
`nothing` is the processor, which hadn't come so far. Last come the lines of Python at which the processor waited for
the GPU, after each of which it starts from an empty queue.
"""

from __future__ import annotations

import bisect
import json
import re
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

FIRST, STEPS = 8, 3
"""Steps before those that are looked at, and how many those are."""
SHOWN = 14
"""Kernels per stream, and kinds of gaps."""
SYNCHRONIZING = "called a synchronizing CUDA operation"
LEAST_GAP, RIGHT_BEFORE = 50.0, 40.0
"""Microseconds: of a gap that is looked at, and from the end of what was waited for to the kernel that waited."""


def profile_every_trainer(path: Path) -> None:
    """Have each Trainer that is made from now on profile `STEPS` steps, and write `path`."""
    import torch
    from transformers import TrainerCallback, trainer

    class Profile(TrainerCallback):
        profile: Any = None
        waits: Waits | None = None

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == FIRST:
                self.profile = torch.profiler.profile()
                self.profile.start()
            if state.global_step == FIRST + STEPS and self.profile is not None:
                self.profile.stop()
                # In steps of their own: a warning takes time.
                self.waits = Waits()
                self.waits.start()
                kernels = [
                    (str(event.device_resource_id), event.name, event.time_range.start, event.time_range.end)
                    for event in self.profile.events()
                    # An annotation (`Optimizer.step`) spans what it holds, and is no work of its own.
                    if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation
                ]
                self.found = summary(kernels)
            if state.global_step == FIRST + 2 * STEPS and self.waits is not None:
                self.found["waits"] = self.waits.stop()
                path.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")

    trainer.DEFAULT_CALLBACKS.append(Profile)


class Waits:
    """Where Python waits for the GPU, between `start` and `stop`: torch warns of each such call at its line."""

    def __init__(self) -> None:
        self.lines: Counter[str] = Counter()
        self._context = warnings.catch_warnings()
        self._plain: Any = None

    def start(self) -> None:
        import torch

        self._context.__enter__()
        self._plain = warnings.showwarning
        setattr(warnings, "showwarning", self._show)  # noqa: B010  (its type is narrower than what it is called with)
        warnings.filterwarnings("always", message=SYNCHRONIZING)
        torch.cuda.set_sync_debug_mode("warn")

    def stop(self, steps: int = STEPS) -> dict[str, float]:
        """Times per step, by line, the most frequent first."""
        import torch

        torch.cuda.set_sync_debug_mode("default")
        self._context.__exit__(None, None, None)
        return {line: round(count / steps, 1) for line, count in self.lines.most_common()}

    def _show(self, message: Any, category: Any, filename: str, lineno: int, *rest: Any) -> None:
        if re.search(SYNCHRONIZING, str(message)):
            self.lines["/".join([*Path(filename).parts[-3:]]) + f":{lineno}"] += 1
        else:
            self._plain(message, category, filename, lineno, *rest)


def summary(kernels: Iterable[tuple[str, str, float, float]], steps: int = STEPS) -> dict[str, Any]:
    """Of (stream, name, start, end) in microseconds: milliseconds per step, by stream, the busiest first."""
    streams: dict[str, list[tuple[str, float, float]]] = defaultdict(list)
    for stream, name, start, end in kernels:
        streams[stream].append((name, start, end))
    found: dict[str, dict[str, Any]] = {}
    for stream, own in streams.items():
        by_name: dict[str, list[float]] = defaultdict(list)
        for name, start, end in own:
            by_name[name].append(end - start)
        busy = _union([(start, end) for _, start, end in own])
        span = max(end for *_, end in own) - min(start for _, start, _ in own)
        found[stream] = {
            "busy_ms": round(busy / steps / 1000, 3),
            "idle_ms": round((span - busy) / steps / 1000, 3),
            "kernels": _largest(by_name, steps),
        }
    found = dict(sorted(found.items(), key=lambda item: -item[1]["busy_ms"]))
    busiest = next(iter(found), None)
    if busiest is not None:
        others = [item for stream, own in streams.items() if stream != busiest for item in own]
        found[busiest]["gaps"] = gaps(streams[busiest], others, steps)
    return found


def gaps(
    own: Sequence[tuple[str, float, float]], others: Sequence[tuple[str, float, float]], steps: int
) -> dict[str, Any]:
    """The gaps between kernels of one stream, in milliseconds per step, by what came before, after, and ended them."""
    ended = sorted((end, name) for name, _, end in others)
    found: dict[str, list[float]] = defaultdict(list)
    ordered = sorted(own, key=lambda one: one[1])
    before, latest, _ = ordered[0]
    for name, start, end in ordered:
        if start - latest > LEAST_GAP:
            place = bisect.bisect_right(ended, (start, chr(0x10FFFF))) - 1
            waited = place >= 0 and ended[place][0] >= max(latest, start - RIGHT_BEFORE)
            what = _short(ended[place][1]) if waited else "nothing"
            found[f"{what}, from {_short(before)} to {_short(name)}"].append(start - latest)
        if end > latest:
            latest, before = end, name
    return _largest(found, steps)


def _largest(times: dict[str, list[float]], steps: int) -> dict[str, dict[str, float]]:
    """Of microseconds by name: milliseconds and calls per step of those that take longest in all, in that order."""
    largest = sorted(times, key=lambda name: -sum(times[name]))[:SHOWN]
    return {
        name: {"ms": round(sum(times[name]) / steps / 1000, 3), "calls": round(len(times[name]) / steps, 1)}
        for name in largest
    }


def _short(name: str) -> str:
    """A kernel's name without namespaces and what templates add, but with the operation that a general one is for."""
    plain = re.sub(r"\w+::|\(anonymous namespace\)|^void ", "", name)
    kernel = re.split(r"[<(]", plain)[0]
    operation = re.search(r"\w*(?:Functor|Op|ops)\w*|\w+_kernel_cuda|\w+_kernel_impl", plain[len(kernel) :])
    return (kernel + (f" {operation[0]}" if operation else "")).strip()[:60]


def _union(ranges: Sequence[tuple[float, float]]) -> float:
    total, latest = 0.0, float("-inf")
    for start, end in sorted(ranges):
        total += max(0.0, end - max(start, latest))
        latest = max(latest, end)
    return total


def main(*paths: str) -> int:
    for path in paths:
        print(path)
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        waits = found.pop("waits", {})
        for stream, own in found.items():
            print(f"  stream {stream}: works {own['busy_ms']:.1f} ms of a step, stands still {own['idle_ms']:.1f} ms")
            for name, one in own["kernels"].items():
                print(f"    {one['ms']:9.2f} ms {one['calls']:7.1f} × {name[:90]}")
            for name, one in own.get("gaps", {}).items():
                print(f"    {one['ms']:9.2f} ms {one['calls']:7.1f} gaps up to {name[:170]}")
        for line, count in waits.items():
            print(f"    {count:7.1f} waits for the GPU at {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
