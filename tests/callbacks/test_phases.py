from __future__ import annotations

from pathlib import Path

import pytest

from unsloth_accel.callbacks.phases import phase
from unsloth_accel.callbacks.rank_log import RankLog
from unsloth_accel.report.run_record import read_lines


def test_a_phase_is_shown_once_and_logged_also_when_it_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with phase("loading", RankLog(tmp_path, 0), about="a-model"):
        pass
    with pytest.raises(OSError, match="disk full"), phase("saving", RankLog(tmp_path, 1)):
        raise OSError("disk full")
    assert capsys.readouterr().out == "loading a-model\n"
    assert [line["name"] for rank in (0, 1) for line in read_lines(tmp_path / f"rank-{rank}.jsonl")] == [
        "loading",
        "saving",
    ]
