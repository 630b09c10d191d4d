from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from unsloth_accel.config.accelerate_config import AccelerateConfig
from unsloth_accel.config.shipped import SHIPPED, write_shipped


def test_shipped_files_are_the_generators_output(tmp_path: Path) -> None:
    write_shipped(tmp_path)
    shipped = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "accelerate_configs").iterdir()}
    assert shipped == {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}


@pytest.mark.parametrize("name", SHIPPED)
def test_accelerate_reads_what_we_write(name: str, tmp_path: Path) -> None:
    """Through accelerate's own classes and back: no key unknown, none lost, none changed."""
    from accelerate.commands.config.config_args import ClusterConfig

    ours = yaml.safe_load((ROOT / "accelerate_configs" / name).read_text(encoding="utf-8"))
    read = ClusterConfig.from_yaml_file(str(ROOT / "accelerate_configs" / name))
    read.to_yaml_file(str(tmp_path / "again.yaml"))
    theirs = yaml.safe_load((tmp_path / "again.yaml").read_text(encoding="utf-8"))
    assert {key: theirs[key] for key in ours} == ours
    defaults = ClusterConfig(
        compute_environment="LOCAL_MACHINE", distributed_type="NO", mixed_precision="no", use_cpu=False, debug=False
    ).to_dict()
    assert {key: value for key, value in theirs.items() if key not in ours} == {
        key: value for key, value in defaults.items() if key not in ours
    }


@pytest.mark.parametrize(
    ("config", "launcher"),
    [
        (AccelerateConfig(strategy="ddp", num_processes=4), "several"),
        (AccelerateConfig(strategy="ddp", num_processes=2, device="cpu"), "several"),
        (AccelerateConfig(strategy="single", num_processes=1), "one"),
        (AccelerateConfig(strategy="fsdp2", num_processes=4), "several"),
        (AccelerateConfig(strategy="fsdp2_native", num_processes=4), "several"),
        (AccelerateConfig(strategy="fsdp1", num_processes=4), "several"),
    ],
)
def test_accelerate_launch_starts_as_many_processes_as_the_config_says(
    config: AccelerateConfig, launcher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.commands import launch

    called: dict[str, Any] = {}
    monkeypatch.setattr(launch, "multi_gpu_launcher", lambda args: called.update(kind="several", args=args))
    monkeypatch.setattr(launch, "simple_launcher", lambda args: called.update(kind="one", args=args))
    config.write(tmp_path / "config.yaml")
    parser = launch.launch_command_parser()
    launch.launch_command(parser.parse_args(["--config_file", str(tmp_path / "config.yaml"), "script.py"]))
    assert called["kind"] == launcher
    assert called["args"].num_processes == config.num_processes
    assert called["args"].mixed_precision == config.mixed_precision
    assert called["args"].main_process_port == 0


def test_accelerate_launch_hands_fsdp_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From our YAML through accelerate's launcher into the plugin that the Accelerator will use."""
    from accelerate.commands import launch
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.launch import prepare_multi_gpu_env

    config = AccelerateConfig(strategy="fsdp2", num_processes=4, decoder_layers=("Qwen3DecoderLayer",))
    config.write(tmp_path / "config.yaml")
    parser = launch.launch_command_parser()
    args, _, _ = launch._validate_launch_command(
        parser.parse_args(["--config_file", str(tmp_path / "config.yaml"), "script.py"])
    )
    for name, value in prepare_multi_gpu_env(args).items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert plugin.transformer_cls_names_to_wrap == ["Qwen3DecoderLayer"]
    assert plugin.auto_wrap_policy is not None
    assert plugin.cpu_ram_efficient_loading is False
    assert plugin.activation_checkpointing is False
    assert plugin.reshard_after_forward is True


def test_accelerate_launch_hands_fsdp1_over(tmp_path: Path) -> None:
    """Its plugin wants a GPU, so the variables that it reads are looked at."""
    from accelerate.commands import launch
    from accelerate.utils.launch import prepare_multi_gpu_env

    AccelerateConfig(strategy="fsdp1", num_processes=4).write(tmp_path / "config.yaml")
    parser = launch.launch_command_parser()
    args, _, _ = launch._validate_launch_command(
        parser.parse_args(["--config_file", str(tmp_path / "config.yaml"), "script.py"])
    )
    found = prepare_multi_gpu_env(args)
    assert found["ACCELERATE_USE_FSDP"] == "true"
    assert found["FSDP_VERSION"] == "1"
    assert found["FSDP_SHARDING_STRATEGY"] == "FULL_SHARD"
    assert found["FSDP_USE_ORIG_PARAMS"] == "true"
    assert found["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"
    assert found["FSDP_TRANSFORMER_CLS_TO_WRAP"] == "LlamaDecoderLayer"


@pytest.mark.parametrize("backend", ["static", "c10d"])
def test_several_machines_meet_where_the_flags_say(
    backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.commands import launch
    from accelerate.utils.launch import prepare_multi_gpu_env

    config = AccelerateConfig(
        strategy="ddp", num_processes=16, num_machines=2, main_process_ip="10.0.0.1", rdzv_backend=backend
    )
    config.write(tmp_path / "config.yaml")
    parser = launch.launch_command_parser()
    words = ["--config_file", str(tmp_path / "config.yaml"), *config.launch_flags, "--machine_rank", "1", "script.py"]
    args, _, _ = launch._validate_launch_command(parser.parse_args(words))
    prepare_multi_gpu_env(args)
    assert args.rdzv_backend == backend
    assert (args.nproc_per_node, args.nnodes, args.node_rank) == ("8", "2", 1)
    assert args.rdzv_endpoint == "10.0.0.1:29500"


def test_a_comment_is_written_above() -> None:
    text = AccelerateConfig(strategy="single", num_processes=1).to_yaml("one\n\ntwo")
    assert text.startswith("# one\n#\n# two\ncompute_environment")
