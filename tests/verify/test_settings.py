from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import SMOLLM2, finished_run
from row_files import CHAT
from verified_runs import CPU, GPU, TWO, chosen

from unsloth_accel.config.read_run import from_dict
from unsloth_accel.errors import ConfigError
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.planning import planner
from unsloth_accel.verify.settings import _as
from unsloth_accel.verify.verification import taken_problems, verify


def test_the_same_rows_and_the_same_batch_everywhere(description: dict[str, Any], tmp_path: Path) -> None:
    description["training"] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    found = chosen(description, tmp_path / "v", strategies=["ddp"], steps=4)
    (ddp,) = found.others
    assert str(found.single.batch) == "8 rows per step = 2 × 4 × 1 (per device × accumulation × processes)"
    assert str(ddp.batch) == "8 rows per step = 2 × 2 × 2 (per device × accumulation × processes)"
    assert found.single.run.data.path == ddp.run.data.path
    assert found.threads == 1, "two processes on two cores have one each, and so has the one process"
    assert len(found.rows) == 19, "two steps, and an epoch's last one of three rows: a process computes one more"
    assert not (tmp_path / "v").exists()
    found.write_rows()
    assert len(Path(ddp.run.data.path).read_text(encoding="utf-8").splitlines()) == 19


@pytest.mark.parametrize(
    ("steps", "more", "rows"),
    [
        (1, {}, 8),
        (3, {}, 8 + 3),
        (8, {"training": {"train_sampling_strategy": "group_by_length"}}, 4 * 8 + 4),  # a micro-batch of two a process
        (8, {"training": {"average_tokens_across_devices": False}}, 4 * 8 + 4),
        (8, {"batch": {"global_size": 2}}, 4 * 2 + 1),
        (8, {"batch": {"global_size": 4, "balance": "rows"}}, 4 * 4),
    ],
)
def test_an_epoch_ends_within(
    steps: int, more: dict[str, Any], rows: int, description: dict[str, Any], tmp_path: Path
) -> None:
    described = description | {"batch": {"global_size": 8}} | more
    per_device = min(2, described["batch"]["global_size"] // 2)
    described["training"] = {"per_device_train_batch_size": per_device} | more.get("training", {})
    found = chosen(described, tmp_path, strategies=["ddp"], steps=steps)
    assert len(found.rows) == rows


def test_a_stream_is_read_as_far_as_it_is_compared(
    description: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import Dataset

    from unsloth_accel.data import hub

    asked: list[bool] = []
    rows = Dataset.from_list([CHAT] * 9)
    monkeypatch.setattr(hub, "has_rows", lambda *_: True)  # nobody is asked whether it can be had
    monkeypatch.setattr(hub, "load", lambda *where, streaming: asked.append(streaming) or rows)
    description |= {"data": {"path": "someone/chats", "streaming": True}, "training": {"max_steps": 9}}
    found = chosen(description, tmp_path, strategies=["ddp"], steps=1)
    assert found.rows == [CHAT] * found.single.batch.global_size
    assert asked == [True]


def test_a_users_own_files_are_not_replaced(description: dict[str, Any], tmp_path: Path) -> None:
    """Rows, and results in a directory that is named as a strategy is."""
    found = chosen(description, tmp_path / "kept", strategies=["ddp"])
    assert taken_problems(found) == []
    for name in ("rows.jsonl", "ddp/results.json", "single/verify.log"):
        (tmp_path / "kept" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "kept" / name).touch()
    told = [(problem.key, str(problem.value)) for problem in taken_problems(found)]
    kept = str(tmp_path / "kept")
    assert told == [("--keep", kept), ("output_dir", f"{kept}/single"), ("output_dir", f"{kept}/ddp")]
    with pytest.raises(ConfigError, match=r"rows\.jsonl is there"):
        verify(found)
    for plan in (found.single, *found.others):
        finished_run(Path(plan.run.output_dir))
    assert taken_problems(found) == [], "an earlier verification is made anew"


def test_a_large_batch_is_made_quick(description: dict[str, Any], tmp_path: Path) -> None:
    description["batch"]["global_size"] = 64
    description["training"] = {"per_device_train_batch_size": 4}
    found = chosen(description, tmp_path, strategies=["ddp"])
    assert (found.single.batch.global_size, found.others[0].batch.accumulation) == (16, 2)
    assert found.notes == ("16 rows per step instead of 64: it is quicker and shows the same",)


def test_one_optimizer_for_all_runs(description: dict[str, Any], tmp_path: Path) -> None:
    """fsdp2 can't step 8-bit Adam, and would be compared with another optimizer."""
    description["training"] = {"optim": "adamw_8bit"}
    both = chosen(description, tmp_path, TWO, strategies=["ddp", "fsdp2"])
    assert {plan.run.training["optim"] for plan in (both.single, *both.others)} == {"adamw_torch_fused"}
    assert any("fsdp2 can't step adamw_8bit" in note for note in both.notes)
    ddp = chosen(description, tmp_path, TWO, strategies=["ddp"])
    assert {plan.run.training["optim"] for plan in (ddp.single, *ddp.others)} == {"adamw_8bit"}


def test_as_many_blocks_keep_their_activations_in_all_runs(description: dict[str, Any], tmp_path: Path) -> None:
    """As on two GPUs, where NCCL's buffers leave less memory than one GPU alone has."""
    description["model"] = {"name": str(SMOLLM2), "max_seq_length": 2048}
    small = replace(TWO, devices=tuple(replace(one, memory_gib=4.5) for one in TWO.devices))
    alone, both = (planner.plan(_as(from_dict(description), name, n), small) for name, n in (("single", 1), ("ddp", 2)))
    assert 0 < (both.keep_activations or 0) < (alone.keep_activations or 0)
    found = chosen(description, tmp_path, small, strategies=["ddp"])
    assert {one.keep_activations for one in (found.single, *found.others)} == {both.keep_activations}


def test_what_a_short_run_leaves_out(description: dict[str, Any], tmp_path: Path) -> None:
    description["data"]["eval_path"] = description["data"]["path"]
    description["lora"] = {"dropout": 0.1}
    description["training"] = {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
        "warmup_steps": 100,
        "num_train_epochs": 3,
        "learning_rate": 1e-3,
        "resume": True,
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "neftune_noise_alpha": 5,
    }
    found = chosen(description, tmp_path, strategies=["ddp"], steps=3)
    run = found.others[0].run
    assert run.trainer_fields().items() >= {"max_steps": 3, "save_strategy": "no", "learning_rate": 1e-3}.items()
    dropped = {"eval_strategy", "eval_steps", "save_steps", "num_train_epochs", "resume"}
    dropped.add("neftune_noise_alpha")
    assert not dropped & run.training.keys()
    assert run.training["warmup_steps"] == 0
    assert run.training["lr_scheduler_type"] == "constant"
    assert run.data.eval_path is None
    assert run.lora.dropout == 0
    assert found.notes == ("no dropout and no noise: each process would draw its own",)
    assert Path(run.output_dir) == tmp_path / "ddp"


def test_packed_rows_are_enough_rows(description: dict[str, Any], tmp_path: Path) -> None:
    description["training"] = {"packing": True}
    description["model"]["max_seq_length"] = 16
    found = chosen(description, tmp_path, strategies=["ddp"], steps=2)
    assert sum(len(row["text"]) for row in found.rows) >= 2 * 8 * 16


def test_what_runs_where_nothing_is_asked_for(description: dict[str, Any], tmp_path: Path) -> None:
    on_cpu = chosen(description, tmp_path)
    assert "ddp" in [plan.strategy for plan in on_cpu.others]
    assert "no FSDP on a CPU" in on_cpu.left_out["fsdp2"]
    on_gpus = chosen(description, tmp_path, TWO)
    assert [plan.strategy for plan in on_gpus.others] == ["ddp", "fsdp2", "fsdp2_native"]
    assert on_gpus.left_out == {}
    assert on_gpus.single.environment["CUDA_VISIBLE_DEVICES"] in ("GPU-0", "GPU-1")
    again = chosen(description, tmp_path, strategies=["single"])
    assert [(plan.num_processes, Path(plan.run.output_dir).name) for plan in again.others] == [(1, "again")]


@pytest.mark.parametrize(
    ("options", "hardware", "told"),
    [
        ({"strategies": ["dpp"]}, CPU, "--strategy='dpp': unknown strategy. Fix: did you mean ddp?"),
        ({"strategies": ["fsdp2"]}, CPU, "no FSDP on a CPU"),
        ({"num_processes": 3}, TWO, "3 processes need 3 GPUs and 2 are visible"),
        ({"num_processes": 3}, CPU, "batch.global_size=6 or batch.global_size=9"),
        ({"num_processes": 1}, CPU, "one process is what the others are compared with"),
        ({}, replace(TWO, devices=(GPU,)), "make more visible, or distributed.device=cpu"),
    ],
)
def test_what_can_not_be_verified(
    options: dict[str, Any], hardware: Hardware, told: str, description: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="Fix") as caught:
        chosen(description, tmp_path / "v", hardware, **options)
    assert told in str(caught.value)
    assert not (tmp_path / "v").exists()


def test_settings_are_checked_as_those_of_a_launch(description: dict[str, Any], tmp_path: Path) -> None:
    """What the processes of all runs would fall over, told before the first starts."""
    description["training"] = {"lr_scheduler_type": "cosin", "weight_decay": -1, "eval_steps": -1}
    with pytest.raises(ConfigError) as caught:
        chosen(description, tmp_path, strategies=["ddp"])
    found = {problem.key for problem in caught.value.problems}
    assert found == {"training.lr_scheduler_type", "training.weight_decay"}, "nothing is evaluated in so few steps"
