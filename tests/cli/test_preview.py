import json
from pathlib import Path

import pytest
from conftest import SMOLLM2
from row_files import write

from unsloth_accel.cli.main import main


def test_preview_marks_what_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of rows that need no Unsloth; chats are compared with the trainer's own labels in tests/data/test_prepare.py."""
    rows = [{"prompt": "The sky is", "completion": " blue" * n} for n in range(1, 31)]
    path = write(tmp_path / "rows.csv", rows)
    words = [f"model.name={SMOLLM2}", f"data.path={path}", "model.max_seq_length=20", "--rows", "2"]
    assert main(["preview", *words]) == 0
    told = capsys.readouterr().out
    assert "The sky is⟦ blue<|im_end|>⟧" in told
    assert "row 3: 6 tokens, 3 trained" in told
    assert "14 rows are longer" in told
    assert main(["preview", *words, "--most", "10", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["whole"] is False
    assert found["lengths"]["rows"] == 10
    assert found["rows"][0]["labels"][:3] == [-100] * 3
    assert main(["preview", *words, "data.train_on=responses", f"data.path={tmp_path / 'no.csv'}"]) == 2
