"""What happens to a Trainer before it trains: a checkpoint chosen, the learning rate set."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import SMOLLM2, write_checkpoint
from row_files import rows
from transformers import get_linear_schedule_with_warmup

from unsloth_accel.adapters import resuming
from unsloth_accel.adapters.checkpointing import record
from unsloth_accel.artifacts.checkpoints import EVALUATION_LEFT
from unsloth_accel.config.read_run import from_dict
from unsloth_accel.errors import ConfigError


def schedule_of(steps: int) -> Any:
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW([{"params": [parameter]}, {"params": []}], lr=0.1)
    return get_linear_schedule_with_warmup(optimizer, 0, steps)


def resumed(steps: int, after: int, first: int) -> Any:
    """A schedule of `steps`, restored with its optimizer from `after` steps of one of `first`, as the Trainer does."""
    before, schedule = schedule_of(first), schedule_of(steps)
    for _ in range(after):
        before.optimizer.step()
        before.step()
    schedule.optimizer.load_state_dict(before.optimizer.state_dict())
    schedule.load_state_dict(before.state_dict())
    return schedule


def begin(schedule: Any, step: int) -> list[float]:
    state: Any = SimpleNamespace(global_step=step)
    nothing: Any = None
    resuming.RateOfSchedule().on_train_begin(nothing, state, nothing, lr_scheduler=schedule)
    return [group["lr"] for group in schedule.optimizer.param_groups]


def test_going_on_after_the_end_follows_the_new_schedule() -> None:
    schedule = resumed(8, after=6, first=6)
    assert [group["lr"] for group in schedule.optimizer.param_groups] == [0.0, 0.0]  # the fault
    assert begin(schedule, 6) == pytest.approx([0.1 * 2 / 8] * 2)
    assert schedule.get_last_lr() == pytest.approx([0.1 * 2 / 8] * 2)


def test_going_on_in_the_middle_changes_no_bit() -> None:
    schedule = resumed(7, after=3, first=7)
    before = [group["lr"] for group in schedule.optimizer.param_groups]
    assert begin(schedule, 3) == before


def test_a_fresh_run_is_left_alone() -> None:
    schedule = schedule_of(5)
    schedule.optimizer.param_groups[0]["lr"] = 7.0
    assert begin(schedule, 0)[0] == 7.0


@pytest.fixture
def trainer(description: dict[str, Any], tmp_path: Path) -> Any:
    """As much of a Trainer as choosing a checkpoint looks at, and two checkpoints of it."""
    run = from_dict({**description, "distributed": {"strategy": "single", "num_processes": 1}})
    args = SimpleNamespace(
        output_dir=str(tmp_path / "out"),
        world_size=1,
        train_batch_size=8,
        gradient_accumulation_steps=1,
        accelerator_config=SimpleNamespace(split_batches=False),
        seed=42,
        data_seed=None,
        optim="adamw_torch",
        learning_rate=1e-3,
        weight_decay=0.0,
        to_dict=dict,
    )
    model = torch.nn.Linear(2, 2)
    resumed: list[Any] = []
    made = SimpleNamespace(
        _run_epoch=lambda epoch: None,
        _finalize_training=lambda: None,
        args=args,
        callback_handler=SimpleNamespace(train_dataloader=SimpleNamespace()),
        model=model,
        train_dataset=rows(*"abcdefgh"),
        eval_dataset=None,
        train=lambda checkpoint=None: resumed.append(checkpoint),
        add_callback=lambda callback: None,
        resumed=resumed,
    )
    for step in (2, 4):
        write_checkpoint(tmp_path / "out" / f"checkpoint-{step}", run, record=False)
        record(tmp_path / "out" / f"checkpoint-{step}", resuming.made_with(made))  # type: ignore[arg-type]
    resuming.check_before_training(made)  # type: ignore[arg-type]
    return made


def test_the_newest_whole_checkpoint_is_taken(trainer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    out = Path(trainer.args.output_dir)
    trainer.train()
    trainer.train(resume_from_checkpoint=True)
    (out / "checkpoint-4" / "optimizer.pt").unlink()
    trainer.train(resume_from_checkpoint=True)
    assert trainer.resumed == [None, str(out / "checkpoint-4"), str(out / "checkpoint-2")]
    assert "checkpoint-4: optimizer.pt is missing; going on from checkpoint-2" in capsys.readouterr().err


def test_a_broken_one_that_is_asked_for_is_refused(trainer: Any) -> None:
    out = Path(trainer.args.output_dir)
    (out / "checkpoint-4" / "optimizer.pt").unlink()
    with pytest.raises(ConfigError, match=r"optimizer.pt is missing.* Fix: .*checkpoint-2, the newest whole one"):
        trainer.train(resume_from_checkpoint=str(out / "checkpoint-4"))
    (out / "checkpoint-2" / "scheduler.pt").unlink()
    with pytest.raises(ConfigError, match="no whole checkpoint"):
        trainer.train(resume_from_checkpoint=True)
    assert trainer.resumed == []


def test_a_plain_trainer_must_fit_its_checkpoint(trainer: Any) -> None:
    trainer.args.train_batch_size = 4
    trainer.train_dataset = rows(*"abcdefgx")
    with pytest.raises(ConfigError) as told:
        trainer.train(resume_from_checkpoint=True)
    assert [problem.key for problem in told.value.problems] == ["batch.global_size", "train_dataset"]
    assert trainer.resumed == []


@pytest.mark.parametrize("ours", [True, False])
def test_a_resumed_run_saves_and_evaluates_as_it_says_now(ours: bool, tmp_path: Path) -> None:
    """transformers takes the checkpoint's steps, and tells only that they differ: `ours` False shows it."""
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    ids = torch.arange(4)
    held = [{"input_ids": ids, "labels": ids}] * 8

    def trained(steps: int, **asked: Any) -> Trainer:
        args = TrainingArguments(
            output_dir=str(tmp_path), max_steps=steps, per_device_train_batch_size=1, report_to="none", use_cpu=True,
            disable_tqdm=True, save_strategy="steps", eval_strategy="steps", **asked,
        )  # fmt: skip
        made = Trainer(LlamaForCausalLM(config), args, train_dataset=held, eval_dataset=held)
        if ours:
            made.add_callback(resuming.StepsAsAsked())
        made.train(resume_from_checkpoint=steps > 2)
        return made

    assert trained(2, save_steps=2, eval_steps=0.5, logging_steps=2).state.eval_steps == 1
    state = trained(5, save_steps=1, eval_steps=1, logging_steps=1).state
    logs, evaluations = ([line["step"] for line in state.log_history if key in line] for key in ("loss", "eval_loss"))
    assert (logs == [2, 3, 4, 5]) is ours
    assert (state.save_steps, state.logging_steps) == ((1, 1) if ours else (2, 2))
    assert evaluations == [1, 2, 3, 4, 5]


def test_a_new_run_keeps_steps_that_a_callback_gave_it() -> None:
    from transformers import TrainerState, TrainingArguments

    state = TrainerState(save_steps=7, max_steps=20)
    args = TrainingArguments(save_steps=3, report_to="none")
    resuming.StepsAsAsked().on_train_begin(args, state, None)  # type: ignore[arg-type]
    assert state.save_steps == 7
    state.global_step = 2
    resuming.StepsAsAsked().on_train_begin(args, state, None)  # type: ignore[arg-type]
    assert state.save_steps == 3


def test_no_step_is_made_beyond_the_last(trainer: Any) -> None:
    """The Trainer itself makes one: it compares with max_steps after a step."""
    epochs: list[int] = []
    trainer._run_epoch = lambda epoch: epochs.append(epoch)
    trainer.control = SimpleNamespace(should_training_stop=False)
    trainer.state = SimpleNamespace(global_step=3, max_steps=4, stateful_callbacks={})
    trainer._finalize_training = lambda: None
    resuming._stop_at_the_end(trainer)
    trainer._run_epoch(0)
    assert (epochs, trainer.control.should_training_stop) == ([0], False)
    trainer.state.global_step = 4
    trainer._run_epoch(1)
    assert (epochs, trainer.control.should_training_stop) == ([0], True)


def test_an_evaluation_that_was_left_out_is_made_first(trainer: Any) -> None:
    """Before the first step, or at the end where none is left; once, and its checkpoint may be the best one."""
    from transformers import TrainerState

    done: list[Any] = []
    trainer._run_epoch, trainer._finalize_training = (lambda: done.append("epoch")), (lambda: done.append("end"))
    trainer.control = SimpleNamespace(should_training_stop=False)
    trainer.args.eval_strategy = "steps"
    trainer.callback_handler.callbacks = []

    def evaluate(trial: None, ignored: None) -> dict[str, float]:
        done.append("evaluated")
        trainer.control.should_training_stop = len(done) > 3  # early
        return {}

    def determine(metrics: dict[str, float], trial: None) -> None:
        trainer.state.best_global_step = trainer.state.global_step

    trainer._evaluate, trainer._determine_best_metric = evaluate, determine
    trainer.state = TrainerState(global_step=4, max_steps=9, stateful_callbacks=[])
    trainer.state.stateful_callbacks[EVALUATION_LEFT] = {}
    resuming._stop_at_the_end(trainer)
    trainer._run_epoch()
    trainer._run_epoch()
    assert done == ["evaluated", "epoch", "epoch"]
    assert trainer.state.best_model_checkpoint == str(Path(trainer.args.output_dir, "checkpoint-4"))
    trainer.state.stateful_callbacks[EVALUATION_LEFT] = {}
    trainer._run_epoch()
    trainer._finalize_training()
    assert done[3:] == ["evaluated", "end"]
    trainer.state.stateful_callbacks[EVALUATION_LEFT] = {}
    trainer._finalize_training()
    trainer.args.eval_strategy = "no"
    trainer.state.stateful_callbacks[EVALUATION_LEFT] = {}
    trainer._finalize_training()
    assert done[5:] == ["evaluated", "end", "end"]


def test_a_streams_tokenizer_is_known(trainer: Any) -> None:
    """Its rows can't be looked at. How the tokenizer was used last makes no difference."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(SMOLLM2))
    trainer.train_dataset = iter(())
    trainer.processing_class = tokenizer

    def known() -> Any:
        trainer._unsloth_accel_tokenizer = None
        return resuming.made_with(trainer)["tokenizer"]

    before = known()
    tokenizer(["a", "b c d e"], padding=True, truncation=True, max_length=3)
    tokenizer.padding_side = "left"
    assert known() == before
    tokenizer.chat_template = "{{ messages }}"
    assert known() != before
    changed = known()
    tokenizer.add_tokens(["<word>"])
    assert known() not in (before, changed)
    trainer.train_dataset = rows(*"ab")
    assert "tokenizer" not in resuming.made_with(trainer)
