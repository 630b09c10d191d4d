import builtins
import json
import types
from pathlib import Path
from typing import Any

import pytest
from conftest import SMOLLM2
from row_files import write

from unsloth_accel.cli.main import main
from unsloth_accel.config.read_run import load
from unsloth_accel.data import preview
from unsloth_accel.errors import ConfigError


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
    mix = f"data.mix=[{{path: {path}, max_rows: 6}},{write(tmp_path / 'more.csv', rows[:2])}]"
    assert main(["preview", words[0], mix, "data.eval_fraction=0.1"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"share 83.3% of the rows, 5, are of {path}" in told
    assert "1 row held out (data.eval_fraction=0.1)" in told
    assert main(["preview", *words, "data.train_on=responses", f"data.path={tmp_path / 'no.csv'}"]) == 2


@pytest.mark.parametrize(
    ("weight", "train_on", "first"),
    [(1, "responses", "unsloth"), (0, "all", "unsloth"), (1, "all", "transformers")],
)
def test_unsloth_comes_before_what_it_patches(
    weight: int, train_on: str, first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unsloth warns where transformers was imported first, and is not imported where nobody asks it."""
    turns = [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": "It.", "weight": weight}]
    path = write(tmp_path / "rows.jsonl", [{"messages": turns}] * 3)
    run = load(None, [f"model.name={SMOLLM2}", f"data.path={path}", f"data.train_on={train_on}"], to_plan=True)
    order: list[str] = []
    really = builtins.__import__

    def noted(name: str, *arguments: Any, **named: Any) -> Any:
        if name in ("unsloth", "transformers") and arguments and arguments[0]["__name__"] == preview.__name__:
            order.append(name)
            return types.SimpleNamespace(AutoTokenizer=None)
        return really(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", noted)
    with pytest.raises(ConfigError, match="tokenizer can't be loaded"):
        preview.preview_rows(run, 1, 1)
    assert order[0] == first
