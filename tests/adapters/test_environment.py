import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT, SCRIPTS, accelerate_launch, cli_command, write_yaml

from unsloth_accel.adapters import environment, import_order
from unsloth_accel.adapters.environment import PROMISE, WorldError
from unsloth_accel.adapters.import_order import ImportOrderError
from unsloth_accel.config.accelerate_config import AccelerateConfig
from unsloth_accel.config.promise import Promise

CPU_DDP = ROOT / "accelerate_configs" / "cpu_ddp.yaml"
MULTI_CPU = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_CPU", "num_processes": 2}


def test_import_is_light() -> None:
    """Under 0.1 s, and nothing heavy: neither torch nor accelerate, transformers, unsloth."""
    program = (
        "import sys, time; start = time.perf_counter(); import unsloth_accel; took = time.perf_counter() - start\n"
        "heavy = {'torch', 'accelerate', 'transformers', 'unsloth', 'trl', 'omegaconf', 'numpy'} & set(sys.modules)\n"
        "print(took, sorted(heavy))"
    )
    best = ("9", "")
    for _ in range(3):  # the fastest of three: the first one may compile
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
        took, heavy = done.stdout.split(" ", 1)
        best = min(best, (took, heavy.strip()))
    assert float(best[0]) < 0.1
    assert best[1] == "[]"


def test_public_names_are_there() -> None:
    import unsloth_accel

    for name in unsloth_accel.__all__:
        assert getattr(unsloth_accel, name) is not None
    with pytest.raises(AttributeError):
        _ = unsloth_accel.nothing


def test_planning_imports_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from unsloth_accel.launch.launcher import launch\n"
        "launch(['examples/configs/quickstart.yaml', '--dry-run', f'output_dir={sys.argv[1]}',"
        " 'model.name=unsloth/some-model'])\n"
        "assert not {'torch', 'accelerate', 'transformers', 'unsloth'} & set(sys.modules), 'heavy import'"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_promise_of_the_launcher_wins() -> None:
    promised = Promise(num_processes=3, strategy="ddp", device="cuda")
    environ = {PROMISE: json.dumps(vars(promised)), "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    assert environment.promise(environ) == promised


def test_nothing_is_promised_outside_a_launch() -> None:
    assert environment.promise({}) is None
    environ = {"PATH": "/bin"}
    environment.prepare(environ)
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


def test_other_parents_promise_nothing(tmp_path: Path) -> None:
    mpi = write_yaml(tmp_path / "mpi.yaml", {**MULTI_CPU, "mpirun_config": {"mpirun_hostfile": "hosts"}})
    for command in (
        [],
        ["bash"],
        ["python", "train.py", "--config_file", str(CPU_DDP)],
        ["timeout", "60", "accelerate", "launch", "--config_file", str(CPU_DDP), "train.py"],
        ["python", "-m", "unsloth_accel.cli.main", "launch", "--config_file", str(CPU_DDP), "train.py"],
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
    done = accelerate_launch("--config_file", CPU_DDP, SCRIPTS / "plain_accelerator.py", "--forget")
    assert done.returncode != 0
    assert "2 processes were started but form no group: each would train alone" in done.stderr
    assert done.stderr.count("unsloth_accel: rank 0: ") == done.stderr.count("unsloth_accel: rank 1: ") == 1
    assert "rank 0 of" not in done.stdout


@pytest.mark.slow
def test_one_process_where_two_were_asked_for_is_caught(tmp_path: Path) -> None:
    """MULTI_CPU with the real `accelerate launch`: it starts one process and says nothing; we do."""
    config = write_yaml(tmp_path / "multi_cpu.yaml", MULTI_CPU)
    done = accelerate_launch("--config_file", config, "examples/sft.py", "--output", tmp_path / "out")
    assert done.returncode != 0
    assert f"{config} asks for 2 processes and 1 started" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "status", "words"),
    [
        ("raise --debug", 1, "rank 1 failed with exit status 1; its own error is above."),
        ("raise", 1, "rank 1 failed with exit status 1; its own error is above."),
        ("exit", 7, "rank 1 failed with exit status 7"),
        ("kill", 137, "rank 1 was ended by SIGKILL; out of memory is the usual reason."),
    ],
)
def test_a_failing_rank_ends_all_and_its_status_arrives(how: str, status: int, words: str) -> None:
    how, *flags = how.split()
    command = cli_command("launch", "--config_file", CPU_DDP, *flags, SCRIPTS / "one_rank_fails.py", how)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == status
    assert words in done.stderr
    if how == "raise":
        assert "RuntimeError: the disk of rank 1 is gone" in done.stderr
    assert not alive(done.stdout)


def test_the_rank_that_fell_first_is_named(tmp_path: Path) -> None:
    """Not its peer, which fell over the connection it left and had time to say so."""
    from unsloth_accel.launch.run_accelerate import Launch, _failure, report_error

    command = Launch(arguments=(), output_dir=tmp_path)
    report_error(tmp_path, 0, RuntimeError("connection closed by peer"))
    killed = _failure(command, {1: -9, 0: 1})
    assert "rank 1 was ended by SIGKILL" in str(killed)
    assert killed.exit_status == 137
    ended = _failure(command, {0: 1, 1: -15})
    assert str(ended) == "rank 0 failed: RuntimeError: connection closed by peer"
    assert ended.exit_status == 1
    silent = _failure(Launch(arguments=()), {1: -15, 2: 3})
    assert "rank 2 failed with exit status 3" in str(silent)


@pytest.mark.slow
@pytest.mark.parametrize(("signal", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize("config", ["cpu_ddp.yaml", "one process"])
def test_stopping_the_launch_ends_all_ranks(signal: str, status: int, config: str, tmp_path: Path) -> None:
    import signal as signals

    file = ROOT / "accelerate_configs" / config
    environ = dict(os.environ)
    if config == "one process":
        file = write_yaml(tmp_path / "one.yaml", {"distributed_type": "NO", "num_processes": 1, "use_cpu": True})
        environ["RANK"] = "0"  # the script asks for it
    command = cli_command("launch", "--config_file", file, SCRIPTS / "one_rank_fails.py", "nothing")
    with subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ
    ) as run:
        assert run.stdout is not None
        started = "".join(run.stdout.readline() for _ in range(1 if config == "one process" else 2))
        assert len(alive(started)) == started.count("\n")
        run.send_signal(signals.Signals[signal])
        _, errors = run.communicate(timeout=60)
    assert run.returncode == status, errors
    assert f"stopped by {signal}; all ranks ended." in errors
    assert not alive(started)


def alive(output: str) -> list[int]:
    """Those of the processes that said `started PID` which still run."""
    numbers = [int(line.split()[1]) for line in output.splitlines() if line.startswith("started ")]
    assert numbers
    time.sleep(0.5)
    return [number for number in numbers if Path(f"/proc/{number}").exists()]


NATIVE = {
    "UNSLOTH_FSDP2": "1",
    "UNSLOTH_FSDP2_BACKEND": "native",
    "UNSLOTH_FSDP2_LAYOUT": "sharded",
    "UNSLOTH_FSDP2_SHARDED_LOAD": "1",
}


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
    environment.prepare(environ)
    assert environ.items() >= {**NATIVE, "UNSLOTH_FSDP2_LAYOUT": "fit"}.items(), "what the user has set is left"
    text = file.read_text(encoding="utf-8").replace("UNSLOTH_FSDP2_SHARDED_LOAD=1", "PATH=/tmp")
    assert "PATH" not in environment.in_comment(text)
    assert "UNSLOTH_FSDP2_SHARDED_LOAD" not in environment.in_comment(text)
    four_bit = AccelerateConfig(strategy="fsdp2_native", num_processes=2, load_in_4bit=True)
    assert environment.in_comment(four_bit.to_yaml("a comment")) == four_bit.environment
    assert environment.in_comment(AccelerateConfig(strategy="ddp", num_processes=2).to_yaml()) == {}


def test_our_launch_sets_what_a_native_config_carries(tmp_path: Path) -> None:
    """Also for a script that does not import unsloth_accel."""
    from unsloth_accel.hardware.hardware import Hardware
    from unsloth_accel.launch.launcher import launch

    seen: list[Any] = []
    config = ROOT / "accelerate_configs" / "fsdp2_native.yaml"
    script = ROOT / "examples" / "accelerate_loop.py"
    launch(["--config_file", str(config), str(script)], run=seen.append, hardware=Hardware.parse("2xH100-80GB"))
    assert seen[0].environment.items() >= NATIVE.items()


@pytest.mark.parametrize(("strategy", "alike"), [("fsdp2", True), ("ddp", False)])
def test_sharded_ranks_make_the_same_forward_passes(strategy: Any, alike: bool) -> None:
    """Unsloth's GRPO packs rows as each rank sees fit, which FSDP2's gathers can't stand."""
    promised = Promise(num_processes=2, strategy=strategy)
    environ = {PROMISE: json.dumps(vars(promised)), "WORLD_SIZE": "2"}
    environment.prepare(environ)
    assert ("UNSLOTH_GRPO_SEQ_PACKING" in environ) is alike


@pytest.mark.usefixtures("triton")
def test_unsloth_before_the_variables_that_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    promised = Promise(num_processes=2, strategy="fsdp2_native", environment=NATIVE)
    environ = {PROMISE: json.dumps(vars(promised)), "WORLD_SIZE": "2"}
    unsloth = ModuleType("unsloth")
    monkeypatch.setitem(sys.modules, "unsloth", unsloth)
    environment.prepare({**environ, **NATIVE})  # nothing was set too late
    with pytest.raises(ImportOrderError, match="`import unsloth_accel` before `import unsloth`"):
        environment.prepare(dict(environ))
    on_cpu = {PROMISE: json.dumps(vars(Promise(num_processes=2, device="cpu"))), "WORLD_SIZE": "2"}
    environment.prepare(dict(on_cpu))
    unsloth.DEVICE_TYPE = "cuda"  # type: ignore[attr-defined]
    with pytest.raises(ImportOrderError, match="has chosen cuda; this run is on a CPU"):
        environment.prepare(dict(on_cpu))


def test_an_accelerator_before_the_word_that_it_is_on_a_cpu() -> None:
    program = "from accelerate import PartialState; PartialState(); import unsloth_accel"
    promised = Promise(num_processes=2, device="cpu", strategy="ddp")
    environ = {**os.environ, PROMISE: json.dumps(vars(promised)), "WORLD_SIZE": "2"}
    for order, status in ((program, 1), (program.replace("PartialState(); ", ""), 0)):
        done = subprocess.run([sys.executable, "-c", order], cwd=ROOT, capture_output=True, text=True, env=environ)
        assert done.returncode == status
        assert ("an Accelerator was built before unsloth_accel was imported" in done.stderr) is bool(status)


def test_an_fsdp2_accelerator_before_unsloth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unsloth marks the plugins whose policy it has seen made (unsloth/models/fsdp2.py); the module needs triton."""
    from accelerate.utils import FullyShardedDataParallelPlugin

    monkeypatch.setitem(sys.modules, "unsloth.models.fsdp2", SimpleNamespace(_POLICY_SEEN="_seen"))
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    accelerator: Any = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin))
    import_order.check_accelerator(accelerator)  # without mixed precision there is no policy to be wrong
    plugin.set_mixed_precision("bf16")
    with pytest.raises(ImportOrderError, match="before the Accelerator is built"):
        import_order.check_accelerator(accelerator)
    plugin._seen = True
    import_order.check_accelerator(accelerator)


@pytest.mark.slow
def test_a_trainer_that_was_imported_before_unsloth() -> None:
    """The real Unsloth puts its own SFTTrainer into trl; who has taken it before holds TRL's."""
    trl, unsloth = "from trl import SFTTrainer", "import unsloth"
    for first, second, status in ((trl, unsloth, 1), (unsloth, trl, 0)):
        program = (
            f"import unsloth_accel; {first}; {second}\n"
            "class Mine(SFTTrainer): pass\n"
            "from unsloth_accel.adapters.import_order import check_trainer\n"
            "unsloth_accel.adapters.environment.show_own_errors_plainly()\n"
            "check_trainer(Mine.__new__(Mine))"
        )
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        assert ("SFTTrainer was imported from trl before unsloth" in done.stderr) is bool(status)


@pytest.mark.slow
@pytest.mark.parametrize(("grouped", "waits"), [(True, ["0.3"]), (False, [])])
def test_python_ends_after_gloos_threads(grouped: bool, waits: list[str]) -> None:
    """A rank gives gloo's threads the time to drop their tensors; seen to abort in 4 of 32 endings without it.

    Only the waiting is looked at: an abort needs threads that are starved, and then happens or doesn't.
    """
    variables = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    promised = Promise(num_processes=2, strategy="ddp", device="cpu", made_by="c.yaml")
    code = f"""if True:
        import os, time
        real = time.sleep
        time.sleep = lambda seconds: (print("waits", seconds), real(seconds))
        os.environ["WORLD_SIZE"] = "2"
        import unsloth_accel
        os.environ.update({variables!r})
        import torch
        if {grouped}:
            torch.distributed.init_process_group("gloo")
    """
    environ = {**os.environ, PROMISE: json.dumps(asdict(promised))}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("waits")] == waits
