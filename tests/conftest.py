"""Shared by all tests: where things are, a tiny checkpoint, and launching as a user does."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import fork_server
import pytest

if TYPE_CHECKING:
    from doctor_machines import Place
    from made_gpus import Look

    from unsloth_accel.config.run_config import RunConfig
    from unsloth_accel.hardware.hardware import Hardware
    from unsloth_accel.launch.run_accelerate import Launch
    from unsloth_accel.verify.runs import Trained

# The tests are about processes on a CPU, also on a machine that has GPUs; what they start inherits it.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

# Tokenised rows are kept there: not those of tests, and none of an earlier run of them.
os.environ["HF_DATASETS_CACHE"] = _CACHE = tempfile.mkdtemp(prefix="unsloth-accel-tests-")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)

# Hundreds of processes import the package: each would compile it anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A thread that waits for its peer lets others have the core: more processes than cores would spend them on waiting.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# A script's background job ignores these, and so would every launch that a test interrupts.
for _number, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _usual)

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "tests" / "scripts"
SMOLLM2 = ROOT / "models" / "SmolLM2-135M-Instruct"
TRAIN = ROOT / "examples" / "data" / "elements-train.jsonl"
EVAL = ROOT / "examples" / "data" / "elements-eval.jsonl"
CPU_DDP = ROOT / "accelerate_configs" / "cpu_ddp.yaml"

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}
"""Of a model that fits anything."""
NATIVE = {
    "UNSLOTH_FSDP2": "1",
    "UNSLOTH_FSDP2_BACKEND": "native",
    "UNSLOTH_FSDP2_LAYOUT": "sharded",
    "UNSLOTH_FSDP2_SHARDED_LOAD": "1",
}
"""The variables of fsdp2_native."""
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_configure(config: pytest.Config) -> None:
    """Of several testing processes none has a width of its own, by which tables would be folded."""
    if hasattr(config, "workerinput"):
        os.environ.pop("COLUMNS", None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes test, files with launches come first: what is short fills what is left at the end."""
    if hasattr(config, "workerinput"):
        launching = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in launching)


@pytest.fixture(autouse=True)
def _outside_a_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests don't see the variables of a launch that started them."""
    for name in ("UNSLOTH_ACCEL_PROMISE", "WORLD_SIZE", "RANK", "LOCAL_RANK", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def _exits() -> Iterator[list[str]]:
    """Where something of this process, not of a fork, would have ended it by os._exit: its stack."""
    leave, own, stacks = os._exit, os.getpid(), []

    def leave_alone(status: int) -> None:
        if os.getpid() != own:
            leave(status)
        stacks.append("".join(traceback.format_stack()))
        raise SystemExit(status)

    os._exit = leave_alone  # type: ignore[assignment]
    yield stacks
    os._exit = leave


@pytest.fixture(autouse=True)
def _no_thread_ends_all_tests(_exits: list[str]) -> Iterator[None]:
    """A watchdog's thread that outlives its test would end pytest, minutes later and without a word."""
    yield
    stacks = [*_exits]
    _exits.clear()
    assert not stacks, f"os._exit was called, by this test's thread or one that an earlier test left:\n{stacks[0]}"


@pytest.fixture(autouse=True)
def _no_accelerator_left() -> Iterator[None]:
    """An Accelerator that a test builds in this process is not left to the next."""
    yield
    if state := sys.modules.get("accelerate.state"):
        state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def description(tmp_path: Path) -> dict[str, Any]:
    """A run that could start: a model directory, rows, an output directory."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    write_weights(model)
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "a"}\n' * 8, encoding="utf-8")
    return {
        "model": {"name": str(model)},
        "data": {"path": str(data)},
        "batch": {"global_size": 8},
        "output_dir": str(tmp_path / "out"),
    }


@pytest.fixture
def planned(description: dict[str, Any]) -> RunConfig:
    """The run of `description`, decided."""
    return decided(description)


def decided(description: dict[str, Any]) -> RunConfig:
    """The run with what a plan for two CPU processes decides."""
    from unsloth_accel.config.read_run import from_dict
    from unsloth_accel.hardware.hardware import Hardware
    from unsloth_accel.planning.planner import plan

    description = {**description, "distributed": {"device": "cpu", "num_processes": 2}} | description
    cpu = Hardware(cpu_cores=2, host_memory_gib=8, reason="no driver")
    return from_dict(plan(from_dict(description), cpu).resolved())


def write_weights(directory: Path) -> None:
    """All weights of `CONFIG`, as zeros, without torch."""
    from unsloth_accel.models.spec import from_config

    header: dict[str, Any] = {}
    end = 0
    for tensor in from_config(CONFIG, name="test").tensors:
        header[tensor.name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [end, end + 4 * tensor.numel],
        }
        end += 4 * tensor.numel
    text = json.dumps(header).encode()
    (directory / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))


def write_adapter(path: Path, **said: Any) -> Path:
    """An adapter's directory with this in its config, and weights that nobody reads."""
    usual = {"peft_type": "LORA", "r": 8, "lora_alpha": 24, "lora_dropout": 0.1, "target_modules": ["v_proj", "q_proj"]}
    path.mkdir(parents=True, exist_ok=True)
    (path / "adapter_config.json").write_text(json.dumps(usual | said), encoding="utf-8")
    (path / "adapter_model.safetensors").touch()
    return path


def write_checkpoint(path: Path, run: Any, *, ranks: int = 2, record: bool = True) -> Path:
    """A whole checkpoint of `run` as the Trainer leaves one, its files as small as their forms allow."""
    import zipfile

    from unsloth_accel.artifacts.checkpoints import RECORD, files_of
    from unsloth_accel.artifacts.resume_facts import made_with

    path.mkdir(parents=True)
    header = json.dumps({"a.lora_A.weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (path / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    config = {"r": run.lora.r, "lora_alpha": run.lora.alpha, "base_model_name_or_path": run.model.name}
    modules = run.lora.target_modules
    config["target_modules"] = modules if isinstance(modules, str) else list(modules)
    config["modules_to_save"] = list(run.lora.modules_to_save) or None
    (path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in ("optimizer.pt", "scheduler.pt", *(f"rng_state_{rank}.pth" for rank in range(ranks))):
        with zipfile.ZipFile(path / name, "w") as file:
            file.writestr("archive/data.pkl", b"state" * 20)
    state = {"global_step": int(path.name.rpartition("-")[2])}
    (path / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
    if record:
        values = {"made_with": made_with(run), "files": files_of(path)}
        (path / RECORD).write_text(json.dumps(values), encoding="utf-8")
    return path


@pytest.fixture
def file(tmp_path: Path, description: dict[str, Any]) -> Path:
    return write_yaml(tmp_path / "run.yaml", description)


def launched(*tokens: str | Path, hardware: Hardware | None = None) -> Launch:
    """The command of a launch, by default on two cores, that isn't run."""
    from unsloth_accel.hardware.hardware import Hardware
    from unsloth_accel.launch.launcher import launch

    seen: list[Launch] = []
    hardware = hardware or Hardware(cpu_cores=2, host_memory_gib=8, reason="no driver")
    launch(list(map(str, tokens)), run=seen.append, hardware=hardware)
    (only,) = seen
    return only


def write_small_run(place: Path, model: Path, rows: int, **training: Any) -> Path:
    """A description of a run in two processes, eight rows a step; its rows lie beside it."""
    lengths = [9 + (37 * i) % 88 for i in range(rows)]
    values = {
        "model": {"name": str(model), "max_seq_length": 96, "dtype": "float32"},
        "data": {"path": str(variable_rows(place / "rows.jsonl", lengths))},
        "batch": {"global_size": 8},
        "training": {"learning_rate": 1e-2, "bf16": False, "per_device_train_batch_size": 4, **training},
        "distributed": {"num_processes": 2, "device": "cpu"},
        "output_dir": str(place / "run"),
    }
    return write_yaml(place / "run.yaml", values)


def finished_run(directory: Path) -> Path:
    """The directory of a finished run of ours, with as little in it as tells that."""
    (directory / "adapter").mkdir(parents=True, exist_ok=True)
    (directory / "adapter" / "adapter_config.json").write_text("{}", encoding="utf-8")
    (directory / "accelerate.yaml").write_text("# ddp, written by unsloth-accel with it.\n", encoding="utf-8")
    (directory / "results.json").write_text("{}", encoding="utf-8")
    return directory


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str | bytes, str], Path]:
    """Write a config of this text."""

    def write(text: str | bytes, name: str = "config.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A CPU installation where all is well."""
    from doctor_machines import GOOD, UNSLOTH, Place

    directory = tmp_path / "site"
    directory.mkdir()
    made = Place(directory)
    for name, version in GOOD.items():
        made.add(name, version, UNSLOTH if name == "unsloth" else ())
    made.file("unsloth/_cpu_init.py", "")
    made.torch("2.13.0+cpu")
    return made


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> Look:
    """Detect on a machine with these GPUs and these variables."""
    from made_gpus import Gpu, fake_nvml

    from unsloth_accel.hardware.hardware import Hardware

    def look(gpus: list[Gpu], joined: Any = (), environ: dict[str, str] | None = None, **more: str) -> Hardware:
        monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(gpus, joined, **more))
        return Hardware.detect(environ or {})

    return look


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, dict[str, str]], None]:
    """A machine of 16 cores and 64 GiB with these cgroup files."""
    from unsloth_accel.hardware import cpu_and_memory

    monkeypatch.setattr(cpu_and_memory, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(cpu_and_memory, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=64 * 2**30))

    def write(own: str, files: dict[str, str]) -> None:
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hugging Face's Hub is out of reach, and nothing of it is in the cache."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of six MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(place)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """The directory of a finished run on two GPUs."""
    import run_directories

    return run_directories.two_gpus(tmp_path / "two")


@pytest.fixture
def one(tmp_path: Path) -> Trained:
    """Three steps of one process, without training."""
    from verified_runs import made

    return made(tmp_path / "one")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama in float32."""
    directory = tmp_path_factory.mktemp("tiny")
    command = [sys.executable, "-m", "benchmarks.random_checkpoint", "tiny", str(directory)]
    fork_server.run(command, cwd=ROOT, check=True, capture_output=True)
    return directory


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer model in float32 of each family that benchmarks.random_checkpoint knows, by its name."""
    directory = tmp_path_factory.mktemp("families")
    code = "import sys\nfrom benchmarks.random_checkpoint import FAMILIES, write\n"
    code += "for family in FAMILIES: write('tiny', f'{sys.argv[1]}/{family}', family=family)"
    fork_server.run([sys.executable, "-c", code, str(directory)], cwd=ROOT, check=True, capture_output=True)
    return directory


@pytest.fixture(scope="module")
def uncompiled(tiny: Path) -> Iterator[None]:
    """Launches of this file go without what costs most of their time and isn't tested there: compiling, and what
    scripts/plain_trl leaves out. The server of forks, which `tiny` starts, is none of them."""
    paths = [str(SCRIPTS / "plain_trl"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        patch.setenv("TORCH_COMPILE_DISABLE", "1")
        yield


@pytest.fixture
def cli() -> Run:
    """Run `unsloth-accel` in a process of its own, in the project's directory; with `forked`, one of `fork_server`."""

    def run(*arguments: str | Path, timeout: float = 400, forked: bool = False) -> subprocess.CompletedProcess[str]:
        start = fork_server.run if forked else subprocess.run
        return start(cli_command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=timeout)

    return run


def cli_command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "unsloth_accel.cli", *map(str, arguments)]


def accelerate_launch(
    *arguments: str | Path, timeout: float = 400, forked: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run the real `accelerate launch`, as a user without our command would; with `forked`, in `fork_server`'s."""
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", *map(str, arguments)]
    # As when an installed package is imported: a script's own directory is on its path, the caller's is not.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    start = fork_server.run if forked else subprocess.run
    return start(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, env=environment)


def write_yaml(path: Path, values: Any) -> Path:
    import yaml

    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def steps(run: Path) -> list[dict[str, Any]]:
    """The logged steps of a run."""
    lines = map(json.loads, (run / "logs" / "steps.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if "loss" in line]


def adapter(run: Path) -> dict[str, Any]:
    """The saved adapter's tensors."""
    from safetensors.torch import load_file

    loaded: dict[str, Any] = load_file(run / "adapter" / "adapter_model.safetensors")
    return loaded


def fill(disk: Path) -> Path:
    """Fill a disk to its last page; returns the file that does."""
    with suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**12))
    return disk / "filler"


def chat_rows(path: Path) -> Path:
    """400 and 1200 characters in turns: 200 tokens at the mean, by the rule."""
    row = [
        {"messages": [{"role": "user", "content": "x" * 100}, {"role": "assistant", "content": "y" * n}]}
        for n in (299, 1099)
    ]
    path.write_text("".join(json.dumps(one) + "\n" for one in row) * 20, encoding="utf-8")
    return path


def variable_rows(path: Path, lengths: Sequence[int]) -> Path:
    """Text rows of these lengths in bytes."""
    rows = [{"text": "".join(chr(97 + (3 * i + j) % 26) for j in range(n))} for i, n in enumerate(lengths)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
