"""Where trials run: their model, rows and descriptions, what a launch is given, and the undisturbed runs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks.strategies import write_texts
from unsloth_accel.artifacts.run_directory import RunDirectory
from unsloth_accel.registry import PLUGINS

from . import in_rank
from .described import ROOT, described
from .trial import SAVE, STEPS, Trial
from .watched import Watched

PATIENCE = 420.0
"""Seconds that an undisturbed run may take; others may share the processor."""


@dataclass
class Workplace:
    work: Path
    device: str = "cpu"
    forked: bool = False
    """Whether Python processes are forked from one that has imported torch: quicker, on a small machine."""
    _making: dict[str, threading.Lock] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def prepare(self) -> None:
        """Write the tiny model and the rows; set what all processes share."""
        self.work.mkdir(parents=True, exist_ok=True)
        if not (self.work / "tiny" / "config.json").is_file():
            command = [sys.executable, "-m", "benchmarks.random_checkpoint", "tiny", str(self.work / "tiny")]
            subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
        write_texts(self.work / "rows.jsonl", [20 + (7 * row) % 40 for row in range(4 * STEPS)])
        write_texts(self.work / "held-out.jsonl", [20 + (11 * row) % 40 for row in range(8)])
        os.environ |= {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "HF_DATASETS_CACHE": str(self.work / "token-cache"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            PLUGINS: in_rank.__name__,
        }
        if self.device == "cpu":
            # Compiling takes longer than training such a model; runs on GPUs compile as ever.
            os.environ |= {"CUDA_VISIBLE_DEVICES": "", "TORCH_COMPILE_DISABLE": "1"}

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Start processes in here as asked for."""
        if self.forked:
            sys.path[:0] = [str(ROOT / "tests")] if str(ROOT / "tests") not in sys.path else []
            from fork_server import forked  # type: ignore[import-not-found]
        with self._lock, forked() if self.forked else nullcontext():
            yield

    def launch(
        self,
        trial: Trial,
        directory: Path,
        output_dir: Path,
        overrides: Sequence[str] = (),
        *,
        variables: Mapping[str, str] | None = None,
    ) -> Watched:
        """Start `unsloth-accel launch` of the trial's run in `directory`."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "tmp").mkdir(exist_ok=True)
        (directory / "run.yaml").write_text(
            yaml.safe_dump(described(trial, self.work, self.device, output_dir)), encoding="utf-8"
        )
        command = [sys.executable, "-m", "unsloth_accel.cli", "launch", str(directory / "run.yaml"), *overrides]
        environment = os.environ | {
            "TMPDIR": str(directory / "tmp"),
            "UNSLOTH_COMPILE_LOCATION": str(directory / "compiled"),
            **(variables or {}),
        }
        start = trial.start if in_rank.VARIABLE in environment else "plain"
        with self.starting():
            return Watched(command, start, environment, output_dir, directory)

    def undisturbed(self, trial: Trial, killed: bool = False) -> Path:
        """The output_dir of the trial's run without a fault, made once; with `killed`, ended after step 14."""
        plain = replace(trial, launches=((),), start="plain", settings=trial.settings)
        facts = json.dumps([trial.strategy, trial.processes, trial.model, trial.settings, killed, self.device])
        directory = self.work / f"undisturbed-{trial.strategy}-{hashlib.sha256(facts.encode()).hexdigest()[:8]}"
        with self._lock:
            making = self._making.setdefault(directory.name, threading.Lock())
        with making:
            output_dir = directory / "out"
            if not (directory / "done").exists():
                shutil.rmtree(directory, ignore_errors=True)
                self._make(plain, directory, output_dir, killed)
                (directory / "done").touch()
        return output_dir

    def _make(self, trial: Trial, directory: Path, output_dir: Path, killed: bool) -> None:
        points = [{"rank": 0, "at": "step", "step": SAVE * 3 + 2, "inside": "raises"}] if killed else []
        (directory / "points").mkdir(parents=True)
        (directory / "points" / "go-0").touch()
        variables = variables_of(points, directory / "points", 0)
        running = self.launch(trial, directory, output_dir, variables=variables)
        running.wait(running.ended, PATIENCE)
        running.end()
        adapter = RunDirectory(output_dir).adapter
        if adapter.is_dir() == killed:
            said = "\n".join(line for _, line in running.lines[-20:])
            raise RuntimeError(f"{directory.name}: status {running.process.returncode}: {said}")


def variables_of(points: Sequence[Mapping[str, Any]], directory: Path, pace: float) -> dict[str, str]:
    """What tells ranks where to wait."""
    return {in_rank.VARIABLE: json.dumps({"points": points, "directory": str(directory), "pace": pace})}
