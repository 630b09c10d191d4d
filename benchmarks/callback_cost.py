"""What the callbacks cost: the same training with and without them, in turns of a few steps within one run.

    python -m benchmarks.callback_cost --out benchmarks/results/callback-cost-cpu.json [--model PATH] [--steps 120]

Rows are all of one length, so that steps are alike; turns in one process share its warmth, clocks and neighbours, which
differ between runs by more than what is measured. Each turn's first step is left out. Every step is logged, the dearest
setting. Two figures: `difference`, of the medians of steps with and without (noisy); and `inside`, the seconds that the
callbacks' own code takes (waiting for other ranks included), by callback. `RankSync` runs in each turn here, for a run
every hundred steps; its `inside` is divided accordingly. Every third turn has the callbacks and no watchdog: `watchdog`
is how much longer the median step with it takes. The heartbeat's thread runs in all other turns; its `inside` is the
processor's time that it takes, per step, beside the training.
`checkpoint` is what the default checkpoints cost: the median seconds of three written at the end, their GiB, and the
share of a run's time that one every `SAVE_MINUTES` takes.
`each` are the steps one by one, by rank: which they are, in which kind of turn, how long they took, and how much of it
inside of the callbacks.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import unsloth_accel  # noqa: F401  (first: sets what must be set before unsloth is imported)
from benchmarks.tables import measured_with
from unsloth_accel.callbacks.heartbeat import own
from unsloth_accel.files import write_atomically

if TYPE_CHECKING:
    from trl import SFTTrainer

TURN = 8
WITH, WITHOUT, UNWATCHED = KINDS = ("with", "without", "unwatched")
RANK_SYNC_STEPS = 100
KEPT = ("Guard", "EveryGradient", "LateTokenCount")
"""Of this package, but part of what is trained or checked once."""
EVENTS = ("on_step_begin", "on_substep_end", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end", "on_log")


def main() -> int:
    if sys.argv[1:2] == ["--worker"]:
        return work(sys.argv[2])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--rows", type=int, default=2, help="per device and step")
    parser.add_argument("--length", type=int, default=256, help="tokens per row, about")
    parser.add_argument("--processes", default="auto")
    parser.add_argument("--work", default="runs/callback-cost")
    options = parser.parse_args()
    from unsloth_accel.config.read_run import from_dict
    from unsloth_accel.hardware.hardware import Hardware
    from unsloth_accel.planning.planner import plan

    hardware = Hardware.detect()
    count = max(2, len(hardware.devices)) if options.processes == "auto" else int(options.processes)
    directory = Path(options.work).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    data = directory / "rows.jsonl"
    row = json.dumps({"text": " the" * options.length})
    data.write_text(f"{row}\n" * (options.rows * count * options.steps), encoding="utf-8")
    run = from_dict(
        {
            "model": {
                "name": str(Path(options.model).resolve()),
                "max_seq_length": options.length,
                "keep_activations": 0,
            },
            "data": {"path": str(data)},
            "batch": {"global_size": options.rows * count},
            "training": {"max_steps": options.steps, "per_device_train_batch_size": options.rows},
            "distributed": {"num_processes": count, "strategy": "ddp" if count > 1 else "single"},
            "logging": {"rank_sync_steps": TURN, "progress": True},
            "output_dir": str(directory / "out"),
        }
    )
    decided = plan(run, hardware)
    decided.write(directory / "out")
    flags = ["--config_file", str(directory / "out" / "accelerate.yaml"), "-m", "benchmarks.callback_cost"]
    command = [sys.executable, "-m", "unsloth_accel.cli", "launch", *flags, "--worker"]
    command.append(str(directory / "out" / "run.planned.yaml"))
    subprocess.run(command, check=True, env={**os.environ, **decided.accelerate_config.environment})
    report = {
        **measured_with(hardware, "callback_cost", *(Path(word).name for word in sys.argv[1:])),
        "model": Path(options.model).name,
        "processes": count,
        "rows_per_device": options.rows,
        "tokens_per_row": options.length,
        **json.loads((directory / "out" / "cost.json").read_text(encoding="utf-8")),
    }
    write_atomically(Path(options.out), json.dumps(report, indent=2) + "\n")
    print(json.dumps({key: value for key, value in report.items() if key != "each"}, indent=2))
    return 0


def work(run_yaml: str) -> int:
    """Train in one process of those launched; rank 0 writes cost.json beside the run."""
    import unsloth  # noqa: F401  # isort: skip
    from accelerate.utils import gather_object

    from benchmarks.pauses import wait_at_gate
    from unsloth_accel.adapters import environment
    from unsloth_accel.artifacts.run_directory import RunDirectory
    from unsloth_accel.callbacks import RankLog
    from unsloth_accel.callbacks.watch_ranks import watch_run
    from unsloth_accel.config.read_run import load
    from unsloth_accel.training.process import build_trainer

    wait_at_gate()
    run = load(run_yaml)
    files, log = RunDirectory(run.output_dir), RankLog(Path(run.output_dir, "logs"), environment.rank())
    watch_run(files, log, environment.world_size(), run.logging.hang_after, aloud=True)
    trainer = build_trainer(run, log)
    turns = take_turns(trainer)
    trainer.train()
    everyone = gather_object([turns.each])
    saved = checkpoint_cost(trainer)
    if environment.rank() == 0:
        write_atomically(files.path / "cost.json", json.dumps(turns.report() | {"checkpoint": saved, "each": everyone}))
    return 0


def checkpoint_cost(trainer: SFTTrainer) -> dict[str, Any]:
    """Write a checkpoint three times; every rank must call it."""
    from unsloth_accel.artifacts.checkpoints import files_of
    from unsloth_accel.artifacts.run_directory import RunDirectory
    from unsloth_accel.config.run_config import SAVE_MINUTES

    taken = []
    for _ in range(3):
        trainer.accelerator.wait_for_everyone()
        started = time.perf_counter()
        trainer._save_checkpoint(trainer.model, None)
        taken.append(time.perf_counter() - started)
    directory = RunDirectory(str(trainer.args.output_dir)).checkpoint(trainer.state.global_step)
    seconds = statistics.median(taken)
    return {
        "seconds": round(seconds, 3),
        "gib": round(sum(files_of(directory).values()) / 2**30, 3),
        "minutes_between": SAVE_MINUTES,
        "share": round(seconds / (60 * SAVE_MINUTES), 6),
    }


class Turns:
    """Step times with and without the callbacks, and the seconds inside of each."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
        self.inside: dict[str, float] = {}
        self.each: dict[str, list[Any]] = {"step": [], "kind": [], "seconds": [], "inside": []}
        self.steps_with = 0
        self.spent = 0.0
        """Seconds that the heartbeat's thread had taken when the turns that count began."""

    def report(self) -> dict[str, Any]:
        medians = {kind: statistics.median(seconds) for kind, seconds in self.seconds.items()}
        inside = {name: seconds / self.steps_with for name, seconds in self.inside.items()}
        heartbeat = own()
        if heartbeat is not None:  # a processor's time, beside the training
            # Where there are no callbacks, nobody counts the heartbeat's steps.
            watched = sum(len(self.seconds[kind]) for kind in (WITH, WITHOUT)) * TURN / (TURN - 1)
            inside["heartbeat's thread"] = (heartbeat.spent - self.spent) / watched
        if "RankSync" in inside:
            inside["RankSync"] *= TURN / RANK_SYNC_STEPS
        total = sum(inside.values())
        return {
            "steps": {kind: len(seconds) for kind, seconds in self.seconds.items()},
            "median_step_seconds": {kind: round(seconds, 5) for kind, seconds in medians.items()},
            "difference": round(medians[WITH] / medians[WITHOUT] - 1, 5),
            "watchdog": round(medians[WITH] / medians[UNWATCHED] - 1, 5),
            "inside_seconds_per_step": {name: round(value, 7) for name, value in sorted(inside.items())},
            "inside": round(total / medians[WITHOUT], 5),
        }


def take_turns(trainer: SFTTrainer) -> Turns:
    """Have `trainer` run `TURN` steps of each kind in turn."""
    from transformers import TrainerCallback

    from unsloth_accel.callbacks import Throughput

    turns = Turns()
    handler = trainer.callback_handler
    everyone = list(handler.callbacks)
    ours = [
        callback
        for callback in everyone
        if type(callback).__module__.startswith("unsloth_accel.callbacks") and type(callback).__name__ not in KEPT
    ]
    throughput = next(callback for callback in ours if isinstance(callback, Throughput))
    inner: list[float] = []

    def timed(name: str, plain: Any) -> Any:
        def run(*arguments: Any, **keywords: Any) -> Any:
            started = time.perf_counter()
            inner.append(0.0)
            try:
                return plain(*arguments, **keywords)
            finally:
                spent = time.perf_counter() - started
                within = inner.pop()
                turns.inside[name] = turns.inside.get(name, 0.0) + spent - within
                if inner:
                    inner[-1] += spent

        return run

    for callback in ours:
        for event in EVENTS:
            if event in vars(type(callback)):
                setattr(callback, event, timed(type(callback).__name__, getattr(callback, event)))
    # What runs outside of events: the hook before a forward pass, marks, and the lines of RunLog.
    for method in ("_count", "_mark"):
        setattr(throughput, method, timed("Throughput", getattr(throughput, method)))
    throughput.listeners[:] = [timed("RunLog", listener) for listener in throughput.listeners]

    heartbeat = own()
    beats = (heartbeat.write, heartbeat._look) if heartbeat else None

    def watch(on: bool) -> None:
        if heartbeat and beats:
            heartbeat.write, heartbeat._look = beats if on else (lambda passed: None, None)  # type: ignore[method-assign]

    class Switch(TrainerCallback):
        started = inside = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            now = time.perf_counter()
            turn, place = divmod(state.global_step - 1, TURN)
            kind, then = KINDS[turn % 3], KINDS[(turn + 1) % 3]
            # A turn's first step belongs to both; the first turns compile.
            if place and turn >= len(KINDS):
                seconds, inside = now - self.started, sum(turns.inside.values()) - self.inside
                turns.seconds[kind].append(seconds)
                values = (state.global_step, kind, round(seconds, 5), round(inside, 5))
                for column, value in zip(turns.each.values(), values, strict=True):
                    column.append(value)
            self.started, self.inside = now, sum(turns.inside.values())
            if place < TURN - 1:
                return
            watch(then != UNWATCHED)
            if then == WITHOUT:
                throughput.close()
                handler.callbacks = [callback for callback in everyone if callback not in ours] + [self]
            elif kind == WITHOUT:
                throughput.on_train_begin(args, state, control, **kwargs)
                handler.callbacks = [*everyone, self]

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if KINDS[(state.global_step // TURN) % 3] != WITHOUT:
                turns.steps_with += 1
            if state.global_step == TURN * len(KINDS):
                turns.inside.clear()
                turns.steps_with = 1
                if heartbeat is not None:
                    turns.spent = heartbeat.spent

    handler.callbacks = [*everyone, Switch()]
    return turns


if __name__ == "__main__":
    sys.exit(main())
