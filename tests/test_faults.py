"""benchmarks.faults: a few of its trials, and that its verdicts can fail."""

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, write_checkpoint

from benchmarks.faults import actions, in_rank, page, places
from benchmarks.faults.trial import SAVE, STEPS, Strike, Trial, one
from benchmarks.faults.trials import EVERYWHERE, trials
from benchmarks.faults.verdict import verdict
from unsloth_accel.artifacts.checkpoints import checkpoints
from unsloth_accel.config.run_config import RunConfig
from unsloth_accel.files import filled

CHOSEN = (
    *("ddp/launcher-sigkill", "ddp/rank0-sigkill-in-checkpoint", "ddp/full-random-state-once"),
    "ddp/overwrite-killed-then-full",
)
"""Of each kind one: what `make test` has time for."""
EVERY = trials(0, ("ddp", "fsdp2_native"), 2)
FAILS = one("one", Strike(at="step", rank=1, step=10), fault="SIGKILL", who="rank 1", says="rank 1", statuses=(137,))
GOES_ON = replace(FAILS, goes_on=True, statuses=())


def seen(**given: Any) -> dict[str, Any]:
    """A trial in which rank 1 was killed in step 10, and all went as it should; `given` is what went otherwise."""
    launch = {"struck": True, "step": 10, "status": 137, "seconds_to_first_word": 1.0, "first_word": "rank 1 was …"}
    launch |= {"seconds_to_end": 2.0, "processes_left": [], "last_lines": "rank 1 was ended"}
    left = {"checkpoints": [4, 8], "adapter": None}
    resumed = {"status": 0, "at": 8, "adapter": 0.0, "last_line": "report", "processes_left": []}
    for name, value in given.items():
        part = next((part for part in (launch, left, resumed) if name in part), launch)
        part[name] = value
    return {"launches": [launch], "left": left, "resumed": resumed}


@pytest.mark.parametrize(
    ("trial", "word", "given"),
    [
        (FAILS, "ok", {}),
        (FAILS, "not struck", {"struck": False}),
        (FAILS, "left", {"processes_left": ["python -m train"]}),
        (FAILS, "silent", {"status": 0}),
        (FAILS, "silent", {"status": 1}),
        (FAILS, "silent", {"seconds_to_first_word": None, "first_word": None}),
        (FAILS, "silent", {"seconds_to_first_word": 61.0}),
        (FAILS, "lost", {"at": 4}),
        (replace(FAILS, saves=True), "lost", {}),
        (replace(FAILS, saves=True), "ok", {"at": 9}),
        (replace(FAILS, says=""), "ok", {"seconds_to_first_word": None}),
    ],
)
def test_a_verdict(trial: Trial, word: str, given: dict[str, Any]) -> None:
    assert verdict(trial, seen(**given))[0] == word


def test_what_is_left_decides_what_is_lost() -> None:
    broken = seen()
    broken["resumed"] |= {"status": 2, "adapter": None}
    assert verdict(FAILS, broken)[0] == "lost"
    other = seen()
    other["resumed"]["adapter"] = 1e-6
    assert verdict(FAILS, other)[0] == "lost"
    assert verdict(replace(FAILS, exact=False), other)[0] == "ok"
    finished = seen(status=0)
    del finished["resumed"]
    assert verdict(GOES_ON, finished)[0] == "lost"
    finished["left"]["adapter"] = 0.0
    assert verdict(GOES_ON, finished)[0] == "ok"
    nowhere = seen()
    nowhere["left"]["elsewhere"] = None
    assert verdict(replace(FAILS, elsewhere=True), nowhere)[0] == "lost"
    nowhere["left"]["elsewhere"] = 0.0
    assert verdict(replace(FAILS, elsewhere=True), nowhere)[0] == "ok"
    earlier = seen()
    earlier["left"]["earlier_adapter"] = False
    assert verdict(replace(FAILS, prior="finished"), earlier)[0] == "lost"
    both = seen()
    both["launches"][0]["other_launch"] = [(0, "trained")]
    assert verdict(FAILS, both)[0] == "silent"


def test_there_are_as_many_trials_as_asked_for() -> None:
    names = [trial.name for trial in EVERY]
    assert len({*names}) == len(names) >= 40
    assert {name.partition("/")[2] for name in names} >= {*EVERYWHERE}
    assert {*CHOSEN} <= {*names}
    at_step = [trial.launches[0][0].step or 0 for trial in EVERY if trial.launches[0][0].at == "step"]
    assert len({*at_step}) > 6
    assert all(0 < step < STEPS for step in at_step)
    assert [trial.name for trial in trials(1, ("ddp", "fsdp2_native"), 2)] == names
    assert trials(1, ("ddp",), 2) != trials(0, ("ddp",), 2)


def test_a_strike_knows_which_checkpoint_is_whole() -> None:
    assert [Strike(at="step", step=step).kept for step in (1, SAVE, SAVE + 1, 3 * SAVE)] == [0, 0, SAVE, 2 * SAVE]
    assert (Strike(at="adapter").kept, Strike(at="loading").kept) == (STEPS - SAVE, 0)


def test_a_rank_waits_at_its_own_point_once(tmp_path: Path) -> None:
    points = [{"rank": 0, "at": "step", "step": 3, "inside": "nan"}, {"rank": 1, "at": "saving", "step": None}]
    (tmp_path / "go-0").touch()
    rank = in_rank.Rank(points, tmp_path, 0.0)
    assert rank.at("step", 2) is None
    assert not [*tmp_path.glob("reached-*")]
    assert rank.at("step", 3) == "nan"
    assert (tmp_path / "reached-0").read_text(encoding="utf-8").split()[1] == "3"
    assert rank.at("step", 3) is None
    assert rank.at("saving") is None


def test_a_small_disk_is_full_and_is_read_only(tmp_path: Path) -> None:
    if not places.can_mount():
        with pytest.raises(OSError, match="mount"):
            places.Disk(tmp_path).make(1)
        return
    disk = places.Disk(tmp_path)
    disk.make(1)
    try:
        disk.fill(4096)
        file = disk.path / "file"
        file.write_bytes(bytes(4096))
        with pytest.raises(OSError, match="No space"):
            (disk.path / "other").write_bytes(bytes(8192))
        disk.free()
        (disk.path / "out").mkdir()
        disk.make_read_only(disk.path / "out")
        with pytest.raises(OSError, match="Read-only"):
            (disk.path / "out" / "file").touch()
        disk.heal()
        (disk.path / "out" / "file").touch()
    finally:
        disk.drop()
    assert not [*disk.path.iterdir()]


def test_a_checkpoints_file_is_cut(tmp_path: Path, planned: RunConfig) -> None:
    write_checkpoint(tmp_path / "checkpoint-4", planned)
    write_checkpoint(tmp_path / "checkpoint-8", planned)
    scene = actions.Scene(tmp_path, places.Disk(tmp_path), random.Random(0), lambda: pytest.fail("not launched"))
    actions.truncate("optimizer.pt")(scene)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-4"]


@pytest.mark.slow
def test_nothing_is_lost_or_silent_or_left(tmp_path: Path) -> None:
    out = tmp_path / "faults.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks.faults",
        "--forked",
        "--jobs",
        "2",
        "--out",
        out,
        "--work",
        tmp_path / "work",
    ]
    done = subprocess.run(
        [*map(str, command), "--only", *CHOSEN], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    found = json.loads(out.read_text(encoding="utf-8"))["trials"]
    allowed = {"ok"} if places.can_mount() else {"ok", "not run"}
    assert {name: result["why"] for name, result in found.items() if result["verdict"] not in allowed} == {}, (
        done.stdout
    )
    assert {*found} == {*CHOSEN}


def test_the_table_is_what_the_results_say() -> None:
    text = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    report = json.loads((ROOT / page.OUT).read_text(encoding="utf-8"))
    assert filled(text, page.MARKS, page.table(report)) == text, "run make docs"
    assert {*report["trials"]} == {trial.name for trial in EVERY}
