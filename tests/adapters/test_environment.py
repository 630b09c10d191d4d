import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import CPU_DDP, NATIVE, ROOT, SCRIPTS, accelerate_launch, write_yaml

from unsloth_accel.adapters import environment
from unsloth_accel.adapters.environment import WorldError
from unsloth_accel.adapters.import_order import ImportOrderError
from unsloth_accel.config.accelerate_config import AccelerateConfig
from unsloth_accel.config.promise import PROMISE, Promise, in_comment

MULTI_CPU = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_CPU", "num_processes": 2}


def test_the_promise_of_the_launcher_wins() -> None:
    promised = Promise(num_processes=3, strategy="ddp", device="cuda")
    environ = {PROMISE: json.dumps(vars(promised)), "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    assert environment.promise(environ) == promised


def test_nothing_is_promised_outside_a_launch() -> None:
    assert environment.promise({}) is None
    environ = {"PATH": "/bin"}
    environment.prepare_process(environ)
    assert environ == {"PATH": "/bin"}


def test_torchrun_promises_its_processes() -> None:
    promised = environment.promise({"WORLD_SIZE": "4", "LOCAL_RANK": "1", "RANK": "1"})
    assert promised == Promise(num_processes=4, made_by="WORLD_SIZE")


@pytest.mark.parametrize("spelling", [["--config_file", "{}"], ["--config-file={}"]])
@pytest.mark.parametrize(
    "program", [["/v/bin/python", "/v/bin/accelerate"], ["python", "-m", "accelerate.commands.launch"]]
)
def test_a_plain_accelerate_launch_promises_its_config(program: list[str], spelling: list[str]) -> None:
    verb = [] if program[-1].endswith("launch") else ["launch"]
    command = [*program, *verb, *(word.format(CPU_DDP) for word in spelling), "train.py"]
    promised = environment.from_launcher_config(command)
    assert promised == Promise(num_processes=2, strategy="ddp", device="cpu", made_by=str(CPU_DDP))
    assert environment.from_launcher_config([*command, "--cpu", "--num_processes", "9"]) == promised
    four = environment.from_launcher_config([*command[:-1], "--num_processes", "4", "train.py"])
    assert four is not None
    assert four.num_processes == 4


@pytest.mark.parametrize(
    ("section", "strategy"),
    [
        ({"fsdp_version": 2}, "fsdp2"),
        ({"version": "2"}, "fsdp2"),
        ({"fsdp_version": 1}, "fsdp1"),
        ({}, "fsdp1"),
        (None, "fsdp1"),
    ],
)
def test_an_fsdp_config_promises_its_version(tmp_path: Path, section: Any, strategy: str) -> None:
    """Accelerate takes version 1 where the file says none."""
    values = {"distributed_type": "FSDP", "num_processes": 2, "fsdp_config": section}
    file = str(write_yaml(tmp_path / "fsdp.yaml", values))
    command = ["python", "-u", "/v/bin/accelerate", "launch", "--config_file", file, "train.py"]
    promised = environment.from_launcher_config(command)
    assert promised is not None
    assert (promised.strategy, promised.num_processes, promised.made_by) == (strategy, 2, file)


@pytest.mark.parametrize("kind", ["NO", False])
def test_no_promises_the_one_process_that_accelerate_starts(tmp_path: Path, kind: Any) -> None:
    """Whatever number stands beside it, and unquoted too, which YAML reads as false."""
    file = str(write_yaml(tmp_path / "no.yaml", {"distributed_type": kind, "num_processes": 8}))
    command = ["python", "/v/bin/accelerate", "launch", "--config_file", file]
    promised = environment.from_launcher_config([*command, "train.py"])
    assert promised == Promise(num_processes=1, device="cuda", made_by=file)
    asked = environment.from_launcher_config([*command, "--num_processes", "8", "train.py"])
    assert asked is not None
    assert asked.num_processes == 8  # which won't start, and is told


def test_other_parents_promise_nothing(tmp_path: Path) -> None:
    mpi = write_yaml(tmp_path / "mpi.yaml", {**MULTI_CPU, "mpirun_config": {"mpirun_hostfile": "hosts"}})
    for command in (
        [],
        ["bash"],
        ["python", "train.py", "--config_file", str(CPU_DDP)],
        ["timeout", "60", "accelerate", "launch", "--config_file", str(CPU_DDP), "train.py"],
        ["python", "-m", "unsloth_accel.cli", "launch", "--config_file", str(CPU_DDP), "train.py"],
        ["python", "/v/bin/accelerate", "launch", "train.py"],
        ["python", "-u", "/v/bin/accelerate", "launch", "--config_file", str(tmp_path / "none.yaml"), "train.py"],
        ["python", "-u", "/v/bin/accelerate", "launch", "--config_file", str(mpi), "train.py"],
        ["python", "-u", "/v/bin/accelerate", "launch", "--config_file", str(CPU_DDP), "--use_fsdp", "train.py"],
        ["python", "-u", "/v/bin/accelerate", "launch", "--cpu", "--config_file", str(CPU_DDP), "train.py"],
    ):
        assert environment.from_launcher_config(command) is None


def test_a_world_of_another_size_is_refused() -> None:
    promised = Promise(num_processes=2, strategy="ddp", device="cpu", made_by="c.yaml")
    environment.check_world_size(promised, {"WORLD_SIZE": "2"})
    with pytest.raises(WorldError, match=r"c\.yaml asks for 2 processes and 1 started"):
        environment.check_world_size(promised, {})


@pytest.mark.slow
def test_a_plain_accelerator_joins_its_peers() -> None:
    """accelerate_configs/cpu_ddp.yaml with the real `accelerate launch`: two processes that form a group."""
    done = accelerate_launch("--config_file", CPU_DDP, SCRIPTS / "plain_accelerator.py")
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split("\n")[:2]) == ["rank 0 of 2 on cpu", "rank 1 of 2 on cpu"]


@pytest.mark.slow
def test_two_strangers_are_caught() -> None:
    """The same without what `import unsloth_accel` sets: each process would train alone."""
    done = accelerate_launch("--config_file", CPU_DDP, SCRIPTS / "plain_accelerator.py", "--forget", forked=True)
    assert done.returncode != 0
    assert "2 processes were started but form no group: each would train alone" in done.stderr
    assert done.stderr.count("unsloth_accel: rank 0: ") == done.stderr.count("unsloth_accel: rank 1: ") == 1
    assert "rank 0 of" not in done.stdout


@pytest.mark.slow
def test_one_process_where_two_were_asked_for_is_caught(tmp_path: Path) -> None:
    """MULTI_CPU with the real `accelerate launch`: it starts one process and says nothing; we do."""
    config = write_yaml(tmp_path / "multi_cpu.yaml", MULTI_CPU)
    done = accelerate_launch("--config_file", config, "examples/sft.py", "--output", tmp_path / "out", forked=True)
    assert done.returncode != 0
    assert f"{config} asks for 2 processes and 1 started" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unsloth's own sharding has what it needs, whatever is installed here."""
    monkeypatch.setattr("unsloth_accel.capabilities.probe.lacking", lambda strategy, device: [])


@pytest.mark.usefixtures("triton")
def test_a_native_config_carries_its_variables(tmp_path: Path) -> None:
    """A config file of fsdp2_native is DDP's to accelerate; its comment says the rest, and a launch alone suffices."""
    file = ROOT / "accelerate_configs" / "fsdp2_native.yaml"
    promised = environment.from_launcher_config(
        ["python", "-m", "accelerate.commands.launch", "--config_file", str(file)]
    )
    assert promised is not None
    assert promised.strategy == "fsdp2_native"
    assert promised.environment == NATIVE
    environ = {PROMISE: json.dumps(vars(promised)), "WORLD_SIZE": "2", "UNSLOTH_FSDP2_LAYOUT": "fit"}
    environment.prepare_process(environ)
    assert environ.items() >= {**NATIVE, "UNSLOTH_FSDP2_LAYOUT": "fit"}.items(), "what the user has set is left"
    text = file.read_text(encoding="utf-8").replace("UNSLOTH_FSDP2_SHARDED_LOAD=1", "PATH=/tmp")
    assert "PATH" not in in_comment(text)
    assert "UNSLOTH_FSDP2_SHARDED_LOAD" not in in_comment(text)
    four_bit = AccelerateConfig(strategy="fsdp2_native", num_processes=2, load_in_4bit=True)
    assert in_comment(four_bit.to_yaml("a comment")) == four_bit.environment
    assert in_comment(AccelerateConfig(strategy="ddp", num_processes=2).to_yaml()) == {}


@pytest.mark.parametrize(("strategy", "alike"), [("fsdp2", True), ("ddp", False)])
def test_sharded_ranks_make_the_same_forward_passes(strategy: Any, alike: bool) -> None:
    """Unsloth's GRPO packs rows as each rank sees fit, which FSDP2's gathers can't stand."""
    promised = Promise(num_processes=2, strategy=strategy)
    environ = {PROMISE: json.dumps(vars(promised)), "WORLD_SIZE": "2"}
    environment.prepare_process(environ)
    assert ("UNSLOTH_GRPO_SEQ_PACKING" in environ) is alike


@pytest.mark.usefixtures("triton")
def test_unsloth_before_the_variables_that_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    promised = Promise(num_processes=2, strategy="fsdp2_native", environment=NATIVE)
    environ = {PROMISE: json.dumps(vars(promised)), "WORLD_SIZE": "2"}
    unsloth = ModuleType("unsloth")
    monkeypatch.setitem(sys.modules, "unsloth", unsloth)
    environment.prepare_process({**environ, **NATIVE})  # nothing was set too late
    with pytest.raises(ImportOrderError, match="`import unsloth_accel` before `import unsloth`"):
        environment.prepare_process(dict(environ))
    on_cpu = {PROMISE: json.dumps(vars(Promise(num_processes=2, device="cpu"))), "WORLD_SIZE": "2"}
    environment.prepare_process(dict(on_cpu))
    unsloth.DEVICE_TYPE = "cuda"  # type: ignore[attr-defined]
    with pytest.raises(ImportOrderError, match="has chosen cuda; this run is on a CPU"):
        environment.prepare_process(dict(on_cpu))


def test_a_cpus_own_trainer_is_no_reason_for_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Unsloth's sharding tries to patch the trainer that Unsloth has for CPUs; other words of its log are kept."""
    import logging

    promised = Promise(num_processes=1, strategy="single", device="cpu")
    environment.prepare_process({PROMISE: json.dumps(vars(promised)), "WORLD_SIZE": "1"})
    log = logging.getLogger("unsloth_zoo.log")
    log.warning(f"Unsloth: {environment.CPU_TRAINER_WARNING}, so training will use trl's own trainer instead: OSError")
    log.warning("Unsloth: something else")
    assert [record.getMessage() for record in caplog.records] == ["Unsloth: something else"]


@pytest.mark.parametrize(
    ("parent", "variables", "launched"),
    [
        (["/bin/bash"], {"LOCAL_RANK": "0"}, False),  # by hand, and whoever closes that shell ends no nohup
        (["-zsh"], {"LOCAL_RANK": "0"}, False),
        (["/bin/bash", "wrapper.sh"], {"LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "none"}, True),
        (["python", "-m", "deepspeed.launcher.launch"], {"LOCAL_RANK": "0"}, True),
        ([], {"LOCAL_RANK": "0"}, True),
        (["/bin/bash"], {}, False),
    ],
)
def test_a_shell_is_no_launcher(
    parent: list[str], variables: dict[str, str], launched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (PROMISE, "LOCAL_RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(environment, "_parent_command", lambda: parent)
    assert environment._parent_if_launcher() == (os.getppid() if launched else None)
