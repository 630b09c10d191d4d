"""Counting tokens without waiting for the GPU: the Trainer's own numbers, wherever somebody reads them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainingArguments

from unsloth_accel.adapters.token_count import LateTokenCount, count_late

PADDING = 0


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.fails_in = -1
        """How many passes from now."""

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor, attention_mask: Any = None) -> Any:
        self.fails_in -= 1
        if not self.fails_in:
            raise RuntimeError("an error in the middle")
        return {"loss": (self.weight * labels.float()).mean() ** 2, "logits": labels}


class Asks(TrainerCallback):
    """Wants a log after step 3, and stops in step 5 if it is told to; it comes after the counting."""

    def __init__(self, stop: bool) -> None:
        self.stop = stop

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        control.should_log = control.should_log or state.global_step == 3
        control.should_epoch_stop = control.should_training_stop = self.stop and state.global_step == 5


def rows(masked: bool) -> list[dict[str, torch.Tensor]]:
    found = []
    for number in range(24):
        ids = torch.tensor([1] * (1 + number % 4) + [PADDING] * (3 - number % 4))
        found.append({"input_ids": ids, "labels": ids} | ({"attention_mask": (ids > 0).long()} if masked else {}))
    return found


def trainer(out: Path, mode: str | bool = "non_padding", *, masked: bool = True, stop: bool = False) -> Any:
    arguments = TrainingArguments(
        output_dir=str(out),
        use_cpu=True,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        num_train_epochs=2,
        logging_steps=5,
        eval_strategy="steps",
        eval_steps=4,
        save_strategy="steps",
        save_steps=4,
        report_to=[],
        disable_tqdm=True,
        include_num_input_tokens_seen=mode,
    )
    made: Any = Trainer(model=Model(), args=arguments, train_dataset=rows(masked), eval_dataset=rows(masked)[:2])
    made.processing_class = SimpleNamespace(pad_token_id=PADDING)
    made.save_model = lambda directory, **_: Path(directory).mkdir(parents=True)
    made.late = None
    made.asks = Asks(stop)
    return made


def counting(made: Any, late: bool) -> Any:
    made.late = count_late(made) if late else None
    made.add_callback(made.asks)
    return made


def logged(made: Any) -> list[tuple[int, Any]]:
    return [(line["step"], line.get("num_input_tokens_seen")) for line in made.state.log_history]


def saved(out: Path, step: int) -> int:
    text = (out / f"checkpoint-{step}" / "trainer_state.json").read_text(encoding="utf-8")
    (line,) = (line for line in text.splitlines() if line.startswith('  "num_input_tokens_seen"'))
    return int(line.split(":")[1].strip(" ,"))


def test_rows_that_only_keep_a_rank_in_step_are_not_counted(tmp_path: Path) -> None:
    """What is trained on is counted, whatever was planned: a rank that repeats or loses rows shows in the number."""
    made = trainer(tmp_path)
    late: Any = count_late(made, learned=True)
    batch = made.data_collator(rows(masked=True)[:2])  # of one token and of two
    late.add(batch)
    late.add(batch | {"labels": torch.full_like(batch["labels"], -100)})
    late.settle()
    assert made.state.num_input_tokens_seen == 3
    assert count_late(made) is None


@pytest.mark.parametrize(("mode", "masked"), [("non_padding", True), ("non_padding", False), ("all", True)])
@pytest.mark.parametrize("stop", [False, True])
def test_every_log_and_checkpoint_has_the_trainers_own_number(
    tmp_path: Path, mode: str, masked: bool, stop: bool
) -> None:
    own = counting(trainer(tmp_path / "own", mode, masked=masked, stop=stop), late=False)
    late = counting(trainer(tmp_path / "late", mode, masked=masked, stop=stop), late=True)
    own.train()
    late.train()
    assert logged(late) == logged(own)
    assert [step for step, _ in logged(own)][:3] == [3, 4, 5]
    assert late.state.num_input_tokens_seen == own.state.num_input_tokens_seen > 0
    assert saved(tmp_path / "late", 4) == saved(tmp_path / "own", 4) > 0


def test_ranks_meet_only_where_the_count_is_read(tmp_path: Path) -> None:
    late = counting(trainer(tmp_path), late=True)
    met: list[int] = []
    settle = late.late.settle
    late.late.settle = lambda: (met.append(late.state.global_step), settle())[1]
    late.train()
    # A log, evaluations and checkpoints, an epoch's end, the last step, and the end of training.
    assert met == [3, 4, 5, 6, 8, 10, 12, 12, 12]


def test_a_training_that_failed_counts_for_nothing(tmp_path: Path) -> None:
    late = counting(trainer(tmp_path / "late"), late=True)
    late.model.fails_in = 4
    with pytest.raises(RuntimeError, match="in the middle"):
        late.train()
    late.train()
    own = counting(trainer(tmp_path / "own"), late=False)
    own.train()
    assert late.state.num_input_tokens_seen == own.state.num_input_tokens_seen


@pytest.mark.parametrize("inputs", [{"pixel_values": torch.zeros(1)}, [{"prompt": "a row of GRPO"}]])
def test_inputs_without_tokens_are_warned_of_as_by_the_trainer(
    tmp_path: Path, inputs: Any, caplog: pytest.LogCaptureFixture
) -> None:
    count = LateTokenCount(trainer(tmp_path))
    warned: list[Any] = []
    count._plain = warned.append
    count.add(inputs)
    assert warned == [inputs]


def test_counts_once_and_only_if_it_is_wanted(tmp_path: Path) -> None:
    assert count_late(trainer(tmp_path, "no")) is None
    made = trainer(tmp_path)
    assert count_late(made) is not None
    assert count_late(made) is None
