import json
import subprocess
import sys
from pathlib import Path

import pytest
from doctor_machines import Place, bad, device, machine, only

from unsloth_accel.doctor import shell_variables
from unsloth_accel.doctor.shell_variables import accelerates_home


@pytest.mark.parametrize(
    ("environ", "said", "fix"),
    [
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1"}, "wait", "unset WORLD_SIZE MASTER_ADDR"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "takes", "unset ACCELERATE_USE_FSDP FSDP_VERSION"),
        ({"PARALLELISM_CONFIG_TP_SIZE": "2"}, "takes", "unset PARALLELISM_CONFIG_TP_SIZE"),
        ({"UNSLOTH_FSDP2": "1"}, "shards", "unset UNSLOTH_FSDP2"),
        ({"UNSLOTH_TP_SIZE": "2"}, "tensor parallelism", "unset UNSLOTH_TP_SIZE"),
        ({"UNSLOTH_ALLOW_CPU": "1"}, "pretends", "unset UNSLOTH_ALLOW_CPU"),
        ({"HF_HUB_OFFLINE": "1"}, "cache", "unset HF_HUB_OFFLINE"),
        ({"CUDA_LAUNCH_BLOCKING": "1"}, "waits", "unset CUDA_LAUNCH_BLOCKING"),
        ({"TORCH_DISTRIBUTED_DEBUG": "detail"}, "collective", "unset TORCH_DISTRIBUTED_DEBUG"),
    ],
)
def test_variables_that_hurt(place: Place, environ: dict[str, str], said: str, fix: str) -> None:
    found = only(shell_variables.variables, machine(place, environ=environ))
    assert said in found.detail
    assert found.fix.startswith(fix)


@pytest.mark.parametrize(
    "environ",
    [
        {"UNSLOTH_FSDP2": "0", "UNSLOTH_TP_SIZE": "1", "CUDA_LAUNCH_BLOCKING": "0", "HF_HUB_OFFLINE": ""},
        {"TORCH_DISTRIBUTED_DEBUG": "INFO", "ACCELERATE_LOG_LEVEL": "INFO", "NCCL_P2P_DISABLE": "1"},
        {"UNSLOTH_FORCE_CPU": "1"},
    ],
)
def test_variables_that_do_not(place: Place, environ: dict[str, str]) -> None:
    assert bad(shell_variables.variables, machine(place, environ=environ)) == []


def test_gpus_that_a_variable_slows_or_hides(place: Place) -> None:
    joined = {frozenset(("GPU-0", "GPU-1")): "NVLink"}
    slowed = machine(place, device(0), device(1), links=joined, environ={"NCCL_P2P_DISABLE": "1"})
    assert "NVLink" in only(shell_variables.variables, slowed).detail
    forced = machine(place, device(0), environ={"UNSLOTH_FORCE_CPU": "1"})
    assert only(shell_variables.variables, forced).name == "UNSLOTH_FORCE_CPU"


@pytest.mark.parametrize(
    ("said", "visible", "status"),
    [("", 0, "warning"), ("-1", 0, "warning"), ("7", 0, "error"), ("0,7,1", 1, "warning"), ("0,1", 2, None)],
)
def test_cuda_visible_devices(place: Place, said: str, visible: int, status: str | None) -> None:
    devices = [device(i) for i in range(visible)]
    subject = machine(place, *devices, environ={"CUDA_VISIBLE_DEVICES": said}, uuids=("GPU-0", "GPU-1"))
    found = bad(shell_variables.visible_devices, subject)
    assert [result.status for result in found] == ([] if status is None else [status])


def test_a_machine_without_gpus_may_hide_them(place: Place) -> None:
    assert list(shell_variables.visible_devices(machine(place, environ={"CUDA_VISIBLE_DEVICES": ""}))) == []


@pytest.mark.parametrize("home", ["HF_HOME", "XDG_CACHE_HOME"])
def test_a_default_accelerate_config_is_told(place: Place, tmp_path: Path, home: str) -> None:
    subject = machine(place, environ={home: str(tmp_path)})
    assert bad(shell_variables.default_config, subject) == []
    directory = tmp_path / ("accelerate" if home == "HF_HOME" else "huggingface/accelerate")
    directory.mkdir(parents=True)
    (directory / "default_config.yaml").write_text("distributed_type: FSDP\nnum_processes: 8\n", encoding="utf-8")
    found = only(shell_variables.default_config, subject)
    assert "distributed_type: FSDP, num_processes: 8" in found.detail
    assert "--config_file" in found.fix


@pytest.mark.slow
def test_the_default_config_is_where_accelerate_looks(tmp_path: Path) -> None:
    """Also where a variable is empty, or holds another one that nobody has put in its place."""
    said = [{"HF_HOME": str(tmp_path)}, {"XDG_CACHE_HOME": str(tmp_path)}, {"XDG_CACHE_HOME": ""}, {"HF_HOME": ""}]
    said += [{"HF_HOME": "$HOME/hf"}, {"HF_HOME": "~/hf", "XDG_CACHE_HOME": "/x"}, {}]
    code = (
        "import json, os, sys, importlib\n"
        "from accelerate.commands.config import config_args\n"
        "for said in json.loads(sys.argv[1]):\n"
        "    for name in ('HF_HOME', 'XDG_CACHE_HOME'): os.environ.pop(name, None)\n"
        "    os.environ.update(said)\n"
        "    print(importlib.reload(config_args).default_config_file)\n"
    )
    command = [sys.executable, "-c", code, json.dumps(said)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(accelerates_home(one) / "default_config.yaml") for one in said]
