"""Checks of `benchmarks.gpu_checks` in which something goes wrong in the middle of a run of two processes."""

from __future__ import annotations

import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.checks import CLI, CheckError, Place, adapter, apart, at_once, expect, losses, relative
from benchmarks.strategies import write_texts
from unsloth_accel.artifacts.checkpoints import checkpoints
from unsloth_accel.artifacts.run_directory import RunDirectory, rank_log
from unsloth_accel.config.start_adapter import ADAPTER_WEIGHTS

STEPS, SAVED, STRUCK = 30, 10, 12
"""Optimizer steps of a run that is struck, steps between its checkpoints, and the step from which on it is struck."""
WORD = 60.0
"""Seconds after which everything must have ended."""
MARK = "UNSLOTH_ACCEL_CHECKED"
"""Environment variable by which the processes of a launch are known: its output_dir."""
HANG_AFTER = 20.0
"""Seconds of logging.hang_after; the check allows as much again, for a machine that many checks share."""
ADAPTER = 0.05
"""How far apart the adapters may end, of the way that they went: bf16, and kernels that add in an order of chance."""


def run_of(place: Place, label: str, strategy: str, **changes: Any) -> Path:
    training = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": SAVED} | changes.pop("training", {})
    logging = {"progress": False, "hang_after": HANG_AFTER}
    return place.description(label, strategy, training=training, logging=logging, **changes)


def processes_of(out: Path) -> list[tuple[int | None, psutil.Process]]:
    """Return rank and process of what `launched` has started for `out` and lives; None for a launcher's rank."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            variables = process.environ()
            if variables.get(MARK) == str(out) and process.status() != psutil.STATUS_ZOMBIE:
                found.append((int(variables["RANK"]) if "RANK" in variables else None, process))
    return found


def strike(out: Path, rank: int, number: signal.Signals, step: int = STRUCK) -> Callable[[], float]:
    """Wait in a thread until the run in `out` has made `step` steps, and send `rank` the signal then; what it returns
    gives the time at which that was, and raises `CheckError` where it never came to it."""
    struck: list[float] = []

    def when() -> float:
        expect(bool(struck), f"the run ended before rank {rank} got {number.name}")
        return struck[0]

    def work() -> None:
        process = None
        until = time.monotonic() + 400
        while time.monotonic() < until:
            made = steps_in(out)
            if made and process is None:
                process = dict(processes_of(out)).get(rank)
            if process is not None and made >= step:
                struck.append(time.time())
                process.send_signal(number)
                return
            time.sleep(0.01)

    threading.Thread(target=work, daemon=True).start()
    return when


def steps_in(out: Path) -> int:
    with suppress(OSError):
        return RunDirectory(out).step_log.read_bytes().count(b"\n")
    return 0


def ended_in(place: Place, label: str, since: float, most: float) -> float:
    """Return the seconds from `since` to the end of a launch, all whose processes have to be gone."""
    seconds = (place.directory / f"{label}.log").stat().st_mtime - since
    expect(seconds <= most, f"{label}: it took {seconds:.0f} s to end")
    time.sleep(1)
    left = end(place.directory / label)
    expect(not left, f"{label}: processes are left: {left}")
    return round(seconds, 1)


def end(out: Path) -> list[str]:
    """Kill what is left of what was started for `out`, also what is stopped; returns what that was."""
    left = []
    for _, process in processes_of(out):
        with suppress(psutil.Error):
            left.append(" ".join(process.cmdline())[:200])
            process.kill()
    return left


def launched(place: Place, label: str, run: Path, *more: str, fails: bool = False) -> str:
    """Launch `run` and return what it printed; `label` names its log, and marks its processes (`processes_of`).

    With `fails` it has to end with an exit status that is neither 0 nor 2.
    """
    out = place.directory / label
    try:
        said = place.run(label, *CLI, "launch", run, *more, variables={MARK: str(out)})
    except CheckError as error:
        if not fails or "exit status" not in str(error) or "exit status 2 " in str(error):
            end(out)  # what didn't end in time
            raise
        return (place.directory / f"{label}.log").read_text(encoding="utf-8", errors="replace")
    expect(not fails, f"{label}: ended with status 0")
    return said


def killed(strategy: str, place: Place) -> dict[str, Any]:
    """A rank that is killed in a step: named at once, all end, and what goes on ends where the undisturbed run does."""
    straight, out = place.directory / "straight", place.directory / "struck"
    said: dict[str, str] = {}
    when = strike(out, 1, signal.SIGKILL)

    def one(label: str) -> None:
        run = run_of(place, label, strategy)
        said[label] = launched(place, label, run, fails=label == "struck")

    at_once(one, ("straight", "struck"))
    seconds = ended_in(place, "struck", when(), WORD)
    told = [line for line in said["struck"].splitlines() if "rank 1" in line and "SIGKILL" in line]
    expect(bool(told), f"nobody said that rank 1 was killed: {said['struck'][-1500:]}")
    kept = [path.name for path in checkpoints(out)]
    expect(kept[:1] == [f"checkpoint-{SAVED}"], f"whole checkpoints: {kept}")
    launched(place, "resumed", place.directory / "struck.yaml", "training.resume=true")
    figures: dict[str, Any] = {
        "told": told[0].strip()[:200],
        "seconds": seconds,
        "resumed_at": results(out)["training"]["resumed_at"],
        "loss": relative(losses(straight)[-SAVED:], losses(out)[-SAVED:]),
        "adapter": apart(adapter(straight / "adapter"), adapter(out / "adapter")),
    }
    expect(figures["resumed_at"] == SAVED * len(kept), f"it went on at step {figures['resumed_at']} of {kept}")
    expect(figures["adapter"] <= ADAPTER, f"the adapters end apart by {figures['adapter']:.2g} of the way")
    return figures


def terminated(strategy: str, place: Place) -> dict[str, Any]:
    """SIGTERM to a rank while all evaluate: a checkpoint of that step, though the last forward pass had no backward
    pass, and what goes on from it ends where the undisturbed run does."""
    straight, out = place.directory / "straight", place.directory / "struck"
    write_texts(place.work / "long-evaluation.jsonl", [60 + (89 * i) % 450 for i in range(1024)])
    training = {"eval_strategy": "steps", "eval_steps": SAVED, "save_steps": 10 * STEPS}
    data = {"eval_path": "long-evaluation.jsonl"}
    when = strike(out, 1, signal.SIGTERM, SAVED)

    def one(label: str) -> None:
        run = run_of(place, label, strategy, training=training, data=data, evaluation={"max_rows": 8})
        launched(place, label, run, fails=label == "struck")

    at_once(one, ("straight", "struck"))
    seconds = ended_in(place, "struck", when(), WORD)
    kept = [path.name for path in checkpoints(out)]
    expect(kept == [f"checkpoint-{SAVED}"], f"whole checkpoints: {kept}")
    launched(place, "resumed", place.directory / "struck.yaml", "training.resume=true")
    after = apart(adapter(straight / "adapter"), adapter(out / "adapter"))
    expect(after <= ADAPTER, f"the adapters end apart by {after:.2g} of the way")
    return {"seconds": seconds, "resumed_at": results(out)["training"]["resumed_at"], "adapter": after}


def stopped(strategy: str, place: Place) -> dict[str, Any]:
    """A rank that stands still (SIGSTOP): it is named, with stacks of all, and all end, itself included."""
    out = place.directory / "struck"
    when = strike(out, 1, signal.SIGSTOP)
    run = run_of(place, "struck", strategy)
    said = launched(place, "struck", run, fails=True)
    seconds = ended_in(place, "struck", when(), 2 * HANG_AFTER + WORD / 2)
    told = [line for line in said.splitlines() if "rank 1 hangs" in line]
    expect(bool(told), f"nobody said that rank 1 hangs: {said[-1500:]}")
    expect("checkpoint-" in said.partition("rank 1 hangs")[2], "the last whole checkpoint is not named")
    return {"told": told[0].strip()[:300], "seconds": seconds, "kept": [path.name for path in checkpoints(out)]}


def no_random_state(strategy: str, place: Place) -> dict[str, Any]:
    """Rank 1 can't write its random state into a checkpoint: training goes on, the checkpoint's adapter stays, and what
    goes on does so from the one before."""
    out, label = place.directory / "struck", "struck"
    lost = RunDirectory(out).checkpoint(2 * SAVED)
    blocked = when_planned(out, [lost / "rng_state_1.pth"])
    said = launched(place, label, run_of(place, label, strategy))
    next(blocked)
    told = [line for line in said.splitlines() if "warning" in line and lost.name in line]
    expect(bool(told), f"nobody said that {lost.name} isn't whole: {said[-1500:]}")
    adapter(out / "adapter")
    adapter(lost)
    kept = [path.name for path in checkpoints(out)]
    expect(kept == [f"checkpoint-{SAVED}", f"checkpoint-{STEPS}"], f"whole checkpoints: {kept}")
    for name in (f"checkpoint-{STEPS}", "adapter"):
        shutil.rmtree(out / name)
    RunDirectory(out).results.unlink()
    launched(place, "resumed", place.directory / "struck.yaml", "training.resume=true")
    at = results(out)["training"]["resumed_at"]
    expect(at == SAVED, f"it went on at step {at}")
    return {"told": told[0].strip()[:300], "resumed_at": at}


def no_checkpoint(strategy: str, place: Place) -> dict[str, Any]:
    """With load_best_model_at_end rank 0 can write no checkpoint at all: the run ends, with the last step's adapter."""
    out, label = place.directory / "struck", "struck"
    files = RunDirectory(out)
    blocked = when_planned(out, [files.checkpoint(step) / ADAPTER_WEIGHTS for step in range(SAVED, STEPS + 1, SAVED)])
    training = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": SAVED}
    data = {"eval_path": "rows.jsonl"}
    said = launched(place, label, run_of(place, label, strategy, training=training, data=data))
    next(blocked)
    adapter(out / "adapter")
    lines = [json.loads(line) for line in rank_log(files.logs, 0).read_text(encoding="utf-8").splitlines()]
    last = max(line["time"] for line in lines if line["event"] == "step")
    seconds = ended_in(place, label, last, WORD)
    expect(not checkpoints(out), f"whole checkpoints: {checkpoints(out)}")
    told = [line for line in said.splitlines() if "warning" in line and "checkpoint-" in line]
    expect(len(told) >= STEPS // SAVED, f"not every checkpoint that is missing was told: {said[-1500:]}")
    expect(results(out)["adapter"]["step"] == STEPS, f"whose weights it has: {results(out)['adapter']}")
    return {"told": told[-1].strip()[:300], "seconds": seconds}


def when_planned(out: Path, files: list[Path]) -> Iterator[None]:
    """Have directories stand in the place of `files` as soon as the run in `out` has begun, which root can't write
    either. The first `next` of what is returned raises `CheckError` where that has not come about."""

    def work() -> None:
        until = time.monotonic() + 400
        while not RunDirectory(out).step_log.parent.is_dir() and time.monotonic() < until:
            time.sleep(0.05)
        for file in files:
            file.mkdir(parents=True)
        done.append(True)

    done: list[bool] = []
    threading.Thread(target=work, daemon=True).start()

    def check() -> Iterator[None]:
        expect(bool(done), "nothing stood in its way")
        yield

    return check()


def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RunDirectory(out).results.read_text(encoding="utf-8"))
    return found


FAULTS = {
    "killed": killed,
    "terminated": terminated,
    "stopped": stopped,
    "no-random-state": no_random_state,
    "no-checkpoint": no_checkpoint,
}
