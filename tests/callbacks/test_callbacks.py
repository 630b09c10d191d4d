"""Callbacks by themselves: arithmetic and rules, and what a single process logs; several are in
tests/callbacks/test_callbacks_training.py."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from unsloth_accel.callbacks.phases import phase
from unsloth_accel.callbacks.rank_log import RankLog, read_lines


def test_a_log_goes_on_behind_a_line_that_a_crash_cut_short(tmp_path: Path) -> None:
    log = RankLog(tmp_path, 3)
    log.write("start", world_size=4, loss=math.nan)
    path = tmp_path / "rank-3.jsonl"
    path.write_text(path.read_text() + '{"time": 1, "ran')
    RankLog(tmp_path, 3, resumed=True).write("end", seconds=1.5)
    first, last = read_lines(path)
    assert (first["rank"], first["event"], first["loss"]) == (3, "start", None)
    assert (last["event"], last["seconds"]) == ("end", 1.5)
    RankLog(tmp_path, 3)
    assert read_lines(path) == []


def test_a_phase_is_shown_once_and_logged_also_when_it_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with phase("loading", RankLog(tmp_path, 0), about="a-model"):
        pass
    with pytest.raises(OSError, match="disk full"), phase("saving", RankLog(tmp_path, 1)):
        raise OSError("disk full")
    assert capsys.readouterr().out == "loading a-model\n"
    assert [line["name"] for rank in (0, 1) for line in read_lines(tmp_path / f"rank-{rank}.jsonl")] == [
        "loading",
        "saving",
    ]


def test_flops_of_lora_by_hand() -> None:
    """SmolLM2-135M: 30 layers of 576 and 1536, 9 heads of 64, 3 of keys and values, 49152 words, a tied head."""
    from unsloth_accel.callbacks.mfu import full_flops, lora_flops
    from unsloth_accel.models.spec import ModelSpec

    spec = ModelSpec.load("HuggingFaceTB/SmolLM2-135M-Instruct")
    block = 576 * 576 * 2 + 576 * 192 * 2 + 3 * 576 * 1536 + 2 * 576
    weights = 30 * block + 576 + 576 * 49152
    flops = lora_flops(spec, 1_000_000)
    assert flops.per_token == 4 * weights + 6_000_000
    assert flops.per_pair == 12 * 30 * 9 * 64
    # A row of 1000 tokens: PaLM's 12 L H Q T per token, halved.
    assert flops.of(1000, 1000 * 1001 / 2) == pytest.approx(
        1000 * flops.per_token + 1000 * 12 * 30 * 9 * 64 * 1000 / 2, rel=1e-3
    )
    assert full_flops(spec).per_token == 6 * weights


@pytest.mark.parametrize("flat", [False, True])
def test_tokens_and_pairs_of_a_batch(flat: bool) -> None:
    import torch
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    from unsloth_accel.callbacks.throughput import count

    lengths = [3, 7, 1]
    rows = [{"input_ids": [1] * length} for length in lengths]
    inputs = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=flat)(rows)
    assert count(inputs).tolist() == [11, 6 + 28 + 1]
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    assert count(inputs).tolist() == [0, 0], "rows that only fill a step"


def pace(data: float = 0.0, compute: float = 1.0, wait: float = 0.0, clock: float = 1900, reasons: int = 0) -> Any:
    from unsloth_accel.callbacks.stragglers import Pace

    return Pace(data=data, compute=compute, wait=wait, clock_mhz=clock, reasons=reasons)


@pytest.mark.parametrize(
    ("slow", "cause"),
    [
        (pace(data=0.5, compute=1.1), "data"),
        (pace(compute=1.5, clock=1200, reasons=0x20), "gpu clock"),
        (pace(compute=1.5), "unknown"),
        (pace(compute=1.5, clock=0), "unknown"),
        (pace(compute=1.09), None),
    ],
)
def test_causes_of_a_slow_rank(slow: Any, cause: str | None) -> None:
    from unsloth_accel.callbacks.stragglers import find

    found = find([pace(), pace(compute=0.99), slow, pace(compute=1.01)])
    assert (found and (found.rank, found.cause)) == (cause and (2, cause))
    if cause == "gpu clock":
        assert found is not None
        assert "1200 MHz" in found.detail
        assert "temperature" in found.detail


def test_milliseconds_and_single_ranks_are_no_stragglers() -> None:
    from unsloth_accel.callbacks.stragglers import find

    assert find([pace(compute=0.001), pace(compute=0.002)]) is None
    assert find([pace(compute=9)]) is None


@pytest.mark.parametrize(("slower_in", "straggler"), [(10, True), (9, True), (8, False), (5, False)])
def test_rows_of_other_lengths_make_no_straggler(slower_in: int, straggler: bool) -> None:
    """Eight of ten steps by chance is nothing; a clock that is held back shows in all of them."""
    from dataclasses import replace

    from unsloth_accel.callbacks.stragglers import find

    own = (1.5,) * slower_in + (0.5,) * (10 - slower_in)
    found = find([replace(pace(), steps=(1.0,) * 10 + (math.nan,)), replace(pace(compute=1.5), steps=(*own, 1.0))])
    assert (found is not None) == straggler


def test_the_network_is_what_the_slowest_rank_waits() -> None:
    from unsloth_accel.callbacks.stragglers import network_share

    assert network_share([pace(wait=1.0), pace(wait=3.0)]) == 0.5
    assert network_share([pace(wait=-1), pace(wait=3.0)]) is None


def test_a_loss_diverges_only_when_it_stays_far_above() -> None:
    from unsloth_accel.callbacks.divergence import LossRule

    rule = LossRule(patience=3)
    assert not any(rule.diverged(loss) for loss in [9.0, 4, 2, 1, 1, 1, 1, 1, 1, 1])
    assert not any(rule.diverged(loss) for loss in [8, 9, 1, 8, 9, 2.9]), "it came back"
    assert [rule.diverged(loss) for loss in [7, 8, 9]] == [False, False, True]
    small = LossRule(patience=1)
    assert not any(small.diverged(loss) for loss in [0.01] * 9 + [0.5, 1.0]), "three times almost nothing"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_weight_that_is_not_finite(value: float) -> None:
    import torch

    from unsloth_accel.callbacks.divergence import everywhere_finite

    params = [torch.nn.Parameter(torch.full((5,), 3e38)), torch.nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16))]
    assert everywhere_finite(params)
    params[1].data[1, 1] = value
    assert not everywhere_finite(params)


def test_a_spike_is_not_saved_and_the_checkpoint_before_it_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    from unsloth_accel.callbacks import divergence

    paths = [tmp_path / f"checkpoint-{step}" for step in (6, 8)]
    monkeypatch.setattr(divergence, "checkpoints", lambda directory: paths)
    callback = divergence.Divergence(divergence.LossRule(patience=2))
    args: Any = SimpleNamespace(output_dir=str(tmp_path), learning_rate=1.0, fp16=False)
    control: Any = SimpleNamespace(should_save=True, should_log=True)
    for step in range(1, 8):
        callback.on_log(args, SimpleNamespace(global_step=step), control, {"loss": 1.0, "grad_norm": 1.0})
    assert control.should_save
    callback.on_log(args, SimpleNamespace(global_step=8), control, {"loss": 9.0, "grad_norm": 1.0})
    assert not control.should_save
    with pytest.raises(divergence.DivergenceError, match=r"2 logs in a row .* last good checkpoint is .*checkpoint-6"):
        callback.on_log(args, SimpleNamespace(global_step=9), control, {"loss": 9.0, "grad_norm": 1.0})
    with pytest.raises(divergence.DivergenceError, match="gradient norm is nan"):
        callback.on_log(args, SimpleNamespace(global_step=9), control, {"loss": 1.0, "grad_norm": math.nan})
    args.fp16 = True
    overflow = divergence.Divergence(divergence.LossRule(patience=2))
    overflow.on_log(args, SimpleNamespace(global_step=1), control, {"loss": 1.0, "grad_norm": math.inf})
    with pytest.raises(divergence.DivergenceError, match="gradient norm is inf"):
        overflow.on_log(args, SimpleNamespace(global_step=2), control, {"loss": 1.0, "grad_norm": math.inf})


@pytest.fixture
def own_accelerator() -> Iterator[None]:
    """A Trainer builds an Accelerator, whose state outlives it; other tests are about processes that have none."""
    yield
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("own_accelerator")
def test_each_callback_alone_in_a_plain_trainer(tmp_path: Path) -> None:
    """No unsloth, no launcher: figures reach what the Trainer reports, and the loader's time is the loader's."""
    import time

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    from unsloth_accel.callbacks import Divergence, Memory, RankSync, RunLog, Stragglers, Throughput, figures_first

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
    throughput, log = Throughput(), RankLog(tmp_path / "logs", 0)
    trainer = Trainer(
        model=LlamaForCausalLM(config),
        args=TrainingArguments(
            output_dir=str(tmp_path), max_steps=4, per_device_train_batch_size=2, gradient_accumulation_steps=2,
            logging_steps=2, report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no",
        ),
        train_dataset=[[1, 2, 3, 4, 5]] * 64,
        data_collator=collate,
        callbacks=[
            Recorder(),  # as the Trainer places integrations: before ours
            throughput, Memory(), Stragglers(throughput), RankSync(1), Divergence(), RunLog(log, throughput),
        ],
    )  # fmt: skip
    figures_first(trainer)
    trainer.train()
    first = reported[0]
    assert {"loss", "tokens_per_second", "data_share", "compute_share", "wait_share", "host_gib"} <= first.keys()
    assert first["wait_share"] == 0
    assert trainer.state.log_history[0]["tokens_per_second"] == first["tokens_per_second"]
    steps = [line for line in read_lines(tmp_path / "logs" / "rank-0.jsonl") if line["event"] == "step"]
    assert [(step["step"], step["tokens"], step["padded_tokens"]) for step in steps] == [
        (n, 20, 20) for n in (1, 2, 3, 4)
    ]
    assert all(step["data_seconds"] >= 0.04 for step in steps)
    summary = json.loads((tmp_path / "logs" / "summary.json").read_text())
    assert (summary["steps"], summary["tokens"], summary["mfu"]) == (4, 80, None)
    assert torch.utils.data.dataloader._BaseDataLoaderIter.__next__.__name__ == "__next__", "nothing stays behind"


def test_the_time_left_as_a_reader_takes_it_in() -> None:
    from unsloth_accel.callbacks.progress import duration

    assert [duration(seconds) for seconds in (45, 89, 700, 11_100)] == ["45 s", "89 s", "12 min", "3 h 05 min"]


def test_one_exchange_for_all_that_is_told_at_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    from unsloth_accel.callbacks import exchange

    asked: list[list[float]] = []

    def share(own: Sequence[float]) -> list[list[float]]:
        asked.append(list(own))
        return [list(own), [-number for number in own]]

    monkeypatch.setattr(exchange, "share", share)
    monkeypatch.setattr(exchange, "_alone", lambda: True)
    common, told = exchange.Exchange(), iter(range(10))
    one, other = common.join(lambda: [next(told), 10]), common.join(lambda: [20])
    assert (one(1), other(1)) == ([[0, 10], [0, -10]], [[20], [-20]])
    assert [numbers for _, *numbers in asked] == [[0, 10, 20]]
    assert other(2) == [[20], [-20]]
    assert one(3)[0] == [2, 10]  # not what was told for step 2, which this one never read
    assert one(3)[0] == [3, 10]  # a second log of the same step is told anew
    assert len(asked) == 4


def test_quick_steps_share_an_exchange_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the pace of the slowest clock, since all ranks must come to the same step."""
    from unsloth_accel.callbacks import exchange

    seconds = 0.0
    monkeypatch.setattr(exchange, "share", lambda own: [[own[0] / 2, *own[1:]], list(own)])
    monkeypatch.setattr(exchange, "_alone", lambda: False)
    monkeypatch.setattr(exchange.time, "perf_counter", lambda: seconds)
    read = exchange.Exchange().join(lambda: [7.0])

    def told(pace: float, steps: range) -> list[int]:
        nonlocal seconds
        found = []
        for step in steps:
            seconds += pace
            if read(step) is not None:
                found.append(step)
        return found

    assert told(0.3, range(1, 16)) == [1, 2, 6, 10, 14]
    assert told(2.0, range(16, 20)) == [18, 19]
    assert told(0.05, range(1, 30)) == [1, 2, 22]  # another training: nothing is known of its pace


def test_memory_is_asked_of_the_machine_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    from unsloth_accel.callbacks import memory_reading
    from unsloth_accel.callbacks.memory_reading import Machine, TorchMemory

    asked: list[Machine] = []
    clock = iter([100.0, 100.9, 101.1, 101.2, 101.3])
    gpu: list[TorchMemory | None] = [None]

    def look() -> Machine:
        asked.append(Machine(total=80 if gpu[0] else 0, others=0, host=0.5, process=1))
        return asked[-1]

    monkeypatch.setattr(memory_reading, "_read", [])
    monkeypatch.setattr(memory_reading.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(memory_reading, "_machine", look)
    monkeypatch.setattr(memory_reading, "torch_memory", lambda: gpu[0])
    counts = []
    for _ in range(3):
        memory_reading.machine()
        counts.append(len(asked))
    assert counts == [1, 1, 2]
    gpu[0] = TorchMemory(peak=1, reserved=1, retries=0)
    assert memory_reading.machine().total == 80, "the GPU came into use since"
    memory_reading.machine()
    assert len(asked) == 3
