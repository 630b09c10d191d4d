from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from unsloth_accel.accelerate_config import SHIPPED, AccelerateConfig, write_shipped


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


def test_a_comment_is_written_above() -> None:
    text = AccelerateConfig(strategy="single", num_processes=1).to_yaml("one\n\ntwo")
    assert text.startswith("# one\n#\n# two\ncompute_environment")
