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
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks.strategies import write_texts
from unsloth_accel.artifacts.run_directory import RunDirectory
from unsloth_accel.config.run_config import LoggingConfig
from unsloth_accel.registry import PLUGINS

from . import in_rank
from .trial import EVALUATE, SAVE, STEPS, Trial
from .watched import Watched

ROOT = Path(__file__).resolve().parent.parent.parent
SMOLLM2 = ROOT / "models" / "SmolLM2-135M-Instruct"
PATIENCE = 420.0
"""Seconds that an undisturbed run may take; others may share the processor."""
HANG_AFTER = 25
"""Seconds without a sign of life after which a rank is told to hang; the default is a minute or more."""


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
            os.environ["CUDA_VISIBLE_DEVICES"] = ""

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
        (directory / "run.yaml").write_text(yaml.safe_dump(self.described(trial, output_dir)), encoding="utf-8")
        command = [sys.executable, "-m", "unsloth_accel.cli", "launch", str(directory / "run.yaml"), *overrides]
        environment = os.environ | {
            "TMPDIR": str(directory / "tmp"),
            "UNSLOTH_COMPILE_LOCATION": str(directory / "compiled"),
            **(variables or {}),
        }
        start = trial.start if variables else "plain"
        with self.starting():
            return Watched(command, start, environment, output_dir)

    def described(self, trial: Trial, output_dir: Path) -> dict[str, Any]:
        """The run's description."""
        model = SMOLLM2 if trial.model == "smollm2" else self.work / trial.model
        rows_per_process = 1 if trial.model == "smollm2" else 2
        values: dict[str, Any] = {
            "model": {"name": str(model), "max_seq_length": 64, "load_in_4bit": False},
            "data": {"path": str(self.work / "rows.jsonl"), "eval_path": str(self.work / "held-out.jsonl")},
            "batch": {"global_size": rows_per_process * trial.processes},
            "distributed": {
                "strategy": trial.strategy,
                "num_processes": trial.processes,
                **({"device": "cpu"} if self.device == "cpu" else {}),
            },
            "training": {
                "max_steps": STEPS,
                "save_strategy": "steps",
                "save_steps": SAVE,
                "save_total_limit": 2,
                "eval_strategy": "steps",
                "eval_steps": EVALUATE,
                "logging_steps": 1,
                "learning_rate": 1e-3,
            },
            "logging": {"progress": False, **({"hang_after": HANG_AFTER} if _has_watchdog() else {})},
            "output_dir": str(output_dir),
        }
        for section, given in trial.settings.items():
            values[section] = values.get(section, {}) | given
        return values

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


def _has_watchdog() -> bool:
    return any(one.name == "hang_after" for one in fields(LoggingConfig))
