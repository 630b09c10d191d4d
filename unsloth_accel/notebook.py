"""notebook_launch: run a plan from a notebook's cell, in processes of its own, with live output.

accelerate's `notebook_launcher` forks the kernel, which fails once CUDA is initialised or a library has started
threads. Here a fresh child process runs the real `accelerate launch`, as a terminal would.
"""

from __future__ import annotations

import codecs
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .accelerate_launch import ERRORS, Launch, LaunchError
from .adapters.kernel import environment_for_launch, memory_problems
from .hardware import detect
from .launch_child import MARK, REPORT, processes, to_json
from .launcher import Request, for_run, launch_of, made_room, plan_problems, run_problems
from .planner import Plan
from .problems import Problem, raise_errors
from .validation import ADAPTER

CHILD = "unsloth_accel.launch_child"
STOPPING = ((signal.SIGINT, 15.0), (signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0))
"""Signals to a launch that is to end, each with the seconds it may take before the next."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a run has left."""

    output_dir: Path
    results: dict[str, Any] = field(repr=False)
    """What results.json holds: `training`, `versions` and, with held-out rows, `before` and `after`."""
    steps: list[dict[str, Any]] = field(repr=False)
    """Every logged step: `step`, `loss`, `grad_norm`, `learning_rate`, `seconds`, …"""

    @property
    def adapter(self) -> Path:
        """The adapter's directory, for `FastLanguageModel.from_pretrained`."""
        return self.output_dir / ADAPTER


def notebook_launch(
    plan: Plan | str | os.PathLike[str], *overrides: str, resume: bool = False, overwrite: bool = False
) -> Finished:
    """Run `plan` (or a run's YAML with `key=value` overrides) and wait; its output appears in the cell as it comes.

    `resume` goes on from the newest checkpoint in output_dir, `overwrite` deletes an earlier run there.
    Raises `ConfigError` with every problem before anything starts or is written, and `LaunchError` with the failing
    rank's own message and exit status. Interrupting the cell ends all ranks, then raises `KeyboardInterrupt`; they end
    with the kernel too.
    """
    decided, problems = _prepare(plan, overrides, resume=resume, overwrite=overwrite)
    raise_errors(problems)
    for problem in [*problems, *memory_problems()]:
        print(problem, file=sys.stderr)
    with made_room(decided):
        _run(launch_of(decided))
    directory = Path(decided.run.output_dir).absolute()
    log = directory / "logs" / "steps.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    results = json.loads((directory / "results.json").read_text(encoding="utf-8"))
    return Finished(output_dir=directory, results=results, steps=[json.loads(line) for line in lines])


def _prepare(
    plan: Plan | str | os.PathLike[str], overrides: tuple[str, ...], *, resume: bool, overwrite: bool
) -> tuple[Plan, list[Problem]]:
    words = {name: True for name, said in (("resume", resume), ("overwrite", overwrite)) if said}
    if not isinstance(plan, Plan):
        given = (*overrides, *(f"training.{word}=true" for word in words))
        _, decided, problems = for_run(Request(run_yaml=os.fspath(plan), overrides=given), detect())
        print(decided, flush=True)
        return decided, problems
    problems = []
    if overrides:
        consequence, fix = "comes too late: the plan is made.", 'ua.plan("run.yaml", "key=value")'
        problems += [Problem(key=override, consequence=consequence, fix=fix) for override in overrides]
    plan = replace(plan, run=replace(plan.run, training={**plan.run.training, **words}))
    if plan.run.resume and plan.run.overwrite:
        consequence = "resume keeps the earlier run, overwrite deletes it."
        problems.append(Problem(key="training.resume", value=True, consequence=consequence, fix="choose one of them"))
    gpus = len(detect().devices)
    if plan.device == "cuda" and plan.num_processes > gpus:
        consequence = f"the plan is for other hardware: it needs {plan.num_processes} GPUs and {gpus} are visible."
        problems.append(Problem(key="plan", consequence=consequence, fix="make it here, with ua.plan(…)"))
    return plan, [*problems, *plan_problems(plan), *run_problems(plan.run)]


def _run(command: Launch) -> None:
    mark = uuid.uuid4().hex
    environment = {**environment_for_launch(), MARK: mark, "PYTHONUNBUFFERED": "1"}
    with _uninterrupted() as interrupts:
        child = subprocess.Popen(
            [sys.executable, "-m", CHILD, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            # The interrupt of a cell goes to the kernel's whole group; the ranks are told once, by us.
            start_new_session=True,
        )
    assert child.stdin is not None
    assert child.stdout is not None
    output = _Output(child.stdout.fileno())
    stopped = True
    try:
        if interrupts:
            raise KeyboardInterrupt
        with suppress(BrokenPipeError):  # it could not start, and says why
            child.stdin.write(to_json(command).encode())
            child.stdin.close()
        while child.poll() is None:
            output.wait(0.5)
        stopped = False
    finally:
        if stopped:
            output.silent = True
            print("\nstopping the run …", flush=True)
        _stop(child, mark, output)  # of a run that has ended something is left only if its launcher was killed
        if stopped:
            print("the run is stopped; all its processes have ended.", flush=True)
        output.close()
        child.stdout.close()
    if child.returncode:
        raise _failure(command, child.returncode)


def _stop(child: subprocess.Popen[bytes], mark: str, output: _Output) -> None:
    """End every process of the launch and wait until none is left; returns at once when there is none.

    Raises `LaunchError` with the processes that survive even SIGKILL (stuck in a driver).
    """
    with _uninterrupted():
        for number, patience in STOPPING:
            left = processes(mark)
            if not left:
                return
            launcher = [process for process in left if process.pid == child.pid]
            # The launcher ends its ranks in order; the harder signals are for whatever didn't listen.
            for process in (launcher or left) if number == signal.SIGINT else left:
                with suppress(Exception):
                    process.send_signal(number)
            deadline = time.monotonic() + patience
            while time.monotonic() < deadline and (child.poll() is None or processes(mark)):
                output.wait(0.2)
    alive = processes(mark)
    if alive:
        numbers = ", ".join(str(process.pid) for process in alive)
        raise LaunchError(f"processes {numbers} of the run can't be ended; they may hold a GPU.", 137)


@contextmanager
def _uninterrupted() -> Iterator[list[int]]:
    """Hold interrupts back, and collect them: an impatient second one must not leave ranks running.

    Only the main thread is ever interrupted.
    """
    interrupts: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    previous = signal.signal(signal.SIGINT, lambda number, frame: interrupts.append(number))
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, previous)


def _failure(command: Launch, status: int) -> LaunchError:
    assert command.output_dir is not None
    report = command.output_dir / ERRORS / REPORT
    if report.is_file():
        told = json.loads(report.read_text(encoding="utf-8"))
        return LaunchError(told["message"], told["exit_status"])
    if status < 0:
        name = signal.Signals(-status).name
        return LaunchError(f"accelerate launch was ended by {name}; its ranks were ended too.", 128 - status)
    return LaunchError(f"accelerate launch ended with exit status {status}; its own error is above.", status)


class _Output:
    """Writes what comes from a pipe to the cell: whole lines at once, a progress bar at most once a second."""

    _PIECE = re.compile(r"([^\r\n]*)(\r?\n|\r(?=.))", re.DOTALL)
    """A line, or a state of a bar: text that a carriage return lets the next one overwrite."""

    def __init__(self, pipe: int) -> None:
        self.silent = False
        """Read on and show nothing: the last words of ranks that are being stopped."""
        self._pipe = pipe
        self._selector = selectors.DefaultSelector()
        self._selector.register(pipe, selectors.EVENT_READ)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""
        self._bar_shown = False
        self._bar_time = float("-inf")

    def wait(self, seconds: float) -> None:
        """Show what comes within `seconds`; returns as soon as something has."""
        if not self._selector.get_map():
            time.sleep(seconds)
        elif self._selector.select(seconds):
            data = os.read(self._pipe, 1 << 16)
            if not data:
                self._selector.unregister(self._pipe)
            self.feed(data)

    def close(self) -> None:
        """Show what is left in the pipe."""
        while self._selector.get_map() and self._selector.select(0):
            self.wait(0)
        self._selector.close()
        if self._rest:
            self.feed(b"\n")

    def feed(self, data: bytes) -> None:
        text = self._rest + self._decoder.decode(data)
        shown = []
        end = 0
        for piece in self._PIECE.finditer(text):
            end = piece.end()
            shown.append(self._line(piece[1]) if piece[2].endswith("\n") else self._bar(piece[1]))
        self._rest = text[end:]
        if any(shown) and not self.silent:
            sys.stdout.write("".join(shown))
            sys.stdout.flush()

    def _line(self, text: str) -> str:
        start, self._bar_shown = "\r" if self._bar_shown else "", False
        return f"{start}{text}\n"

    def _bar(self, text: str) -> str:
        now = time.monotonic()
        if not text.strip() or now - self._bar_time < 1:
            return ""
        self._bar_shown, self._bar_time = True, now
        return f"\r{text}"
