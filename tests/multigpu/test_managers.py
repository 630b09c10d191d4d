"""ConfigManager, DeviceManager, MemoryManager and the logging of rank 0."""

import logging
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from made_gpus import Gpu, fake_nvml

import unsloth_accel as ump
from unsloth_accel.callbacks.memory_watch import MemoryShares
from unsloth_accel.errors import ConfigError
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.multigpu import patched
from unsloth_accel.multigpu.config_manager import TEMPLATES
from unsloth_accel.multigpu.ddp_logging import info_all_ranks, info_rank0, warning_rank0_once

TWO = Hardware.parse("2xA100-80GB")


def test_the_readmes_optimal_config_is_planned() -> None:
    manager = ump.ConfigManager()
    config = manager.get_optimal_config(model_size="7B", available_memory="32GB")
    assert manager.validate_config(config) == []
    assert config["num_gpus"] == 1
    assert config["batch_size_per_gpu"] * config["gradient_accumulation_steps"] == 8


def test_each_argument_of_the_optimal_config_counts() -> None:
    def optimal(**changes: Any) -> dict[str, Any]:
        return ump.ConfigManager().get_optimal_config(**{"model_size": "7B", "available_memory": "80GB", **changes})

    two = optimal(num_gpus=2, target_batch_size=32)
    assert two["num_gpus"] * two["batch_size_per_gpu"] * two["gradient_accumulation_steps"] == 32
    assert optimal(num_gpus=2)["strategy"] == "ddp"
    assert optimal(num_gpus=2, model_size="70B", available_memory="96GB")["strategy"] != "ddp"
    ways: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
        ({"model_size": "70B"}, "load_in_4bit=True (single), or num_gpus=4 (fsdp2)", {"num_gpus": 4}),
        ({"available_memory": "10GB"}, "load_in_4bit=True (single), or num_gpus=4", {"load_in_4bit": True}),
        ({"max_seq_length": 2**21}, "max_seq_length=262144 (single)", {"max_seq_length": 262144}),
        ({"num_gpus": 2, "target_batch_size": 7}, "target_batch_size=6, or", {"target_batch_size": 6}),
    ]
    for changes, fix, way in ways:
        with pytest.raises(ConfigError, match=re.escape(fix)) as error:
            optimal(**changes)
        assert not re.search(r"(model|batch|distributed)\.", str(error.value)), (
            "keys of a run.yaml, which there is none"
        )
        assert optimal(**changes | way)
    assert optimal(available_memory="16GB", load_in_4bit=True)["num_gpus"] == 1
    with pytest.raises(ConfigError, match="no amount of memory"):
        optimal(available_memory="plenty")


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"num_gpus": "2"}, "num_gpus"),
        ({"num_gpus": 0}, "num_gpus"),
        ({"num_gpus": 100_000}, "num_gpus"),
        ({"target_batch_size": 0}, "target_batch_size"),
        ({"max_seq_length": 0}, "max_seq_length"),
        ({"model_size": 7}, "model_size"),
        ({"model_size": [7]}, "model_size"),
        ({"model_size": "0B"}, "model_size"),
        ({"model_size": "nowhere/at-all"}, "model_size"),
        ({"available_memory": 32 * 2**30}, "available_memory"),
        ({"available_memory": 0}, "available_memory"),
    ],
)
def test_a_wrong_size_is_told_by_its_own_name(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as error:
        ump.ConfigManager().get_optimal_config(**{"model_size": "7B", "available_memory": "80GB", **changes})
    assert [problem.key for problem in error.value.problems] == [key]


def test_a_size_that_no_known_model_has_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    manager = ump.ConfigManager()
    manager.get_optimal_config("7B", "80GB")
    assert "warning" not in capsys.readouterr().out
    manager.get_optimal_config("500B", "640GB", num_gpus=8)
    assert "model_size=500B: no known model is near it" in capsys.readouterr().out
    patched.STATE.told.clear()


def test_configs_are_saved_loaded_listed_and_compared(tmp_path: Path) -> None:
    manager = ump.ConfigManager(tmp_path)
    assert manager.create_default_configs() == [tmp_path / f"{name}.yaml" for name in TEMPLATES]
    assert manager.list_configs() == sorted(TEMPLATES)
    for name in TEMPLATES:
        loaded = manager.load_config(name)
        assert loaded == ump.MultiGPUConfig(**TEMPLATES[name]).to_dict()
    differ = manager.compare_configs(manager.load_config("default"), manager.load_config("debug"))
    assert differ == {"batch_size_per_gpu": (None, 1), "debug": (False, True)}


def test_a_template_with_an_unknown_key_is_refused(tmp_path: Path) -> None:
    """All that is wrong at once, each with what does it."""
    (tmp_path / "mine.yaml").write_text("num_gpu: 2\ndevice_ids: [0]\nbatch_size_per_gpu: 0\n", encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        ump.ConfigManager(tmp_path).load_config("mine")
    fixes = {problem.key: problem.fix for problem in error.value.problems}
    assert fixes.keys() == {"num_gpu", "device_ids", "batch_size_per_gpu"}
    assert "num_gpus" in fixes["num_gpu"]
    assert "CUDA_VISIBLE_DEVICES" in fixes["device_ids"]
    (tmp_path / "number.yaml").write_text("3: 4\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="3: is no argument"):
        ump.ConfigManager(tmp_path).load_config("number")
    with pytest.raises(ConfigError, match="is no config"):
        ump.ConfigManager(tmp_path).save_config([2])  # type: ignore[arg-type]
    ump.ConfigManager(tmp_path).save_config({"num_gpus": 2}, "short.yml")
    assert "short.yml" in ump.ConfigManager(tmp_path).list_configs()
    with pytest.raises(ConfigError, match="No such file"):
        ump.ConfigManager(tmp_path).load_config("other")
    (tmp_path / "broken.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(ConfigError, match="line"):
        ump.ConfigManager(tmp_path).load_config("broken")


def test_a_folder_that_is_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "here").write_text("a file")
    with pytest.raises(ConfigError, match=r"default.yaml: can't be written: .*Fix: ConfigManager\(…\) with a folder"):
        ump.ConfigManager(tmp_path / "here").create_default_configs()


def test_a_cpu_has_no_device_to_assign() -> None:
    manager = ump.DeviceManager(Hardware.parse("cpu"))
    with pytest.raises(ConfigError, match=r"num_gpus=1: 0 GPUs can be seen here. Fix: leave it out"):
        manager.get_optimal_device_assignment(1)
    assert manager.get_optimal_device_assignment() == {}


def test_devices_are_those_of_the_machine() -> None:
    manager = ump.DeviceManager(TWO)
    assert [device["index"] for device in manager.get_available_devices()] == [0, 1]
    assert manager.get_device_summary()["num_gpus"] == 2
    assert manager.get_optimal_device_assignment() == {0: 0, 1: 1}
    assert len(manager.get_optimal_device_assignment(1)) == 1
    with pytest.raises(ConfigError, match="2 GPUs can be seen here"):
        manager.get_optimal_device_assignment(3)
    with pytest.raises(ConfigError, match="no such GPU"):
        manager.get_device_stats(7)
    with pytest.raises(ConfigError, match="is no time"):
        manager.start_device_monitoring(0)
    manager.start_device_monitoring(0.01)
    readings = manager.stop_device_monitoring()
    assert readings
    assert [one["index"] for one in readings[0]["devices"]] == [0, 1]
    manager.start_device_monitoring(0.01)
    again = manager.stop_device_monitoring()
    assert again[0]["time"] > readings[-1]["time"], "what was read since the start"
    for count in ("2", 0, -1):
        with pytest.raises(ConfigError, match="is no whole number"):
            manager.get_optimal_device_assignment(count)  # type: ignore[arg-type]
    assert ump.DeviceManager(Hardware.parse("cpu")).get_available_devices() == []


def test_what_gpus_do_now_is_read_of_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU in MIG mode doesn't say how busy it is, and nothing at all is known without NVML."""
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml([Gpu(busy=35), Gpu(memory=40)]))
    manager = ump.DeviceManager(TWO)
    first, second = manager.get_device_stats()
    assert first == {"index": 0, "memory_used_gib": 40, "memory_gib": 80, "utilization": 0.35}
    assert second == {"index": 1, "memory_used_gib": 20, "memory_gib": 40, "utilization": None}
    assert manager.get_device_stats(1) == [second]
    monkeypatch.setitem(sys.modules, "pynvml", None)
    unknown = {"index": 1, "memory_used_gib": None, "memory_gib": None, "utilization": None}
    assert manager.get_device_stats(1) == [unknown]


@pytest.mark.parametrize(("used", "level"), [(0.5, "ok"), (0.9, "warning"), (0.97, "critical")])
def test_memory_is_safe_or_not(used: float, level: str) -> None:
    manager = ump.MemoryManager(read=lambda: MemoryShares(gpu=used, host=0.1, retries=0))
    assert manager.check_memory_safety()["level"] == level
    assert "rank 0" in manager.get_memory_report()
    assert 0 < manager.get_cpu_memory_info()["used"] <= 1


def test_thresholds_are_shares() -> None:
    for wrong in ({"warning_threshold": "85%"}, {"warning_threshold": 0.96}, {"critical_threshold": 95}):
        with pytest.raises(ConfigError, match="are not shares of memory"):
            ump.MemoryManager(**wrong)  # type: ignore[arg-type]


def test_the_guard_tells_a_lack_of_memory_and_leaves_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[int] = []
    manager = ump.MemoryManager(0.5, 0.6, read=lambda: MemoryShares(gpu=0.7, host=0.1, retries=0))
    monkeypatch.setattr(manager, "cleanup_memory", lambda: freed.append(1))
    with pytest.raises(Exception, match=r"out of memory: .*Fix:"), manager.memory_guard():
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
    assert len(freed) == 2, "before, since it was critical, and after"
    with pytest.raises(ValueError, match="other"), manager.memory_guard():
        raise ValueError("other")
    manager.enable_auto_cleanup, before = False, len(freed)
    with manager.memory_guard():
        pass
    assert len(freed) == before
    with pytest.raises(ConfigError, match="not shares of memory"):
        ump.MemoryManager(0.9, 0.5)


def test_rank_zero_alone_is_heard(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("heard")
    with caplog.at_level(logging.INFO):
        for rank in ("0", "1"):
            monkeypatch.setenv("RANK", rank)
            ump.get_ddp_logger("heard").info("loss %.1f", 2.0)
            info_rank0(logger, "once")
            info_all_ranks(logger, "each")
            warning_rank0_once(logger, f"said by {rank}")
    assert caplog.messages == ["loss 2.0", "once", "[rank 0] each", "said by 0", "[rank 1] each"]
