"""Completions in parts; a run that goes on is in tests/training/test_grpo.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from unsloth_accel.adapters import written_steps
from unsloth_accel.adapters.micro_batches import rows_and_tokens, split
from unsloth_accel.adapters.written_steps import WritesInParts, WrittenSteps, as_written, why_whole


def trainer_of(most: int = 99, **settings: Any) -> Any:
    """A trainer that answers a prompt with itself and one, `most` at once, and notes how many it was asked."""
    asked: list[int] = []

    def generate(prompt_ids: list[list[int]], *rest: Any, **named: Any) -> Any:
        asked.append(len(prompt_ids))
        if len(prompt_ids) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return [[*ids, 1] for ids in prompt_ids], None

    args = SimpleNamespace(**{"loss_type": "dapo", "use_vllm": False, "top_entropy_quantile": 1.0} | settings)
    return SimpleNamespace(
        args=args,
        asked=asked,
        accelerator=SimpleNamespace(process_index=1, device=torch.device("cpu")),
        state=SimpleNamespace(global_step=4),
        _generate_single_turn=generate,
        _prepare_inputs=lambda inputs: {"completion_ids": inputs},
        _metrics={"train": {"reward": [1.0]}},
        _step=6,
        training_step=None,
    )


def test_fewer_are_written_at_once_from_the_first_lack_of_memory_on(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = trainer_of(most=2)
    writes, prompts = WritesInParts(trainer), [[number] for number in range(7)]
    expected = [[number, 1] for number in range(7)], None
    assert writes(prompts, None, {}, 7) == expected
    assert trainer.asked == [7, 4, 2, 2, 2, 1]
    assert writes(prompts, None, {}, 7) == expected
    assert trainer.asked[6:] == [2, 2, 2, 1]
    told = capsys.readouterr().err
    assert "rank 1: out of memory while 7 completions were written at once, in step 5; from here on 4 comp" in told


def test_one_that_does_not_fit_alone_and_other_errors_are_raised() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        WritesInParts(trainer_of(most=0))([[1], [2]], None, {}, 2)
    trainer = trainer_of(most=1)
    with pytest.raises(torch.OutOfMemoryError):  # rows of pictures are not divided
        WritesInParts(trainer)([[1], [2]], ["a picture"], {}, 2)
    trainer._generate_single_turn = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        WritesInParts(trainer)([[1], [2]], None, {}, 2)


@pytest.mark.parametrize(
    ("settings", "attributes", "why"),
    [
        ({}, {}, None),
        ({"loss_type": "cispo"}, {}, None),
        ({"loss_type": "grpo"}, {}, "a mean over it (loss_type=grpo)"),
        ({"loss_type": "bnpo"}, {}, "a mean over it (loss_type=bnpo)"),
        ({"loss_type": None}, {}, "a mean over it (SimpleNamespace)"),  # RLOO has none
        ({}, {"_entropy_bonus_enabled": True}, "a part that is a mean"),
        ({}, {"aux_loss_enabled": True}, "a part that is a mean"),
        ({"top_entropy_quantile": 0.2}, {}, "or its quantile"),
        ({"use_vllm": True}, {}, "vLLM writes"),
    ],
)
def test_where_the_loss_of_the_parts_is_another_nothing_is_halved(
    settings: dict[str, Any], attributes: dict[str, Any], why: str | None
) -> None:
    trainer = trainer_of(**settings)
    vars(trainer).update(attributes)
    found = why_whole(trainer)
    assert found is None if why is None else why in str(found)


def test_a_step_counts_once_and_its_figures_are_those_of_all_parts_and_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of()

    def loss(model: Any, inputs: Any, *rest: Any) -> torch.Tensor:
        assert trainer._prepare_inputs(inputs) is inputs, "written once"
        trainer._step += 1
        noted = trainer._metrics["train"]
        for name, value in (
            ("entropy", inputs),
            ("clip_ratio/low_min", inputs),
            ("step_time", 1.0),
            ("kl", float("nan")),
        ):
            noted.setdefault(name, []).append(value)
        return torch.zeros(())

    trainer.training_step = loss
    steps = WrittenSteps(trainer)
    for part in (2.0, 4.0):
        steps.part(None, part)  # type: ignore[arg-type]
    steps.end()
    assert trainer._step == 7
    assert trainer._metrics["train"] == {name: [] for name in ("entropy", "clip_ratio/low_min", "step_time", "kl")} | {
        "reward": [1.0]
    }
    other = {"entropy": 9.0, "clip_ratio/low_min": 1.0, "step_time": 5.0, "kl": 7.0}
    monkeypatch.setattr(written_steps, "of_every_rank", lambda own: [own, other])
    steps.share()
    found = {"entropy": [6.0], "clip_ratio/low_min": [1.0], "step_time": [5.0], "kl": [7.0], "reward": [1.0]}
    assert trainer._metrics["train"] == found
    steps.share()  # nothing is left of it
    assert trainer._metrics["train"] == found


def test_what_is_written_is_written_once() -> None:
    trainer, model = trainer_of(), torch.nn.Linear(1, 1).eval()
    steps = WrittenSteps(trainer)
    assert steps.written(model, "prompts") == {"completion_ids": "prompts"}
    assert model.training, "else it would be taken for an evaluation"
    assert steps.written(model, {"completion_ids": 1}) == {"completion_ids": 1}
    with as_written(trainer):
        with as_written(trainer):
            assert trainer._prepare_inputs(5) == 5
        assert trainer._prepare_inputs(5) == 5
    assert trainer._prepare_inputs(5) == {"completion_ids": 5}


def test_completions_are_divided_by_rows() -> None:
    rows = torch.arange(5)
    batch = {
        "prompt_ids": torch.zeros((5, 3)),
        "completion_ids": rows[:, None].repeat(1, 4),
        "advantages": rows.float(),
        "num_items_in_batch": torch.tensor(20),
        "num_images": None,
    }
    assert rows_and_tokens(batch) == (5, 35)
    parts = split(batch, 2)
    assert [part["completion_ids"][:, 0].tolist() for part in parts] == [[0, 1, 2], [3, 4]]
    assert [part["advantages"].tolist() for part in parts] == [[0, 1, 2], [3, 4]]
    assert all(part["num_items_in_batch"] == 20 and part["num_images"] is None for part in parts)
    assert len(split(batch, 16)) == 5
