"""Each argument of each public function of the interface, changed once: its effect is seen, or its error.

The functions are enumerated, so that a new argument without a case fails.
"""

import dataclasses
import inspect
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from made_gpus import Gpu, fake_nvml

import unsloth_accel as ump
from unsloth_accel.callbacks.memory_watch import MemoryShares
from unsloth_accel.errors import ConfigError, LaunchError, Problem
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.multigpu import core, ddp_logging, direct_trainer, enabling, launched_count, patched, utils
from unsloth_accel.multigpu.asked import MultiGPUConfig

FOUR = Hardware.parse("4xA100-80GB")
CASES: dict[str, Callable[..., None]] = {}
"""What changes each `function(argument)` once."""


def public() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield every public function and method of the interface, by its name."""
    found = {name: getattr(ump, name) for name, home in ump._HOME.items() if home.startswith("multigpu.")}
    for module in (core, utils, ddp_logging):
        found |= {name: one for name, one in vars(module).items() if name[0] != "_" and inspect.isfunction(one)}
    found["Shards.restore"] = core.Shards.restore
    for name, one in found.items():
        if not inspect.isclass(one):
            yield name, one
        elif not issubclass(one, str):  # AggregationMethod, whose members are its arguments
            own = {key: value for key, value in vars(one).items() if inspect.isfunction(value)}
            kept = {key: value for key, value in own.items() if key == "__init__" or key[0] != "_"}
            yield from ((f"{name}.{key}", value) for key, value in kept.items())


def case(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def kept(function: Callable[..., None]) -> Callable[..., None]:
        CASES.update(dict.fromkeys(names, function))
        return function

    return kept


def test_every_argument_has_a_case() -> None:
    wanted = {
        f"{name}({argument})"
        for name, function in public()
        for argument in inspect.signature(function).parameters
        if argument != "self"
    }
    assert wanted == CASES.keys()
    fields = [field.name for field in dataclasses.fields(MultiGPUConfig)]
    assert {f"enable_multi_gpu({name})" for name in [*fields, "other"]} == {
        name for name in CASES if name.startswith("enable_multi_gpu(")
    }


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """No launch, four GPUs, and nothing put around upstream names."""
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "UNSLOTH_ACCEL_PROMISE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Hardware, "detect", lambda *environ: FOUR)
    monkeypatch.setattr(enabling, "install", lambda: None)
    yield monkeypatch
    ump.disable_multi_gpu()


def settled(**asked: Any) -> SimpleNamespace:
    """A Trainer's arguments as enable_multi_gpu(num_gpus=1, **asked) leaves them."""
    ump.enable_multi_gpu(num_gpus=1, **asked)
    args = SimpleNamespace(per_device_train_batch_size=8, gradient_accumulation_steps=1)
    patched.settle(args)
    return args


@case("enable_multi_gpu(num_gpus)", "enable_multi_gpu(strategy)")
def _(patch: pytest.MonkeyPatch, place: Path) -> None:
    with pytest.raises(LaunchError, match="--strategy fsdp2 --gpus 3"):
        ump.enable_multi_gpu(num_gpus=3, strategy="fsdp2")


@case("enable_multi_gpu(batch_size_per_gpu)")
def _(patch: pytest.MonkeyPatch, place: Path) -> None:
    assert settled(batch_size_per_gpu=3).per_device_train_batch_size == 3


@case("enable_multi_gpu(gradient_accumulation_steps)")
def _(patch: pytest.MonkeyPatch, place: Path) -> None:
    assert settled(gradient_accumulation_steps=5).gradient_accumulation_steps == 5


@case("enable_multi_gpu(find_unused_parameters)")
def _(patch: pytest.MonkeyPatch, place: Path) -> None:
    assert settled(find_unused_parameters=True).ddp_find_unused_parameters is True


@case("enable_multi_gpu(ddp_backend)")
def _(patch: pytest.MonkeyPatch, place: Path) -> None:
    patch.setattr("torch.distributed.is_ucc_available", lambda: True)
    assert settled(ddp_backend="ucc").ddp_backend == "ucc"


@case("enable_multi_gpu(enable_memory_optimization)")
def _(patch: pytest.MonkeyPatch, place: Path) -> None:
    patch.setattr("unsloth_accel.training.adapt.adapt", lambda trainer: None)
    patch.setattr("unsloth_accel.callbacks.observed.observe", lambda trainer, halving: None)
    patch.setattr("unsloth_accel.adapters.ddp_settings.gradients_in_buckets", lambda one: seen.append("buckets"))
    patch.setattr("unsloth_accel.adapters.out_of_memory.halve_on_out_of_memory", lambda one: seen.append("halving"))
    patch.setattr(patched, "_check_model", lambda model: None)
    args = SimpleNamespace(per_device_train_batch_size=8, gradient_accumulation_steps=1)
    trainer: Any = SimpleNamespace(
        args=args,
        model=None,
        callback_handler=SimpleNamespace(callbacks=[]),
        accelerator=SimpleNamespace(num_processes=2, device=torch.device("cuda")),
        add_callback=lambda one: seen.append(type(one).__name__),
    )
    for wanted in (True, False):
        seen: list[str] = []
        patched.adapt_as_asked(trainer, MultiGPUConfig(enable_memory_optimization=wanted))
        assert seen == (["buckets", "halving", "MemoryWatch"] if wanted else [])


@case("enable_multi_gpu(enable_gradient_checkpointing)")
def _(patch: pytest.MonkeyPatch, place: Path) -> None:
    kept: list[int] = []
    patch.setattr("unsloth_accel.adapters.kept_activations.blocks", lambda model: [1, 2, 3])
    patch.setattr("unsloth_accel.adapters.kept_activations.keep", lambda model, count: kept.append(count))
    model: Any = SimpleNamespace(_unsloth_gradient_checkpointing="unsloth")
    for wanted in (True, False, None):
        patched.keep_or_recompute(model, wanted)
    assert kept == [0, 3], "recomputed, kept, and left as it is"


@case("enable_multi_gpu(debug)")
def _(patch: pytest.MonkeyPatch, place: Path) -> None:
    patch.delenv(enabling.DEBUG, raising=False)
    ump.enable_multi_gpu(num_gpus=1, debug=True)
    assert (os.environ[enabling.DEBUG], torch.distributed.get_debug_level().name) == ("INFO", "INFO")
    ump.disable_multi_gpu()
    assert (enabling.DEBUG in os.environ, torch.distributed.get_debug_level().name) == (False, "OFF")


@case("enable_multi_gpu(launch)")
def _(patch: pytest.MonkeyPatch, place: Path) -> None:
    patch.setattr(launched_count, "script_words", lambda: ["train.py"])
    patch.setattr(launched_count.subprocess, "run", lambda words, env: subprocess.CompletedProcess(words, 3))
    with pytest.raises(SystemExit) as left:
        ump.enable_multi_gpu(launch=True)
    assert left.value.code == 3


@case("enable_multi_gpu(other)")
def _(patch: pytest.MonkeyPatch, place: Path) -> None:
    with pytest.raises(ConfigError, match=r"max_steps.*in the Trainer's config"):
        ump.enable_multi_gpu(num_gpus=1, max_steps=3)


class Model(torch.nn.Module):
    """One weight per token of 4, of which it learns the labels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scores = torch.nn.Embedding(4, 4)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor, num_items_in_batch: int) -> SimpleNamespace:
        logits = self.scores(input_ids)[:, :-1].reshape(-1, 4)
        loss = torch.nn.functional.cross_entropy(logits, labels[:, 1:].reshape(-1), reduction="sum")
        return SimpleNamespace(loss=loss / num_items_in_batch)


def batch(rows: int) -> dict[str, torch.Tensor]:
    ids = torch.arange(4).repeat(rows, 1)
    return {"input_ids": ids, "labels": ids.clone()}


SGD = {"class": torch.optim.SGD, "kwargs": {"lr": 0.5}}


def one_step(patch: pytest.MonkeyPatch, rows: int = 4, **changes: Any) -> tuple[Any, dict[str, float]]:
    """The trainer and the figures of its step on a CPU, with SGD."""
    patch.setenv("ACCELERATE_USE_CPU", "true")
    trainer = ump.MultiGPUTrainer(**{"model": Model(), "num_gpus": 1, "optimizer_config": SGD, **changes})
    try:
        figures = trainer.train_step(batch(rows))
    finally:
        trainer.cleanup()
    return trainer, figures


@case("MultiGPUTrainer.__init__(model)", "MultiGPUTrainer.__init__(optimizer_config)")
def _(patch: pytest.MonkeyPatch, place: Path) -> None:
    moved = []
    for rate in (0.5, 1.0):
        model = Model()
        before = model.scores.weight.detach().clone()
        one_step(patch, model=model, optimizer_config={"class": torch.optim.SGD, "kwargs": {"lr": rate}})
        moved.append(model.scores.weight.detach() - before)
    assert moved[0].norm() > 0
    assert torch.allclose(2 * moved[0], moved[1], atol=1e-6)


@case("MultiGPUTrainer.__init__(num_gpus)")
def _(patch: pytest.MonkeyPatch, place: Path) -> None:
    with pytest.raises(LaunchError, match="3 GPUs need 3 processes"):
        ump.MultiGPUTrainer(Model(), 3)


@case("MultiGPUTrainer.__init__(aggregation_method)")
def _(patch: pytest.MonkeyPatch, place: Path) -> None:
    """What each does over ranks is in test_direct_trainer; a strategy that divides the weights has the mean only."""
    patch.setattr(direct_trainer.rank_checks, "distributed_type", lambda: "FSDP")
    patch.setattr(direct_trainer.rank_checks, "running", lambda: "fsdp2")
    trainer = ump.MultiGPUTrainer(Model(), 1, aggregation_method="sum")
    trainer.num_processes = 2
    with pytest.raises(ConfigError, match=r"aggregation_method='sum': is a hook of DDP, and fsdp2 divides"):
        trainer._check_aggregation()


@case("MultiGPUTrainer.__init__(scheduler_config)")
def _(patch: pytest.MonkeyPatch, place: Path) -> None:
    halved = {"class": torch.optim.lr_scheduler.ConstantLR, "kwargs": {"factor": 0.5}}
    assert one_step(patch, scheduler_config=halved)[1]["learning_rate"] == 0.25


@case("MultiGPUTrainer.__init__(gradient_accumulation_steps)")
def _(patch: pytest.MonkeyPatch, place: Path) -> None:
    model = Model()
    calls: list[int] = []
    model.register_forward_hook(lambda module, given, made: calls.append(1))
    assert one_step(patch, model=model, gradient_accumulation_steps=4)[1]["rows"] == 4
    assert len(calls) == 4


@case("MultiGPUTrainer.__init__(max_grad_norm)")
def _(patch: pytest.MonkeyPatch, place: Path) -> None:
    moved = []
    for norm in (0, 0.01):
        model = Model()
        before = model.scores.weight.detach().clone()
        one_step(patch, model=model, max_grad_norm=norm)
        moved.append(float((model.scores.weight.detach() - before).norm()))
    assert moved[0] > 0.1
    assert moved[1] == pytest.approx(0.5 * 0.01, rel=1e-3)


@case("MultiGPUTrainer.__init__(mixed_precision)")
def _(patch: pytest.MonkeyPatch, place: Path) -> None:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    trainer = ump.MultiGPUTrainer(Model(), 1, mixed_precision="bf16")
    patch.setenv("ACCELERATE_USE_CPU", "true")
    assert trainer.accelerator.mixed_precision == "bf16"
    trainer.cleanup()
    AcceleratorState._reset_state()
    told: list[str] = []
    patch.setattr(direct_trainer, "say", told.append)
    trainer = ump.MultiGPUTrainer(Model(), 1, mixed_precision="fp16")  # which accelerate leaves out without a word
    trainer.setup()
    assert [line.partition(":")[0] for line in told] == ["mixed_precision=fp16 is for GPUs"]
    trainer.cleanup()
    AcceleratorState._reset_state()


@case(
    "MultiGPUTrainer.train_epoch(dataloader)",
    "MultiGPUTrainer.evaluate(dataloader)",
    "MultiGPUTrainer.train_step(batch)",
)
def _(patch: pytest.MonkeyPatch, place: Path) -> None:
    trainer, step = one_step(patch, rows=3)
    assert (step["rows"], step["tokens"]) == (3, 9)
    epoch = trainer.train_epoch([batch(2), batch(4)])
    assert (epoch["steps"], epoch["rows"]) == (2, 6)
    assert trainer.evaluate([batch(5)])["rows"] == 5
    trainer.cleanup()


@case("MultiGPUTrainer.save(directory)", "MultiGPUTrainer.save(tokenizer)")
def _(patch: pytest.MonkeyPatch, place: Path) -> None:
    saved: list[Any] = []
    patch.setattr(direct_trainer, "save", lambda model, directory, tokenizer: saved.append((directory, tokenizer)))
    trainer, _ = one_step(patch)
    trainer.save(place, tokenizer="a tokenizer")
    trainer.cleanup()
    assert saved == [(place, "a tokenizer")]


def optimal(**changes: Any) -> dict[str, Any]:
    return ump.ConfigManager().get_optimal_config(**{"model_size": "7B", "available_memory": "80GB", **changes})


@case(*(f"ConfigManager.get_optimal_config({name})" for name in ("num_gpus", "target_batch_size")))
def _(patch: pytest.MonkeyPatch, place: Path) -> None:
    found = optimal(num_gpus=2, target_batch_size=24)
    assert found["num_gpus"] * found["batch_size_per_gpu"] * found["gradient_accumulation_steps"] == 24


@case(
    *(f"ConfigManager.get_optimal_config({name})" for name in ("model_size", "available_memory")),
    *(f"ConfigManager.get_optimal_config({name})" for name in ("max_seq_length", "load_in_4bit")),
)
def _(patch: pytest.MonkeyPatch, place: Path) -> None:
    changes: list[dict[str, Any]] = [{"model_size": "70B"}, {"available_memory": "10GB"}, {"max_seq_length": 2**21}]
    for change in changes:
        with pytest.raises(ConfigError, match="needs more memory"):
            optimal(num_gpus=1, **change)
    assert optimal(num_gpus=1, available_memory="10GB", load_in_4bit=True)["batch_size_per_gpu"] >= 1


@case("ConfigManager.__init__(config_dir)")
@case("ConfigManager.save_config(config)", "ConfigManager.save_config(filename)", "ConfigManager.load_config(filename)")
def _(patch: pytest.MonkeyPatch, place: Path) -> None:
    manager = ump.ConfigManager(place)
    assert manager.save_config({"num_gpus": 3}, "mine") == place / "mine.yaml"
    assert manager.load_config("mine") == {"num_gpus": 3}
    assert manager.load_config("debug")["debug"] is True


@case("ConfigManager.compare_configs(config1)", "ConfigManager.compare_configs(config2)")
@case("ConfigManager.validate_config(config)", "ConfigManager.validate_config(file)")
def _(patch: pytest.MonkeyPatch, place: Path) -> None:
    manager = ump.ConfigManager(place)
    assert manager.compare_configs({"num_gpus": 2}, MultiGPUConfig(num_gpus=3)) == {"num_gpus": (2, 3)}
    (problem,) = manager.validate_config({"num_gpus": 0}, file="a.yaml")
    assert isinstance(problem, Problem)
    assert (problem.key, problem.file) == ("num_gpus", "a.yaml")


@case(*(f"MultiGPUConfig.__init__({field.name})" for field in dataclasses.fields(MultiGPUConfig)))
def _(patch: pytest.MonkeyPatch, place: Path) -> None:
    for name in MultiGPUConfig().to_dict():
        assert MultiGPUConfig(**{name: "changed"}).to_dict()[name] == "changed"


@case("DeviceManager.__init__(hardware)", "DeviceManager.get_optimal_device_assignment(num_gpus)")
@case("DeviceManager.get_device_stats(device_id)", "DeviceManager.start_device_monitoring(interval)")
def _(patch: pytest.MonkeyPatch, place: Path) -> None:
    patch.setitem(sys.modules, "pynvml", fake_nvml([Gpu(busy=10), Gpu(busy=20)]))
    manager = ump.DeviceManager(Hardware.parse("2xA100-80GB"))
    assert len(manager.get_optimal_device_assignment(1)) == 1
    assert [one["utilization"] for one in manager.get_device_stats(1)] == [0.2]
    waited: list[float] = []
    patch.setattr(manager._stop, "wait", lambda seconds: waited.append(seconds) or manager._stop.set())
    manager.start_device_monitoring(0.5)
    assert manager._thread is not None
    manager._thread.join(10)
    manager.stop_device_monitoring()
    assert waited == [0.5]


@case(*(f"MemoryManager.__init__({name})" for name in ("warning_threshold", "critical_threshold")))
@case(*(f"MemoryManager.__init__({name})" for name in ("enable_auto_cleanup", "read")))
def _(patch: pytest.MonkeyPatch, place: Path) -> None:
    freed: list[int] = []
    for changes, level, frees in [
        ({}, "ok", 0),
        ({"warning_threshold": 0.4}, "warning", 0),
        ({"warning_threshold": 0.3, "critical_threshold": 0.4}, "critical", 1),
        ({"warning_threshold": 0.3, "critical_threshold": 0.4, "enable_auto_cleanup": False}, "critical", 0),
    ]:
        freed.clear()
        read = MemoryShares(gpu=None, host=0.5, retries=0)
        manager = ump.MemoryManager(**changes, read=lambda read=read: read)  # type: ignore[misc]
        patch.setattr(manager, "cleanup_memory", lambda: freed.append(1))
        with manager.memory_guard():
            assert manager.check_memory_safety()["level"] == level
        assert len(freed) == frees


@case(*(f"shard_batch({name})" for name in ("batch", "parts", "by")), "Shards.restore(results)")
def _(patch: pytest.MonkeyPatch, place: Path) -> None:
    rows = {"input_ids": [[1] * 9, [1], [1]], "names": ["a", "b", "c"]}
    assert [len(part["names"]) for part in ump.shard_batch(rows, 3).parts] == [1, 1, 1]
    assert [len(part["names"]) for part in ump.shard_batch(rows, 2).parts] == [2, 1]
    shards = ump.shard_batch(rows, 2, by="tokens")
    assert sorted(len(part["names"]) for part in shards.parts) == [1, 2]
    assert shards.restore([part["names"] for part in shards.parts]) == ["a", "b", "c"]


LOGGING = [name for name, one in vars(ddp_logging).items() if name.endswith(("_rank0", "_once", "_all_ranks"))]


@case("get_ddp_logger(name)", *(f"{name}({word})" for name in LOGGING for word in ("logger", "message", "values")))
def _(patch: pytest.MonkeyPatch, place: Path) -> None:
    patch.setattr(ddp_logging, "_ONCE", set())
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(f"{record.name} {record.getMessage()}")  # type: ignore[method-assign]
    logger = ump.get_ddp_logger("every argument").logger
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    for name in LOGGING:
        heard.clear()
        getattr(ddp_logging, name)(logger, f"{name} %d", 7)
        assert [line.replace("[rank 0] ", "") for line in heard] == [f"every argument {name} 7"]
    logger.removeHandler(handler)


ONCE = {function: name for name, function in CASES.items()}


@pytest.mark.parametrize("acts", [pytest.param(function, id=name) for function, name in ONCE.items()])
def test_it_acts(acts: Callable[..., None], here: pytest.MonkeyPatch, tmp_path: Path) -> None:
    acts(here, tmp_path)
