"""Processes killed while they save or merge: what they leave is removed by the next, and never the only copy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from unsloth_accel.artifacts import own_files
from unsloth_accel.artifacts.run_directory import RunDirectory
from unsloth_accel.files import this_machine, unfinished, write_atomically

KILLED = """
import os, signal, sys
from pathlib import Path
from unsloth_accel.artifacts import own_files
directory, at = Path(sys.argv[1]), sys.argv[2]
rename, calls = os.rename, []
def die():
    os.kill(os.getpid(), signal.SIGKILL)
def counted(*names):
    calls.append(names)
    if str(len(calls)) == at:
        die()
    rename(*names)
os.rename = counted
with own_files.filling(directory) as new:
    (new / "adapter_config.json").write_text("new")
    if at == "writing":
        die()
"""


def killed(directory: Path, at: str) -> int:
    """A process that ends in the middle of filling `directory`; returns its number."""
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(directory), at], cwd=ROOT)
    assert process.wait() == -9
    return process.pid


def put(directory: Path) -> None:
    with own_files.filling(directory) as new:
        (new / "adapter_config.json").write_text("old", encoding="utf-8")
    (directory / "notes.md").write_text("mine", encoding="utf-8")


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@pytest.mark.parametrize(
    ("at", "text"),
    [("writing", "old"), ("1", "old"), ("2", "new"), ("3", "new")],
    ids=["while writing", "before the old one is moved", "between", "before the user's own files are moved"],
)  # fmt: skip
def test_one_stays_whole_and_nothing_else(at: str, text: str, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    put(adapter)
    killed(adapter, at)
    assert len(names(tmp_path)) > 1
    assert own_files.clear_run(tmp_path) == ([adapter] if at == "2" else [])
    assert names(tmp_path) == {"adapter"}
    assert (adapter / "adapter_config.json").read_text(encoding="utf-8") == text
    assert (adapter / "notes.md").read_text(encoding="utf-8") == "mine"
    own_files.remove_filled(adapter)
    assert names(adapter) == {"notes.md"}, "the record is the right one"


def test_the_only_copy_is_finished(tmp_path: Path) -> None:
    """Whole, and killed before it had its place; one that isn't whole goes."""
    adapter = tmp_path / "adapter"
    killed(adapter, "1")
    assert own_files.clear_run(tmp_path) == [adapter]
    assert (adapter / "adapter_config.json").read_text(encoding="utf-8") == "new"
    merged = tmp_path / "merged"
    killed(merged, "writing")
    assert own_files.clear_run(tmp_path) == []
    assert names(tmp_path) == {"adapter"}


def test_weights_on_their_way_to_a_place_where_nothing_is_stay(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    killed(adapter, "writing")
    (left,) = tmp_path.iterdir()
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (left / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    assert own_files.clear_run(tmp_path) == []
    assert names(tmp_path) == {left.name}
    put(adapter)
    own_files.clear_run(tmp_path)
    assert names(tmp_path) == {"adapter"}, "now there are others"


def test_what_lives_or_is_a_users_stays(tmp_path: Path) -> None:
    """Of a process that lives; of another machine, before a day has passed; and names that only look alike."""
    host, dead = this_machine(), killed(tmp_path / "adapter", "writing")
    own_files.clear_run(tmp_path)
    stay = [
        f".plan.json.unsloth-accel-{host}-{os.getppid()}-abcdefgh",
        f".plan.json.unsloth-accel-elsewhere-{dead}-abcdefgh",
        f".plan.json.unsloth-accel-{host}-{dead}-abcdefgh.bak",
        ".adapter.abcdefgh",
        ".adapter.abcdefgh.old",
    ]
    go = [f".plan.json.unsloth-accel-{host}-{dead}-abcdefgh", f".plan.json.unsloth-accel-other-{dead}-abcdefgh"]
    for name in (*stay, *go):
        (tmp_path / name).write_text("x", encoding="utf-8")
    os.utime(tmp_path / go[1], (1, 1))
    own_files.clear_run(tmp_path)
    assert names(tmp_path) == {*stay}


def test_half_a_text_is_removed_everywhere_in_a_run(tmp_path: Path) -> None:
    code = "import os, signal, sys\nfrom unsloth_accel import files\n"
    code += "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\nfiles.write_atomically(sys.argv[1], 'x')"
    run = RunDirectory(tmp_path)
    for path in (run.planned_yaml, run.summary, run.launch_error, tmp_path / "checkpoint-2" / "unsloth_accel.json"):
        write_atomically(path.with_name("other"), "x")
        assert subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT).returncode == -9
        assert len(unfinished(path.parent)) == 1
    own_files.clear_run(tmp_path)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"other"}
