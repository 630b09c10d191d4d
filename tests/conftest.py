"""Shared by all tests: where things are, a tiny checkpoint, and launching as a user does."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

# The tests are about processes on a CPU, also on a machine that has GPUs; what they start inherits it.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

# Tokenised rows are kept there: not those of tests, and none of an earlier run of them.
os.environ["HF_DATASETS_CACHE"] = _CACHE = tempfile.mkdtemp(prefix="unsloth-accel-tests-")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "tests" / "scripts"
SMOLLM2 = ROOT / "models" / "SmolLM2-135M-Instruct"
TRAIN = ROOT / "examples" / "data" / "elements-train.jsonl"
EVAL = ROOT / "examples" / "data" / "elements-eval.jsonl"

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
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def _outside_a_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests don't see the variables of a launch that started them."""
    for name in ("UNSLOTH_ACCEL_PROMISE", "WORLD_SIZE", "RANK", "LOCAL_RANK", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)


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


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama in float32."""
    directory = tmp_path_factory.mktemp("tiny")
    command = [sys.executable, "-m", "benchmarks.random_checkpoint", "tiny", str(directory)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return directory


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer model in float32 of each family that benchmarks.random_checkpoint knows, by its name."""
    directory = tmp_path_factory.mktemp("families")
    code = "import sys\nfrom benchmarks.random_checkpoint import FAMILIES, write\n"
    code += "for family in FAMILIES: write('tiny', f'{sys.argv[1]}/{family}', family=family)"
    subprocess.run([sys.executable, "-c", code, str(directory)], cwd=ROOT, check=True, capture_output=True)
    return directory


@pytest.fixture
def cli() -> Run:
    """Run `unsloth-accel` in a process of its own, in the project's directory."""

    def run(*arguments: str | Path, timeout: float = 400) -> subprocess.CompletedProcess[str]:
        return subprocess.run(cli_command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=timeout)

    return run


def cli_command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "unsloth_accel.cli.main", *map(str, arguments)]


def accelerate_launch(*arguments: str | Path, timeout: float = 400) -> subprocess.CompletedProcess[str]:
    """Run the real `accelerate launch`, as a user without our command would."""
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", *map(str, arguments)]
    # As when an installed package is imported: a script's own directory is on its path, the caller's is not.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, env=environment)


def write_yaml(path: Path, values: Any) -> Path:
    import yaml

    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def steps(run: Path) -> list[dict[str, Any]]:
    """The logged steps of a run."""
    return [json.loads(line) for line in (run / "logs" / "steps.jsonl").read_text(encoding="utf-8").splitlines()]


def adapter(run: Path) -> dict[str, Any]:
    """The saved adapter's tensors."""
    from safetensors.torch import load_file

    loaded: dict[str, Any] = load_file(run / "adapter" / "adapter_model.safetensors")
    return loaded


def variable_rows(path: Path, lengths: Sequence[int]) -> Path:
    """Text rows of these lengths in bytes."""
    rows = [{"text": "".join(chr(97 + (3 * i + j) % 26) for j in range(n))} for i, n in enumerate(lengths)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
