"""Counting tokens without waiting for the GPU."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerControl

from unsloth_accel.callbacks.token_count import LateTokenCount, TokenCount, count_late

MICRO_BATCHES: list[dict[str, Any]] = [
    {"input_ids": torch.tensor([[5, 6, 0], [7, 0, 0]]), "attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]])},
    {"input_ids": torch.tensor([[5, 6, 7, 0]])},
    {"pixel_values": torch.zeros(1)},
]


def test_tokens_are_counted_as_far_as_they_are_known() -> None:
    from types import SimpleNamespace

    state: Any = SimpleNamespace(global_step=0, num_input_tokens_seen=7)
    for _ in range(3):
        state.global_step += 1
        TokenCount([100, 20]).on_step_end(None, state, None)  # type: ignore[arg-type]
    assert state.num_input_tokens_seen == 127


def trainer(mode: str | bool, padding: int | None = 0) -> Any:
    """As far as counting goes, with another rank that has seen as much."""
    made = SimpleNamespace(
        args=SimpleNamespace(include_num_input_tokens_seen=mode, device=torch.device("cpu")),
        model=SimpleNamespace(main_input_name="input_ids"),
        processing_class=SimpleNamespace(pad_token_id=padding),
        accelerator=SimpleNamespace(gather=lambda own: torch.stack([own, own])),
        state=SimpleNamespace(num_input_tokens_seen=0, global_step=0),
        callbacks=[],
    )
    made.add_callback = made.callbacks.append
    return made


@pytest.mark.parametrize("mode", ["non_padding", "all"])
@pytest.mark.parametrize("padding", [0, None])
def test_counts_what_the_trainer_would(mode: str, padding: int | None) -> None:
    own, late = trainer(mode, padding), trainer(mode, padding)
    count = LateTokenCount(late)
    for micro_batch in MICRO_BATCHES:
        Trainer._track_num_input_tokens(own, micro_batch)
        count.add(micro_batch)
    count.on_train_end(late.args, late.state, TrainerControl())
    assert late.state.num_input_tokens_seen == own.state.num_input_tokens_seen > 0


def test_ranks_meet_only_where_the_count_is_read() -> None:
    late = trainer("non_padding")
    gathered: list[int] = []
    late.accelerator.gather = lambda own: (gathered.append(int(own)), own)[1]
    count = LateTokenCount(late)
    seen = []
    for step in range(1, 7):
        count.add(MICRO_BATCHES[0])
        control = TrainerControl(should_log=step % 2 == 0, should_save=step == 5)
        count.on_step_end(late.args, late.state, control)
        seen.append(late.state.num_input_tokens_seen)
    assert seen == [0, 6, 6, 12, 15, 18]
    assert gathered == [6, 6, 3, 3]
    count.add(MICRO_BATCHES[0])
    count.on_epoch_end(late.args, late.state, TrainerControl(should_save=True))
    count.on_train_end(late.args, late.state, TrainerControl())
    assert late.state.num_input_tokens_seen == 21


@pytest.mark.parametrize("why", ["should_log", "should_save", "should_evaluate", "should_training_stop"])
def test_whoever_reads_the_count_finds_it_whole(why: str) -> None:
    late = trainer("non_padding")
    count = LateTokenCount(late)
    count.add(MICRO_BATCHES[0])
    count.on_step_end(late.args, late.state, TrainerControl())
    assert late.state.num_input_tokens_seen == 0
    count.on_step_end(late.args, late.state, TrainerControl(**{why: True}))
    assert late.state.num_input_tokens_seen == 6


def test_counts_once_and_only_if_it_is_wanted() -> None:
    for mode in ("no", False):
        assert count_late(trainer(mode)) is None
    one = trainer("all")
    one._track_num_input_tokens = None  # a class's method, were it a Trainer; here something counts already
    assert count_late(one) is None

    class Counts:
        def _track_num_input_tokens(self, inputs: Any) -> None: ...

    other: Any = Counts()
    other.__dict__ |= vars(trainer("all"))
    late = count_late(other)
    assert late is not None
    assert other.callbacks == [late]
    other._track_num_input_tokens(MICRO_BATCHES[1])
    late.on_train_end(other.args, other.state, TrainerControl())
    assert other.state.num_input_tokens_seen == 8
    assert count_late(other) is None
