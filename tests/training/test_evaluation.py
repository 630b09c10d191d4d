from dataclasses import replace
from typing import Any

import pytest
from row_files import CHAT

from unsloth_accel.config.read_run import from_dict
from unsloth_accel.data import hub
from unsloth_accel.errors import ConfigError
from unsloth_accel.training.evaluation import HeldOut


@pytest.mark.parametrize(
    "row", [{"prompt": "a", "completion": "b"}, {"text": "a"}, {"messages": [{"role": "user", "content": "a"}]}]
)
def test_rows_of_the_hub_that_ask_nothing(
    row: dict[str, Any], description: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan doesn't download them, so that the run must tell."""
    from datasets import Dataset

    held: list[dict[str, Any]] = [row]
    monkeypatch.setattr(hub, "load", lambda *where, streaming: Dataset.from_list(held))
    run = from_dict({**description, "evaluation": {"exact_match": True}, "data": {"path": "a/b", "eval_path": "a/b"}})
    with pytest.raises(ConfigError, match="held-out chat rows"):
        HeldOut.of(run)
    assert HeldOut.of(replace(run, evaluation=replace(run.evaluation, exact_match=False)))
    held[:] = [CHAT]
    found = HeldOut.of(run)
    assert found is not None
    assert [question.answer for question in found.questions] == ["b"]
