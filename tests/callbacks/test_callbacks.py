"""All callbacks in one process without a launcher; several are in tests/callbacks/test_callbacks_training.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from unsloth_accel.callbacks.rank_log import RankLog
from unsloth_accel.report.run_record import read_lines


@pytest.fixture
def own_accelerator() -> Iterator[None]:
    """A Trainer builds an Accelerator, whose state outlives it; other tests are about processes that have none."""
    yield
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


def test_progress_tells_rewards(capsys: pytest.CaptureFixture[str]) -> None:
    """A loss of GRPO passes through 0, and tells nothing alone."""
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from unsloth_accel.callbacks import Progress

    state = TrainerState(max_steps=20, global_step=2)
    told = (TrainingArguments(report_to="none"), state, TrainerControl())
    progress = Progress()
    progress.on_train_begin(*told)
    progress.on_log(*told, logs={"loss": -1e-9, "reward": 0.125})
    progress.on_log(*told, logs={"eval_loss": 0.0, "eval_reward": 0.25})
    progress.on_log(*told, logs={"eval_loss": 0.5, "eval_reward": None})
    figures = ("reward 0.1250  loss -0.0000", "held-out reward 0.2500", "held-out loss 0.5000")
    assert capsys.readouterr().out.splitlines() == [f"step 2/20  {one}" for one in figures]


@pytest.mark.usefixtures("own_accelerator")
def test_each_callback_alone_in_a_plain_trainer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No unsloth, no launcher: figures reach what the Trainer reports, and the loader's time is the loader's.

    Evaluations while it trains are shown and kept, those before and after are not taken for them.
    """
    import time

    import torch
    import transformers
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    from unsloth_accel.callbacks import (
        Divergence,
        Memory,
        Progress,
        RankSync,
        RunLog,
        StepLog,
        Stragglers,
        Throughput,
        figures_first,
    )

    reported: list[dict[str, Any]] = []

    class Recorder(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            reported.append(dict(logs))

    def collate(rows: list[Any]) -> dict[str, torch.Tensor]:
        time.sleep(0.02)
        return {"input_ids": torch.tensor(rows), "labels": torch.tensor(rows)}

    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    throughput, log = Throughput(), RankLog(tmp_path / "told", 0)
    trainer = Trainer(
        model=LlamaForCausalLM(config),
        args=TrainingArguments(
            output_dir=str(tmp_path), max_steps=4, per_device_train_batch_size=2, gradient_accumulation_steps=2,
            logging_steps=2, report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no",
            eval_strategy="steps", eval_steps=2,
        ),
        train_dataset=[[1, 2, 3, 4, 5]] * 64,
        eval_dataset=[[1, 2, 3]],
        data_collator=collate,
        callbacks=[
            Recorder(),  # as the Trainer places integrations: before ours
            throughput, Memory(), Stragglers(throughput), RankSync(1), Divergence(), RunLog(log, throughput),
            StepLog(tmp_path / "steps.jsonl"), Progress(),
        ],
    )  # fmt: skip
    figures_first(trainer)
    trainer.evaluate()
    trainer.train()
    evaluations = [line for line in trainer.state.log_history if "eval_loss" in line]
    trainer.evaluate()
    logged = read_lines(tmp_path / "steps.jsonl")
    assert [("loss" in line, line["step"]) for line in logged] == [(True, 2), (False, 2), (True, 4), (False, 4)]
    assert [line["eval_loss"] for line in logged if "eval_loss" in line] == [one["eval_loss"] for one in evaluations]
    told = [line for line in capsys.readouterr().out.splitlines() if "held-out" in line]
    assert told == [f"step {one['step']}/4  held-out loss {one['eval_loss']:.4f}" for one in evaluations]
    first = reported[1]
    assert {"loss", "tokens_per_second", "data_share", "compute_share", "wait_share", "host_gib"} <= first.keys()
    assert first["wait_share"] == 0
    assert trainer.state.log_history[0]["tokens_per_second"] == first["tokens_per_second"]
    steps = [line for line in read_lines(tmp_path / "told" / "rank-0.jsonl") if line["event"] == "step"]
    assert [(step["step"], step["tokens"], step["padded_tokens"]) for step in steps] == [
        (n, 20, 20) for n in (1, 2, 3, 4)
    ]
    assert all(step["data_seconds"] >= 0.04 for step in steps)
    summary = json.loads((tmp_path / "told" / "summary.json").read_text())
    assert (summary["steps"], summary["tokens"], summary["mfu"]) == (4, 80, None)
    assert torch.utils.data.dataloader._BaseDataLoaderIter.__next__.__name__ == "__next__", "nothing stays behind"
    assert transformers.trainer_callback.CallbackHandler.call_event.__name__ == "call_event"
