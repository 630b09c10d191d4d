"""Modules of the working directory are not imported in the place of others' by what this package starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PLAN = ("plan", "model.name=unsloth/Llama-3.1-8B-Instruct", "--hardware", "2xH100-80GB")
HOSTILE = ("random.py", "json.py", "typing.py", "logging.py", "datasets/__init__.py", "yaml/__init__.py", "trl.py")


def hostile(directory: Path) -> Path:
    """A directory with modules that end whoever imports them."""
    for name in HOSTILE:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(f"raise SystemExit('imported: {name}')\n", encoding="utf-8")
    return directory


def python(directory: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run([sys.executable, *words], cwd=directory, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("first", [(), ("-u", "-X", "utf8")], ids=["plain", "with options"])
def test_modules_beside_the_data_are_not_ours(first: tuple[str, ...], tmp_path: Path) -> None:
    done = python(hostile(tmp_path), *first, "-m", "unsloth_accel.cli", *PLAN)
    assert (done.returncode, done.stderr) == (0, "")
    assert "strategy" in done.stdout


def test_a_users_own_program_keeps_its_folder(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("print('helped')", encoding="utf-8")
    (tmp_path / "mine.py").write_text("import unsloth_accel, helper", encoding="utf-8")
    for words in (("mine.py",), ("-m", "mine"), ("-c", "import mine"), ("mine.py", "-m", "unsloth_accel.cli")):
        done = python(tmp_path, *words)
        assert (done.returncode, done.stdout) == (0, "helped\n"), done.stderr


def test_a_plugin_in_the_working_directory_is_found_last(tmp_path: Path) -> None:
    """And what it imports there; it does not put the rest of the directory before other packages."""
    (hostile(tmp_path) / "my_helper.py").write_text("NAME = 'my_strategy'", encoding="utf-8")
    text = "from dataclasses import replace\n\nimport my_helper\n\nfrom unsloth_accel.strategies import STRATEGIES\n\n"
    text += "STRATEGIES.add(replace(STRATEGIES['ddp'], name=my_helper.NAME))\n"
    (tmp_path / "my_plugin.py").write_text(text, encoding="utf-8")
    script = "import sys; sys.path[:1] = []; from unsloth_accel.cli.main import main; sys.exit(main(sys.argv[1:]))"
    for words in (("-m", "unsloth_accel.cli"), ("-c", script)):  # the second as the installed command does
        done = python(tmp_path, *words, *PLAN, UNSLOTH_ACCEL_PLUGINS="my_plugin")
        assert done.returncode == 0, done.stderr
        assert "my_strategy" in done.stdout
