"""Odd files in the place of a run, a config, a run's own files: every command says what is wrong, at once."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from unsloth_accel.cli.main import main

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
        "large": run + "# comment\n" * 3_000_000,
        "many keys": run + "".join(f"key{n}: {n}\n" for n in range(1000)),
        "reference to itself": run + "training: {run_name: '${training.run_name}'}\n",
        "broken reference": run + "training: {run_name: '${'}\n",
        "many references": run + "training: {run_name: '" + "${output_dir}" * 500 + "'}\n",
        "long name": run.replace("output_dir: ", f"output_dir: {'x' * 5000} #"),
        "json": json.dumps(yaml.safe_load(run)),
        "sections as lists": "model: [1]\ndata: [2]\nlora: [3]\noutput_dir: [4]\nbatch: []\n",
    }


NAMES = [*odd_texts("output_dir: x\n")]


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
