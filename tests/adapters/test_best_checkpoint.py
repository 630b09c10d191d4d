"""load_best_model_at_end where the best checkpoint can't be written, or is gone: whose weights the model has."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from unsloth_accel.adapters import checkpointing
from unsloth_accel.adapters.checkpointing import keep_checkpoints, weights_kept
from unsloth_accel.artifacts.checkpoints import RECORD, Checkpoint

LOSSES: dict[int, float | None] = {1: 5.0, 2: 4.0, 3: 3.0, 4: 4.5}
"""What an evaluation after each step says: step 3 is the best, step 2 the one before."""


class Remembers(TrainerCallback):
    """Keeps the trained weights after each step, and does `harm` after the last."""

    def __init__(self, harm: Any) -> None:
        self.harm = harm
        self.weights: dict[int, list[torch.Tensor]] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.weights[state.global_step] = weights_of(model)
        if state.global_step == 4:
            self.harm(Path(args.output_dir))


def weights_of(model: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters() if p.requires_grad]


def trained(
    out: Path, full_at: set[int], harm: Any = lambda directory: None, prepare: Any = lambda trainer: None, **more: Any
) -> tuple[Any, Remembers]:
    """A training of four steps whose checkpoints after `full_at` can't be written."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = get_peft_model(LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes)), LoraConfig(target_modules=["q_proj"]))
    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1} | more
    rows = [{"input_ids": [n, n + 1, n + 2], "labels": [n, n + 1, n + 2]} for n in range(16)]
    trainer: Any = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(out), max_steps=4, load_best_model_at_end=True, metric_for_best_model="loss",
            report_to="none", use_cpu=True, disable_tqdm=True, learning_rate=0.1, **settings,
        ),
        train_dataset=rows,
        eval_dataset=rows[:1],
    )  # fmt: skip
    trainer.evaluate = lambda *args, **kwargs: {"eval_loss": LOSSES[trainer.state.global_step]}
    save = trainer.save_model

    def full(directory: str | None = None, _internal_call: bool = False) -> None:
        if trainer.state.global_step in full_at:
            raise OSError(28, "No space left on device")
        save(directory, _internal_call=_internal_call)

    trainer.save_model = full
    remembers = Remembers(harm)
    trainer.add_callback(remembers)
    prepare(trainer)
    keep_checkpoints(trainer)
    trainer.train()
    return trainer, remembers


def cut(directory: Path) -> None:
    weights = directory / "checkpoint-3" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])


def test_an_evaluation_without_the_figure_is_not_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's reward is None where no completion had one; the Trainer itself compares it, and fails."""
    for step in (1, 4):
        monkeypatch.setitem(LOSSES, step, None)
    trainer, _ = trained(tmp_path, set())
    assert (trainer.state.best_global_step, trainer.state.best_metric) == (3, 3.0)


@pytest.mark.parametrize(
    ("full_at", "harm", "more", "step", "told"),
    [
        (set(), None, {}, 3, ""),
        ({3}, None, {}, 2, "no checkpoint that can be loaded: the weights are those of step 2, the best of those"),
        ({1, 2, 3}, None, {}, 4, "that can be loaded: the weights are those of step 4, the best of those"),
        ({1, 2, 3, 4}, None, {}, 4, "loss 3.0000 after step 3"),
        (set(), lambda out: shutil.rmtree(out / "checkpoint-3"), {}, 4, "those of step 4, the last one's"),
        (set(), cut, {}, 4, "those of step 4, the last one's"),
        (set(), None, {"save_steps": 2}, 2, "loss 3.0000 after step 3"),
    ],
    ids=["all", "best full", "only the last", "none", "gone", "cut short", "not saved then"],
)  # fmt: skip
def test_whose_weights_the_model_has(
    full_at: set[int], harm: Any, more: Any, step: int, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer, remembers = trained(tmp_path, full_at, harm or (lambda directory: None), **more)
    found = weights_kept(trainer)
    assert found is not None
    assert found.step == step
    assert all(map(torch.equal, weights_of(trainer.model), remembers.weights[step]))
    assert not any(map(torch.equal, weights_of(trainer.model), remembers.weights[1]))
    assert told in found.message
    assert bool(found.message) == bool(told)
    assert found.message in capsys.readouterr().err
    assert found.message.count("Fix: ") == bool(told)


@pytest.mark.parametrize(
    ("full_at", "loss", "step", "told"),
    [({4}, 2.0, 4, ""), ({3, 4}, 3.5, 4, "loss 3.0000 after step 3"), ({3, 4}, 4.2, 2, "loss 3.0000 after step 3")],
    ids=["the best", "better than any that is written", "worse than one that is written"],
)
def test_the_last_weights_are_not_given_for_worse_ones(
    full_at: set[int], loss: float, step: int, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are in memory alone where their checkpoint could not be written."""
    monkeypatch.setitem(LOSSES, 4, loss)
    trainer, remembers = trained(tmp_path, full_at)
    found = weights_kept(trainer)
    assert found is not None
    assert found.step == step
    assert all(map(torch.equal, weights_of(trainer.model), remembers.weights[step]))
    assert told in found.message
    assert bool(told) == bool(found.message)


def held(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("aged", [True, False], ids=["by time", "by number"])
def test_a_limit_deletes_no_directory_of_the_users_own(aged: bool, tmp_path: Path) -> None:
    """The Trainer deletes whatever is called checkpoint-…, by its time or the number that it finds in the name."""
    mine = ("checkpoint-1-copy", "checkpoint-9", *(("checkpoint-best",) if aged else ()))
    for name in mine:
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("mine", encoding="utf-8")
        if aged:
            os.utime(tmp_path / name, (1, 1))
    trained(tmp_path, set(), lambda out: None, save_total_limit=1)
    assert held(tmp_path) == sorted([*mine, "checkpoint-3"])
    assert all((tmp_path / name / "notes.txt").is_file() for name in mine)


def test_a_users_own_files_in_a_checkpoint_stay(tmp_path: Path) -> None:
    """Where it goes for newer ones, and where one of that step is written anew, whose record doesn't name them."""
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "why.txt").write_text("mine", encoding="utf-8")
    seen: list[set[str]] = []
    trained(tmp_path, set(), lambda out: seen.append({*Checkpoint(out / "checkpoint-2").record["files"]}))
    (files,) = seen
    assert "adapter_model.safetensors" in files
    assert "why.txt" not in files
    trained(tmp_path, set(), save_total_limit=1)
    assert held(tmp_path) == ["checkpoint-2", "checkpoint-3"]
    assert held(tmp_path / "checkpoint-2") == ["why.txt"]


def test_what_is_written_anew_has_no_record_until_it_is_whole(tmp_path: Path) -> None:
    """Else a process that is killed in it leaves new weights with a state of before, and a record that fits both."""
    (tmp_path / "checkpoint-2").mkdir()
    for name in (RECORD, "rng_state_5.pth", "trainer_state.json"):
        (tmp_path / "checkpoint-2" / name).write_text('{"files": {"trainer_state.json": 1, "rng_state_5.pth": 1}}')
    seen: list[list[str]] = []

    def prepare(trainer: Any) -> None:
        save = trainer._save_optimizer_and_scheduler

        def looked(directory: str) -> None:
            if directory.endswith("checkpoint-2"):
                seen.append(held(Path(directory)))
            save(directory)

        trainer._save_optimizer_and_scheduler = looked

    trained(tmp_path, set(), prepare=prepare)
    (names,) = seen
    assert "adapter_model.safetensors" in names
    assert not {RECORD, "rng_state_5.pth", "trainer_state.json"} & {*names}


def test_a_limit_of_one_deletes_nothing_for_a_best_one_that_can_not_be_loaded(tmp_path: Path) -> None:
    trained(tmp_path, set(), cut, save_total_limit=1)
    assert held(tmp_path) == ["checkpoint-3", "checkpoint-4"]
    assert Checkpoint(tmp_path / "checkpoint-4").fault is None


@pytest.mark.parametrize(
    ("limit", "left"),
    [(1, [3]), (2, [3, 4]), (3, [2, 3, 4])],
)
def test_a_limit_leaves_what_the_trainer_leaves(limit: int, left: list[int], tmp_path: Path) -> None:
    trained(tmp_path, set(), save_total_limit=limit)
    assert held(tmp_path) == [f"checkpoint-{step}" for step in left]


def test_the_older_checkpoint_stays_until_every_rank_has_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a disk that is full for another rank alone costs both: the newer one is given up."""
    at = {"step": 0}

    def another_fails(value: Any) -> list[Any]:
        failed = value == {} and at["step"] in (3, 4)
        return [value, {"optimizer.pt": ("rank 1 has no room", "make room")} if failed else value]

    monkeypatch.setattr(checkpointing, "of_every_rank", another_fails)
    made = checkpointing.let_go
    seen: list[list[str]] = []

    def next_step(model: Any) -> None:
        seen.append(held(tmp_path) if tmp_path.is_dir() else [])
        at["step"] += 1
        made(model)

    monkeypatch.setattr(checkpointing, "let_go", next_step)
    trainer, remembers = trained(tmp_path, set(), save_total_limit=1)
    assert seen == [[], ["checkpoint-1"], ["checkpoint-2"], ["checkpoint-2"]]
    assert held(tmp_path) == ["checkpoint-2"]
    assert all(map(torch.equal, weights_of(trainer.model), remembers.weights[2]))


def test_a_best_checkpoint_that_is_gone_does_not_end_the_run(tmp_path: Path) -> None:
    trainer, _ = trained(tmp_path, set(), lambda out: shutil.rmtree(out / "checkpoint-3"), save_total_limit=1)
    found = weights_kept(trainer)
    assert found is not None
    assert found.step == 4
    assert held(tmp_path) == ["checkpoint-4"]


def test_a_record_without_room_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: Any, **more: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpointing, "write_record", full)
    trained(tmp_path, set())
    assert held(tmp_path) == [f"checkpoint-{step}" for step in (1, 2, 3, 4)]
    told = "checkpoint-2 has no record of what it was made with: No space left on device. Fix: make room there."
    assert told in capsys.readouterr().err


def without(monkeypatch: pytest.MonkeyPatch, part: str, error: Exception) -> None:
    """Let files whose name has `part` fail in step 3, with half of them written."""
    write = torch.save
    step = {"now": 0}
    monkeypatch.setattr(
        Remembers, "on_step_begin", lambda self, a, state, c, **k: step.update(now=state.global_step + 1), raising=False
    )

    def fails(value: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        if part in Path(file).name and step["now"] == 3:
            Path(file).write_bytes(b"half")
            raise error
        write(value, file, *args, **kwargs)

    monkeypatch.setattr(torch, "save", fails)


def test_a_checkpoint_without_a_random_state_is_kept_and_no_run_goes_on_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor does it cost the whole one before it."""
    without(monkeypatch, "rng_state", PermissionError(13, "Permission denied"))
    seen: list[str] = []
    trainer, remembers = trained(tmp_path, set(), lambda out: seen.extend(held(out)), save_total_limit=1)
    assert seen == ["checkpoint-2", "checkpoint-3"]
    assert held(tmp_path) == ["checkpoint-3"], "as the Trainer leaves it: the best one"
    left = Checkpoint(tmp_path / "checkpoint-3")
    assert (left.has_adapter, left.fault) == (True, "rng_state.pth is missing")
    assert all(map(torch.equal, weights_of(trainer.model), remembers.weights[3]))
    printed = capsys.readouterr().err
    assert "checkpoint-3 lacks rng_state.pth, the random state of rank 0: PermissionError: [Errno 13]" in printed
    assert "Fix: let the user that trains write there" in printed
    assert "make room" not in printed


def test_an_optimizer_that_can_not_be_written_costs_that_checkpoint_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without(monkeypatch, "optimizer", RuntimeError("unexpected pos 64 vs 0"))
    trained(tmp_path, set(), save_total_limit=2)
    assert held(tmp_path) == ["checkpoint-2", "checkpoint-4"]
    told = "checkpoint-3 was not saved: RuntimeError: unexpected pos 64 vs 0, optimizer.pt of rank 0. Training goes on"
    assert told in capsys.readouterr().err


def test_a_push_that_fails_costs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It comes after the record; and is told as a push."""
    seen: list[bool] = []

    def prepare(trainer: Any) -> None:
        def push(directory: str) -> None:
            seen.append((Path(directory) / RECORD).is_file())
            raise ConnectionError("502 Bad Gateway")

        trainer._push_from_checkpoint = push
        trainer.args.push_to_hub = True

    trained(tmp_path, set(), prepare=prepare)
    assert held(tmp_path) == [f"checkpoint-{step}" for step in (1, 2, 3, 4)]
    assert seen == [True] * 4
    assert [Checkpoint(tmp_path / name).fault for name in held(tmp_path)] == [None] * 4
    assert "checkpoint-2 was not pushed to the Hub: ConnectionError: 502 Bad Gateway. It is whole on disk" in (
        capsys.readouterr().err
    )


def test_ranks_stay_together_where_one_can_not_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate's FSDP gathers between two writes: a rank that left would be waited for."""
    from torch.distributed.checkpoint import CheckpointException

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    trainer: Any = SimpleNamespace(is_fsdp_enabled=True, _push_from_checkpoint=None)
    gathered = []
    with checkpointing._unwritten(trainer, tmp_path) as found:
        torch.save({}, tmp_path / "pytorch_model_fsdp.bin")
        gathered.append("optimizer")
        torch.save({}, tmp_path / "optimizer.bin")
        raise CheckpointException("of shards, which all ranks raise", {})
    assert gathered == ["optimizer"]
    assert list(found) == ["pytorch_model_fsdp.bin", "optimizer.bin", "adapter_model.safetensors"]
    assert torch.save is full
