from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from unsloth_accel.callbacks.rank_log import RankLog
from unsloth_accel.callbacks.step_log import StepLog
from unsloth_accel.report.run_record import read_lines


def test_a_log_goes_on_behind_a_line_that_a_crash_cut_short(tmp_path: Path) -> None:
    log = RankLog(tmp_path, 3)
    log.write("start", world_size=4, loss=math.nan)
    path = tmp_path / "rank-3.jsonl"
    path.write_text(path.read_text() + '{"time": 1, "ran')
    RankLog(tmp_path, 3, resumed=True).write("end", seconds=1.5)
    first, last = read_lines(path)
    assert (first["rank"], first["event"], first["loss"]) == (3, "start", None)
    assert (last["event"], last["seconds"]) == ("end", 1.5)
    RankLog(tmp_path, 3)
    assert read_lines(path) == []


def test_a_log_of_steps_that_was_damaged_ends_no_training(tmp_path: Path) -> None:
    """Its whole lines are kept, and go on."""
    path = tmp_path / "steps.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 2.0}\n\xff\xfe\x00\n{"step": 2, "lo')
    log: Any = StepLog(path)
    state = SimpleNamespace(is_world_process_zero=True, global_step=2)
    log.on_train_begin(None, state, None)
    state.global_step = 3
    log.on_log(None, state, None, logs={"loss": 1.0})
    assert [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()] == [1, 3]
