"""A run that goes on in the middle of an epoch sees the rows that are left of it, in every order of the Trainer's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import BatchRebalanceSampler, LengthGroupedSampler

from unsloth_accel.adapters.checkpointing import keep_checkpoints
from unsloth_accel.adapters.epoch_order import EpochOfSampler, SeededGroups, order_by_epoch
from unsloth_accel.adapters.resuming import check_before_training
from unsloth_accel.artifacts.checkpoints import Checkpoint
from unsloth_accel.errors import ConfigError

ROWS = 26


class Model(torch.nn.Module):
    """Learns nothing of use, with a random number in each step, as dropout draws one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[int]] = []

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
        self.seen.append(labels.tolist())
        torch.rand(1)
        return {"loss": (self.weight - 1).square().sum()}


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"input_ids": torch.zeros(len(rows), 1), "labels": torch.tensor([row["labels"] for row in rows])}


def rows_of(batches: list[list[int]]) -> list[int]:
    return sorted(row for batch in batches for row in batch)


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step == self.step


def trained(out: Path, *, mended: bool = True, stop: int = 0, resume: int = 0, **fields: Any) -> list[list[int]]:
    """The rows of each step from the beginning to the end, or to the step `stop`, or from the checkpoint `resume`."""
    usual = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 1}
    usual |= {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "remove_unused_columns": False}
    arguments = TrainingArguments(output_dir=str(out), **(usual | fields))
    rows = [{"input_ids": [0] * (1 + (7 * index) % 11), "labels": index} for index in range(ROWS)]
    model = Model()
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate)
    if mended:
        order_by_epoch(trainer)
        keep_checkpoints(trainer)
        check_before_training(trainer)
    if stop:
        trainer.add_callback(StopAt(stop))
    trainer.train(resume_from_checkpoint=str(out / f"checkpoint-{resume}") if resume else None)
    return model.seen


@pytest.mark.parametrize("strategy", ["random", "group_by_length", "batch_rebalance", "sequential"])
def test_the_rest_of_an_epoch_is_what_was_left(strategy: str, tmp_path: Path) -> None:
    """From the second step of the second epoch on."""
    straight = trained(tmp_path / "straight", train_sampling_strategy=strategy)
    assert rows_of(straight[:7]) == rows_of(straight[7:]) == list(range(ROWS))
    assert strategy == "sequential" or straight[:7] != straight[7:], "each epoch has an order of its own"
    before = trained(tmp_path / "broken", stop=9, train_sampling_strategy=strategy)
    torch.rand(5)
    after = trained(tmp_path / "broken", resume=9, train_sampling_strategy=strategy)
    assert before + after == straight


def test_what_is_mended(tmp_path: Path) -> None:
    """Rows in groups come in another order, of which some have been trained."""
    options: dict[str, Any] = {"mended": False, "train_sampling_strategy": "group_by_length"}
    before = trained(tmp_path, stop=9, **options)
    after = trained(tmp_path, resume=9, **options)
    assert rows_of(before[7:] + after) != list(range(ROWS))


def test_an_epoch_of_other_steps_is_refused(tmp_path: Path) -> None:
    """A last step that is dropped from now on, and rows that accelerate divides otherwise: the place is another."""
    before = trained(tmp_path, stop=9)
    assert Checkpoint(tmp_path / "checkpoint-9").made_with["steps_per_epoch"] == 7
    assert not Checkpoint(tmp_path / "checkpoint-7").in_mid_epoch
    with pytest.raises(ConfigError, match="dataloader_drop_last=True: checkpoint-9 was made with False"):
        trained(tmp_path, resume=9, dataloader_drop_last=True)
    with pytest.raises(ConfigError, match="train_sampling_strategy='sequential': checkpoint-9"):
        trained(tmp_path, resume=9, train_sampling_strategy="sequential")
    with pytest.raises(ConfigError, match="accelerator_config="):
        trained(tmp_path, resume=9, accelerator_config={"use_seedable_sampler": False})
    after = trained(tmp_path, resume=7, train_sampling_strategy="sequential")  # an epoch's end
    assert rows_of(before[:7] + after) == sorted([*range(ROWS)] * 2)
    # 26 rows in micro-batches of 2: 13, of which 2 make a step, and one alone the last: 7 steps; dropped with 4: 6.
    dropped = tmp_path / "dropped"
    trained(dropped, stop=9, dataloader_drop_last=True, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    with pytest.raises(ConfigError, match="an epoch has 6 steps here and had 7"):
        trained(dropped, resume=9, dataloader_drop_last=True, per_device_train_batch_size=4)


@pytest.mark.parametrize("told", [False, True])
def test_several_processes_get_the_epoch(told: bool) -> None:
    """Through the wrappers that accelerate puts around a sampler and, for a run that goes on, around those."""
    from accelerate.data_loader import prepare_data_loader, skip_first_batches

    class State:
        epoch = 1.25

    def loader(sampler: Any) -> Any:
        rows = DataLoader(range(ROWS), batch_sampler=sampler)  # type: ignore[arg-type]
        made = prepare_data_loader(rows, num_processes=2, process_index=0, put_on_device=False, even_batches=False)
        made.batch_sampler.num_processes, made.batch_sampler.process_index = 1, 0  # as the Trainer does for it
        return made

    def sampler() -> Any:
        return BatchRebalanceSampler(list(range(1, ROWS + 1)), 8, 2, 1)

    nothing: Any = None
    straight = sampler()
    straight.set_epoch(1)
    callback, resumed = EpochOfSampler(), sampler()
    going_on = skip_first_batches(loader(resumed), 1)
    callback.tell(resumed if told else None)
    beside = sampler()
    callback.tell(beside)  # of a loader that somebody makes to look at
    state: Any = State()
    callback.on_epoch_begin(nothing, state, nothing)
    going_on.set_epoch(1)
    assert ([batch.tolist() for batch in going_on] == list(straight)[1:]) is told


@pytest.mark.parametrize("mended", [False, True])
def test_ranks_with_other_random_numbers_share_one_order(mended: bool) -> None:
    """Each row goes to one rank; by their own numbers they would train some twice and others never."""
    from accelerate.data_loader import prepare_data_loader

    seen = []
    for rank in (0, 1):
        groups = LengthGroupedSampler(4, lengths=[1 + (7 * index) % 11 for index in range(24)])
        sampler: Any = SeededGroups(groups, 42) if mended else groups
        rows = DataLoader(range(24), batch_size=4, sampler=sampler)  # type: ignore[arg-type]
        loader = prepare_data_loader(
            rows, num_processes=2, process_index=rank, use_seedable_sampler=True, put_on_device=False
        )
        torch.manual_seed(rank)
        seen += [batch.tolist() for batch in loader]
    assert (rows_of(seen) == list(range(24))) is mended
