"""The directory of a run, its output_dir: the one place that knows the names of the files in it.

`RunDirectory` gives paths and makes nothing. What a checkpoint holds is in `checkpoints`.
"""

from __future__ import annotations

from pathlib import Path

RUN_YAML = "run.yaml"
ACCELERATE_YAML = "accelerate.yaml"
SUMMARY = "summary.json"
START_RECORD = "UNSLOTH_ACCEL_RECORD"
"""Environment variable of processes that `verify` launches: the directory that each rank leaves its record in."""
_CHECKPOINT = "checkpoint-"


class RunDirectory:
    """Paths below a run's output_dir."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        # What was described and decided.
        self.run_yaml = self.path / RUN_YAML
        self.accelerate_yaml = self.path / ACCELERATE_YAML
        self.plan = self.path / "plan.json"
        # What came of it.
        self.adapter = self.path / "adapter"
        """The finished adapter; a run that has it is finished."""
        self.merged = self.path / "merged"
        self.results = self.path / "results.json"
        self.report = self.path / "report.html"
        # What was told on the way.
        self.logs = self.path / "logs"
        self.step_log = self.logs / "steps.jsonl"
        """Rank 0's logged steps."""
        self.summary = self.logs / SUMMARY
        # Why it failed.
        self.errors = self.path / "errors"
        self.launch_error = self.errors / "launch.json"
        """File of the launcher's own error: a rank that was killed leaves none."""
        self.failed_report = self.errors / self.report.name
        """The report of an attempt that came to nothing, while an earlier run's stays."""
        self.previous = self.path / ".previous"
        """An earlier run, while another one overwrites it."""
        # What `verify` notes.
        self.record = self.path / "record"
        self.verify_log = self.path / "verify.log"
        """Output of the processes of a run of `verify`."""

    def rank_output(self, rank: int) -> Path:
        """Return the file of what a rank other than 0 prints."""
        return self.logs / f"rank-{rank}.log"

    def rank_error(self, rank: int) -> Path:
        return self.errors / f"rank-{rank}.json"

    def rank_logs(self) -> list[Path]:
        return [*self.logs.glob("rank-*.jsonl")]

    def rank_errors(self) -> list[Path]:
        return [*self.errors.glob("rank-*.json")]

    def rank_records(self) -> list[Path]:
        return [*self.record.glob("rank-*.json")]

    def checkpoint(self, step: int) -> Path:
        return self.path / f"{_CHECKPOINT}{step}"

    def checkpoints(self) -> list[Path]:
        """Checkpoints in the directory, whole or not, oldest first."""
        found = [path for path in self.path.glob(f"{_CHECKPOINT}*") if path.is_dir() and step_of(path) is not None]
        return sorted(found, key=lambda path: step_of(path) or 0)

    def products(self) -> list[Path]:
        """Paths of what an earlier run left here and another one would write anew."""
        named = [path for path in (self.adapter, self.logs, self.results) if path.exists()]
        return [*named, *self.path.glob(f"{_CHECKPOINT}*")]

    def describing(self) -> list[Path]:
        """The files about a run that go aside with what it made."""
        return [path for path in (self.run_yaml, self.accelerate_yaml, self.plan, self.report) if path.is_file()]

    @property
    def is_run(self) -> bool:
        """Whether something in it is a run's."""
        return any(path.exists() for path in (self.run_yaml, self.plan, self.results, self.logs, self.errors))


def rank_log(logs: str | Path, rank: int) -> Path:
    """Return the file, in a directory of logs, of one rank's log, a line of JSON each."""
    return Path(logs, f"rank-{rank}.jsonl")


def rank_record(directory: str | Path, rank: int) -> Path:
    """Return the file of a rank's own figures, for `verify`."""
    return Path(directory, f"rank-{rank}.json")


def start_of(directory: str | Path) -> Path:
    """Return the directory of the adapter before training, under the names that PEFT saves it with."""
    return Path(directory, "start.safetensors")


def step_of(checkpoint: Path) -> int | None:
    """Return the optimizer step of a checkpoint's directory; None for another directory."""
    number = checkpoint.name.removeprefix(_CHECKPOINT)
    return int(number) if number.isdigit() and number != checkpoint.name else None
