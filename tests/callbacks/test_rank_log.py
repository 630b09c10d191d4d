from __future__ import annotations

import math
from pathlib import Path

from unsloth_accel.callbacks.rank_log import RankLog
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
