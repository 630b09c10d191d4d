from dataclasses import replace
from typing import Any

import pytest
from row_files import CHAT

from unsloth_accel.config.read_run import from_dict
from unsloth_accel.data import hub
from unsloth_accel.errors import ConfigError
from unsloth_accel.training.evaluation import AsTrainingBegins, HeldOut


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


def test_training_begins_with_the_memory_that_an_evaluation_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unsloth takes its buffers by what is free, and what torch keeps for another time isn't."""
    import torch

    done: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda name=name: done.append(name))
    given: Any = None
    AsTrainingBegins(lambda: done.append("evaluated")).on_train_begin(given, given, given)
    assert done == ["evaluated", "empty_cache", "reset_peak_memory_stats"]
