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
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..artifacts import resume_if_any
from ..artifacts.checkpoints import to_go_on
from ..artifacts.run_directory import RunDirectory
from ..errors import LaunchError, Problem, counted, raise_errors
from ..files import read_json
from ..hardware.hardware import Hardware
from ..planning.plan import Plan
from ..report.at_end import reported
from ..secret import shown_word
from ..validation.inputs import once_served
from .arguments import Request
from .child import Child
from .clean_environment import environment_for_launch, memory_problems
from .launcher import done_by, finished, for_run, launch_of, made_room, plan_problems, run_problems
from .run_accelerate import Launch


@dataclass(frozen=True, kw_only=True)
class Finished:
    """Results of a finished run."""

    output_dir: Path
    results: dict[str, Any] = field(repr=False)
    """Contents of results.json: `training`, `versions` and, with held-out rows, `before`, `after` and the
    `evaluations` while it trained."""
    steps: list[dict[str, Any]] = field(repr=False)
    """Every logged step: `step`, `loss`, `grad_norm`, `learning_rate`, `seconds`, …"""

    @property
    def adapter(self) -> Path:
        """The adapter's directory, for `FastLanguageModel.from_pretrained`."""
        return RunDirectory(self.output_dir).adapter


def notebook_launch(
    plan: Plan | str | os.PathLike[str], *overrides: str, resume: bool | str = False, overwrite: bool = False
) -> Finished:
    """Run `plan` (or a run's YAML with `key=value` overrides) and wait; its output appears in the cell as it comes.

    `resume` goes on from the newest checkpoint in output_dir, with "if_any" where there is one, and returns what a
    finished run left; `overwrite` deletes an earlier run there.
    Raises `ConfigError` with every problem before anything starts or is written, and `LaunchError` with the failing
    rank's own message and exit status. Interrupting the cell ends all ranks, then raises `KeyboardInterrupt`; they end
    with the kernel too.
    """
    words = {name: said for name, said in (("resume", resume), ("overwrite", overwrite)) if said}
    done = finished(_request(plan, overrides, words)) if not isinstance(plan, Plan) else None
    if isinstance(plan, Plan):
        plan = replace(plan, run=replace(plan.run, training={**plan.run.training, **words}))
        done = done_by(plan.run)
    if done is None:
        decided, problems = _prepare(plan, overrides, words)
        problems = once_served(decided.run, problems)
        raise_errors(problems)
        for problem in [*problems, *memory_problems()]:
            print(problem, file=sys.stderr)
        command = launch_of(decided)
        with made_room(decided) as variables, reported(decided.run.output_dir):
            _run(replace(command, environment=command.environment | variables))
        done = RunDirectory(decided.run.output_dir)
    files = RunDirectory(done.path.absolute())
    lines = files.step_log.read_text(encoding="utf-8").splitlines() if files.step_log.is_file() else []
    results = read_json(files.results)  # empty where there was no room for it
    steps = [step for step in map(json.loads, lines) if "loss" in step]
    return Finished(output_dir=files.path, results=results, steps=steps)


def _request(run_yaml: str | os.PathLike[str], overrides: tuple[str, ...], words: Mapping[str, bool | str]) -> Request:
    said = (f"training.{word}={str(value).lower()}" for word, value in words.items())
    return Request(run_yaml=os.fspath(run_yaml), overrides=(*overrides, *said))


def _prepare(
    plan: Plan | str | os.PathLike[str], overrides: tuple[str, ...], words: Mapping[str, bool | str]
) -> tuple[Plan, list[Problem]]:
    if not isinstance(plan, Plan):
        _, decided, problems = for_run(_request(plan, overrides, words), Hardware.detect())
        print(decided, flush=True)
        return decided, problems
    consequence, fix = "comes too late: the plan is made.", 'ua.plan("run.yaml", "key=value")'
    problems = [Problem(key=shown_word(override), consequence=consequence, fix=fix) for override in overrides]
    plan = replace(plan, run=resume_if_any.decided(plan.run))
    if plan.run.resume and plan.run.overwrite:
        consequence = "resume keeps the earlier run, overwrite deletes it."
        problems.append(Problem(key="training.resume", value=True, consequence=consequence, fix="choose one of them"))
    gpus = len(Hardware.detect().devices)
    if plan.device == "cuda" and plan.num_processes > gpus:
        needed = counted(plan.num_processes, "GPU")
        consequence = f"the plan is for other hardware: it needs {needed} and {gpus} are visible."
        problems.append(Problem(key="plan", consequence=consequence, fix="make it here, with ua.plan(…)"))
    problems += plan_problems(plan)
    return plan, [*problems, *(one for one in run_problems(plan.run) if one not in problems)]


def _run(command: Launch) -> None:
    child = Child(command, environment_for_launch(), subprocess.PIPE)
    assert child.process.stdout is not None
    output = _Output(child.process.stdout.fileno())

    def stopping() -> None:
        output.silent = True
        print("\nstopping the run …", flush=True)

    try:
        child.run(output.wait, stopping)
    except BaseException as error:
        if output.silent and not isinstance(error, LaunchError):
            left = to_go_on(command.output_dir or "", "resume=True")
            print(f"the run is stopped; all its processes have ended; {left}.", flush=True)
        raise
    finally:
        output.close()
        child.process.stdout.close()


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
