"""A forked process is what one that Python starts is, except that torch is imported."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fork_server
import pytest

PROGRAM = """
import json, os, signal, subprocess, sys
from pathlib import Path
def line(pid): return [word for word in Path(f"/proc/{pid}/cmdline").read_text().split("\\0") if word]
given = Path("/proc/self/environ").read_text().split("\\0")
told = {
    "argv": sys.argv, "path": sys.path[:2], "name": __name__, "main": sys.modules["__main__"].__dict__ is globals(),
    "line": line(os.getpid()), "parent": line(os.getppid()), "own session": os.getsid(0) == os.getpid(),
    "variable": os.environ["FROM_TEST"], "as started": "FROM_TEST=1" in given, "directory": os.getcwd(),
    "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler, "input": sys.stdin.read(),
    "ours": sorted(name for name in sys.modules if name.split(".")[0] in ("trl", "unsloth", "unsloth_accel")),
    "streams": [
        [one.line_buffering, one.write_through, one.encoding, one.errors] for one in (sys.stdout, sys.stderr)
    ],
}
print(json.dumps({"torch": "torch" in sys.modules, "told": told}), flush=True)
if len(sys.argv) > 1:
    command = [sys.executable, "-u", sys.argv[0]]
    sys.exit(subprocess.run(command, input="", text=True, start_new_session=True).returncode)
raise RuntimeError("at its end")
"""


def lines(start: Any, script: Path, **variables: str) -> list[dict[str, Any]]:
    """What a process and one that it starts tell, the second of which fails."""
    environment = {**os.environ, "FROM_TEST": "1", **variables}
    options = {"input": "given", "capture_output": True, "text": True, "cwd": script.parent, "env": environment}
    done = start([sys.executable, str(script), "more"], **options)
    assert done.returncode == 1
    assert done.stderr.endswith("RuntimeError: at its end\n")
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_a_fork_is_like_a_process_that_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REAL_PROCESSES", raising=False)
    script = tmp_path / "script.py"
    script.write_text(PROGRAM, encoding="utf-8")
    real, forked = lines(subprocess.run, script), lines(fork_server.run, script)
    assert [one["torch"] for one in real] == [False, False]
    assert [one["torch"] for one in forked] == [True, True]
    assert [one["told"] for one in forked] == [one["told"] for one in real]
    assert [one["told"]["ours"] for one in real] == [[], []]
    assert real[1]["told"]["parent"] == real[0]["told"]["line"]


@pytest.mark.slow
def test_what_torch_would_have_read_starts_a_process(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(PROGRAM, encoding="utf-8")
    assert [one["torch"] for one in lines(fork_server.run, script, HF_HOME=str(tmp_path))] == [False, False]
