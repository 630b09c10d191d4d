"""The directory of a run, its output_dir: the one place that knows the names of the files in it.

`RunDirectory` gives paths and makes nothing. What a checkpoint holds is in `checkpoints`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..files import open_file

PLANNED_YAML = "run.planned.yaml"
ACCELERATE_YAML = "accelerate.yaml"
_EARLIER_YAML = "run.yaml"
"""Name that run.planned.yaml had before: a user's own description may have it too, so it is only read."""
_PREVIOUS, _EARLIER_PREVIOUS = "_unsloth-accel-previous", ".unsloth-accel-previous"
"""Begins with `_` since the Trainer leaves such names out when it pushes output_dir to the Hub; the name that it had
before may be that of a launch that was killed."""
_LOCK = "_unsloth-accel-lock"
SUMMARY = "summary.json"
MARK = "written by unsloth-accel"
"""Words in the first line of the files that describe a planned run; `with` and a file's name come after them."""
START_RECORD = "UNSLOTH_ACCEL_RECORD"
"""Environment variable of processes that `verify` launches: the directory that each rank leaves its record in."""
ERRORS = "UNSLOTH_ACCEL_ERRORS"
"""Environment variable of launched processes: a directory for the errors that output_dir can't take."""
_CHECKPOINT = "checkpoint-"


class RunDirectory:
    """Paths below a run's output_dir."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        # What was described and decided.
        self.planned_yaml = self.path / PLANNED_YAML
        """The run's description with every `auto` decided."""
        self.accelerate_yaml = self.path / ACCELERATE_YAML
        self.plan = self.path / "plan.json"
        # What came of it.
        self.adapter = self.path / "adapter"
        """The finished adapter."""
        self.merged = self.path / "merged"
        self.results = self.path / "results.json"
        self.report = self.path / "report.html"
        # What was told on the way.
        self.logs = self.path / "logs"
        self.step_log = self.logs / "steps.jsonl"
        """Rank 0's logged steps."""
        self.completions = self.logs / "completions.jsonl"
        """Some of the completions that were trained on, of every log."""
        self.summary = self.logs / SUMMARY
        # Why it failed.
        self.errors = self.path / "errors"
        self.launch_error = self.errors / "launch.json"
        """File of the launcher's own error: a rank that was killed leaves none."""
        self.failed_report = self.errors / self.report.name
        """The report of an attempt that came to nothing, while an earlier run's stays."""
        self.hang = self.errors / "hang.json"
        """What the watchdog found, where a rank hung: by it the other ranks know that all end."""
        aside = self.path / _EARLIER_PREVIOUS
        # False for a name that no file system takes, which is told elsewhere; a link is a user's.
        self.previous = aside if os.path.isdir(aside) and not aside.is_symlink() else self.path / _PREVIOUS
        """An earlier run, while another one overwrites it."""
        self.lock = self.path / _LOCK
        """Says which launch writes here, as long as one does."""
        # What `verify` notes.
        self.record = self.path / "record"
        self.verify_log = self.path / "verify.log"
        """Output of the processes of a run of `verify`."""

    def rank_output(self, rank: int) -> Path:
        """Return the file of what a rank other than 0 prints."""
        return self.logs / f"rank-{rank}.log"

    def heartbeat(self, rank: int) -> Path:
        """Return the file in which a rank says that it lives, while it does."""
        return self.logs / f"heartbeat-{rank}.json"

    def rank_stacks(self, rank: int) -> Path:
        """Return the file of a rank's Python stacks, where one hung."""
        return self.logs / f"rank-{rank}.stacks"

    def flight_record(self, end: str = "") -> Path:
        """Return the file, with the `end` of its name, of the collectives that a rank took part in, where one hung."""
        return self.logs / f"flight-record-{end}"

    def of_hangs(self) -> list[Path]:
        """Files that a hang left, or a rank that was killed."""
        return _of_ranks(self.logs, r"heartbeat-\d+\.json|rank-\d+\.stacks|flight-record-\d+(\.json)?")

    def rank_error(self, rank: int) -> Path:
        return self.errors / f"rank-{rank}.json"

    def rank_outputs(self) -> list[Path]:
        return _of_ranks(self.logs, r"rank-\d+\.log")

    def rank_logs(self) -> list[Path]:
        return _of_ranks(self.logs, r"rank-\d+\.jsonl")

    def rank_errors(self) -> list[Path]:
        return _of_ranks(self.errors, r"rank-\d+\.json")

    def told_errors(self) -> list[Path]:
        """Return the errors that ranks left, in output_dir or, where that could not take them, in `ERRORS`."""
        return self._errors_anywhere(r"rank-\d+\.json")

    def launch_errors(self) -> list[Path]:
        """Return the launcher's own error, where it is, or nothing."""
        return self._errors_anywhere(re.escape(self.launch_error.name))

    def _errors_anywhere(self, pattern: str) -> list[Path]:
        elsewhere = Path(os.environ.get(ERRORS) or self.errors)
        # There in a directory as in output_dir, where a rank failed before it knew its run.
        places = dict.fromkeys((self.errors, elsewhere, RunDirectory(elsewhere).errors))
        # Most are in several of them: then it is output_dir's that is told.
        return [*{path.name: path for place in reversed(places) for path in _of_ranks(place, pattern)}.values()]

    def rank_records(self) -> list[Path]:
        return _of_ranks(self.record, r"rank-\d+\.json")

    def checkpoint(self, step: int) -> Path:
        return self.path / f"{_CHECKPOINT}{step}"

    def checkpoints(self) -> list[Path]:
        """Checkpoints in the directory, whole or not, oldest first."""
        found = [path for path in self.path.glob(f"{_CHECKPOINT}*") if path.is_dir() and step_of(path) is not None]
        return sorted(found, key=lambda path: step_of(path) or 0)

    def places(self) -> list[Path]:
        """Return what is there, of whatever kind, in the place of a directory that a run fills."""
        saved = sorted(path for path in self.path.glob(f"{_CHECKPOINT}*") if step_of(path) is not None)
        filled = (self.logs, self.errors, self.adapter, self.record, self.previous, *saved)
        return [path for path in filled if os.path.lexists(path)]

    @property
    def description(self) -> Path:
        """The file with what was decided: of a run from before run.planned.yaml, the run.yaml that its accelerate.yaml
        names."""
        earlier = self.path / _EARLIER_YAML
        named = first_line_of(self.accelerate_yaml).partition(f"{MARK} with ")[2].startswith(f"{_EARLIER_YAML}.")
        return earlier if named and not self.planned_yaml.is_file() else self.planned_yaml

    @property
    def is_run(self) -> bool:
        """Whether something in it is a run's."""
        return any(path.exists() for path in (self.description, self.plan, self.results, self.logs, self.errors))


def _of_ranks(directory: Path, names: str) -> list[Path]:
    """Return the files in a directory whose names, by a regular expression, are those of ranks: what is called much the
    same is a user's."""
    return [path for path in directory.glob("*") if re.fullmatch(names, path.name)]


def first_line_of(file: Path) -> str:
    """Return the first line of a text file; empty where there is none that can be read."""
    try:
        with open_file(file) as text:
            return text.readline(1000).decode("utf-8", errors="replace")
    except (OSError, ValueError):
        return ""


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
    return int(number) if number.isdecimal() and number != checkpoint.name else None
