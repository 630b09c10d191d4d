"""Odd files in the place of a run, a config, a run's own files: every command says what is wrong, at once."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import run_directories
import yaml
from doctor_machines import machine

from unsloth_accel.cli.main import main
from unsloth_accel.doctor.shell_variables import default_config

SECONDS = 2.0
"""CPU time that a command may take with any of them."""


def bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


def deep(levels: int) -> str:
    return "".join(f"{'  ' * level}k:\n" for level in range(levels)) + "  " * levels + "k: 1\n"


def odd_texts(run: str) -> dict[str, str | bytes]:
    """Contents of odd files by name; `run` is a run that is all right."""
    return {
        "empty": "",
        "comments": "# nothing\n# here\n",
        "word": "hello\n",
        "number": "3\n",
        "list": "- a\n- b\n",
        "plain text": "Dear diary, today: I trained\na model: it was: good\n",
        "nul": run + "\0",
        "nul in a value": run.replace("output_dir: ", 'output_dir: "a\\0b" #'),
        "escape": run + "\x1b[2J\n",
        "binary": bytes(range(256)) * 4,
        "utf-16": run.encode("utf-16"),
        "utf-32": run.encode("utf-32"),
        "latin-1": b"# caf\xe9\n" + run.encode(),
        "surrogate": run + 'method: "\\ud800"\n',
        "byte order mark": b"\xef\xbb\xbf" + run.encode(),
        "crlf": run.replace("\n", "\r\n"),
        "tab": run + "training:\n\tmax_steps: 1\n",
        "bomb": bomb(9) + run,
        "holds itself": "training: &t {report_to: *t}\n" + run,
        "deep mappings": deep(40) + run,
        "deeper mappings": deep(150) + run,
        "deepest brackets": "training: {run_name: " + "[" * 500 + "]" * 500 + "}\n" + run,
        "wrong date": run + "training: {run_name: 2024-13-45}\n",
        "date": run + "training: {run_name: 2024-12-24}\n",
        "400 digits": run + f"training: {{max_steps: {'9' * 400}}}\n",
        "6000 digits": run + f"training: {{max_steps: {'9' * 6000}}}\n",
        "6000 hex digits": run + f"training: {{max_steps: 0x{'f' * 6000}}}\n",
        "infinite": run + "training: {max_steps: .inf}\n",
        "not a number": run + "training: {learning_rate: .nan}\n",
        "huge exponent": run + "training: {learning_rate: 1e999999}\n",
        "base 60": run + "training: {max_steps: 1:30:00}\n",
        "two documents": run + "---\n" + run,
        "python tag": run + 'training: !!python/object/apply:os.system ["true"]\n',
        "unknown tag": run + "training: !mine {max_steps: 1}\n",
        "wrong tag": run + "training: {max_steps: !!int maybe}\n",
        "key twice": run + "output_dir: elsewhere\n",
        "number as key": run + "1: 2\n",
        "null as key": run + "~: 2\n",
        "list as key": run + "? [a, b]\n: 1\n",
        "merge of a number": run + "<<: 3\n",
        "alias to nothing": run + "training: *nowhere\n",
        "unclosed": run + "training: {max_steps: 1\n",
        "long line": run + f"training: {{run_name: {'x' * 50_000}}}\n",
        "large": run + "# comment\n" * 300_000,
        "many keys": run + "".join(f"key{n}: {n}\n" for n in range(1000)),
        "reference to itself": run + "training: {run_name: '${training.run_name}'}\n",
        "broken reference": run + "training: {run_name: '${'}\n",
        "many references": run + "training: {run_name: '" + "${output_dir}" * 500 + "'}\n",
        "long name": run.replace("output_dir: ", f"output_dir: {'x' * 5000} #"),
        "json": json.dumps(yaml.safe_load(run)),
        "sections as lists": "model: [1]\ndata: [2]\nlora: [3]\noutput_dir: [4]\nbatch: []\n",
    }


NAMES = [*odd_texts("output_dir: x\n")]
FINE = [
    *("nul in a value", "byte order mark", "crlf", "date", "infinite", "not a number", "huge exponent", "base 60"),
    *("long line", "many keys", "reference to itself", "broken reference", "many references", "long name", "json"),
    *("sections as lists", "key twice"),
]
"""Those that are YAML of a mapping, whatever its keys say; there is no output_dir to replace or to write twice."""


@pytest.fixture
def ended(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., int]]:
    """Run a command in this process: it ends in time, with its own words."""

    def run(*words: str | Path) -> int:
        started = time.process_time()
        status = main([str(word) for word in words])
        seconds = time.process_time() - started
        told = capsys.readouterr()
        assert seconds < SECONDS, f"{words} took {seconds:.1f} s"
        assert "Traceback" not in told.out + told.err
        assert max(map(len, told.err.splitlines()), default=0) < 3000, words
        return status

    return run


@pytest.fixture(scope="session", autouse=True)
def _imported() -> None:
    """Imports aren't what is measured."""
    main(["plan", "--hardware", "2xT4", "model.name=unsloth/Qwen3-8B", "batch.global_size=16"])


def run_text(description: dict[str, Any]) -> str:
    return str(yaml.safe_dump(description, sort_keys=False))


@pytest.mark.parametrize("name", NAMES)
def test_as_a_run(name: str, tmp_path: Path, description: dict[str, Any], ended: Callable[..., int]) -> None:
    content = odd_texts(run_text(description))[name]
    file = tmp_path / "run.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    validated = ended("validate", file)
    hardware = ("--hardware", "2xT4")
    planned = [
        ended("plan", file, *hardware),
        ended("config", file, *hardware),
        ended("estimate", file),
        ended("launch", file, "--dry-run", "distributed.device=cpu"),
    ]
    if validated:  # what is refused here is refused there
        assert planned == [2, 2, 2, 2]


@pytest.mark.parametrize("name", NAMES)
def test_as_a_config(name: str, tmp_path: Path, ended: Callable[..., int]) -> None:
    content = odd_texts("distributed_type: MULTI_GPU\nnum_processes: 2\noutput_dir: x\n")[name]
    file, script = tmp_path / "config.yaml", tmp_path / "script.py"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    script.touch()
    assert ended("validate", file) == 1
    assert ended("launch", "--config_file", file, "--dry-run", script) == 2


@pytest.mark.parametrize("name", NAMES)
def test_as_accelerates_default(name: str, tmp_path: Path, place: Any) -> None:
    content = odd_texts("distributed_type: MULTI_GPU\nnum_processes: 2\n")[name]
    home = tmp_path / "home"
    file = home / "accelerate" / "default_config.yaml"
    file.parent.mkdir(parents=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    (found,) = default_config(machine(place, environ={"HF_HOME": str(home)}))
    assert str(file) in found.detail
    assert found.status == ("warning" if name in FINE else "error")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's directory with every file that a report reads."""
    directory = run_directories.two_gpus(tmp_path_factory.mktemp("run") / "run", steps=4)
    for name in ("errors/launch.json", "errors/rank-0.json", "checkpoint-4/trainer_state.json", "logs/summary.json"):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).touch()
    return directory


FILES = [
    *("run.planned.yaml", "accelerate.yaml", "plan.json", "results.json", "logs/steps.jsonl", "logs/rank-0.jsonl"),
    *("logs/summary.json", "errors/launch.json", "errors/rank-0.json", "checkpoint-4/trainer_state.json"),
]
ODD_JSON = {
    "deep": "[" * 900 + "]" * 900,
    "deeper": '{"a":' * 50_000 + "1" + "}" * 50_000,
    "6000 digits": '{"step": ' + "9" * 6000 + "}",
    "400 digits": '{"step": ' + "9" * 400 + ', "loss": ' + "9" * 400 + ', "time": ' + "9" * 400 + "}",
    "not numbers": '{"step": NaN, "loss": Infinity, "time": -Infinity, "rank": "x", "event": "step"}',
    "other kinds": '{"training": [1], "steps": {}, "rank": {}, "time": "now", "batch": "x", "memory": 3, "loss": []}',
    "a list": "[1, 2, 3]",
    "text": "hello",
    "nothing": "",
    "half": '{"step": 1, "lo',
    "binary": "\0\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
}


@pytest.mark.parametrize("name", [*NAMES, *ODD_JSON])
def test_as_a_file_of_a_run(name: str, tmp_path: Path, finished: Path, ended: Callable[..., int]) -> None:
    content = {**odd_texts("output_dir: x\n"), **ODD_JSON}[name]
    directory = tmp_path / "run"
    shutil.copytree(finished, directory)
    for file in FILES if name in ODD_JSON else FILES[:1]:
        (directory / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert ended("report", directory) == 0
    ended("validate", directory)
    if name in ODD_JSON:
        assert ended("report", "--compare", directory, finished) == 0


@pytest.mark.parametrize("file", [*FILES, "report.html"])
def test_a_pipe_as_a_file_of_a_run(file: str, tmp_path: Path, finished: Path, ended: Callable[..., int]) -> None:
    directory = tmp_path / "run"
    shutil.copytree(finished, directory)
    (directory / file).unlink(missing_ok=True)
    os.mkfifo(directory / file)
    assert ended("report", directory) == (2 if file == "report.html" else 0)
    ended("validate", directory)


def test_pipes_and_devices(tmp_path: Path, description: dict[str, Any], ended: Callable[..., int]) -> None:
    run, rows = tmp_path / "run.yaml", tmp_path / "piped.jsonl"
    os.mkfifo(run)
    os.mkfifo(rows)
    assert [ended(command, run) for command in ("validate", "plan", "estimate", "launch", "preview")] == [1, 2, 2, 2, 2]
    run.unlink()
    run.symlink_to("/dev/zero")
    assert [ended(command, run) for command in ("validate", "plan")] == [1, 2]
    run.unlink()
    run.write_text(run_text(description))
    assert [ended(command, run, f"data.path={rows}") for command in ("launch", "preview")] == [2, 2]


def test_what_is_written_replaces_nothing_but_our_own(
    tmp_path: Path,
    description: dict[str, Any],
    finished: Path,
    ended: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, out = tmp_path / "run.yaml", tmp_path / "out"
    run.write_text(run_text(description))
    link = tmp_path / "stdout"
    link.symlink_to(tmp_path / "elsewhere")
    asked: dict[str, tuple[str | Path, ...]] = {
        "config": ("config", run, "--hardware", "2xT4", "--out"),
        "report": ("report", finished, "--out"),
        "compare": ("report", "--compare", finished, finished, "--out"),
    }
    monkeypatch.setattr("unsloth_accel.verify.verification.verify", None)  # not got so far
    for words in (*asked.values(), ("verify", run, "--json")):
        before = run.read_text()
        assert ended(*words, run) == 2
        assert run.read_text() == before
        assert ended(*words, tmp_path) == 2
        assert ended(*words, link) == 2
        assert link.is_symlink()
    for words in asked.values():
        for _ in range(2):
            assert ended(*words, out) == 0
        out.unlink()
        out.touch()
        assert ended(*words, out) == 0
        out.unlink()
