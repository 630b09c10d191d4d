"""What asks a rank to stop, and how one ends that has nothing to save, or can't."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from unsloth_accel.callbacks.stop_request import REQUEST

BEGIN = """
import os, signal, sys, time
from unsloth_accel.callbacks import stop_request
from unsloth_accel.callbacks.stop_request import REQUEST
from unsloth_accel.launch.rank_errors import report_error
REQUEST.know(sys.argv[1], tell=lambda stopped: report_error(sys.argv[1], 0, stopped))
"""
RANK = {"LOCAL_RANK": "0"}
WHOLE = """
from types import SimpleNamespace as Found
stop_request.checkpoints.newest = lambda directory: (Found(path=Found(name="checkpoint-3")), [])
"""


def started(code: str, *words: Any, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """A process that runs `code`; it prints `ready`."""
    command = [sys.executable, "-c", BEGIN + code, *map(str, words)]
    environment = {**os.environ, **(environment or {})}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=pipe, stderr=pipe)


def test_a_signal_is_noted_and_all_is_as_before_afterwards() -> None:
    mine = signal.signal(signal.SIGQUIT, lambda number, frame: None)
    usual = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)}
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        REQUEST.hold()
        REQUEST.begin()
        with REQUEST.listening():
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGQUIT)
            time.sleep(0.1)
            assert REQUEST.number == 0, "one that is ignored, and one that somebody has taken"
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "nobody launched this process"
            with REQUEST.listening():  # of a trainer's, in a run's
                ready, begun = os.pipe()
                child = os.fork()
                if not child:
                    os.write(begun, b"!")
                    time.sleep(10)
                    os._exit(0)
                os.read(ready, 1)
                os.kill(child, signal.SIGTERM)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
            assert REQUEST.number == 0, "which is no rank"
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
            assert REQUEST.number == signal.SIGTERM
        with REQUEST.listening():
            assert REQUEST.number == 0
    finally:
        REQUEST.release()
        signal.signal(signal.SIGHUP, ignored)
    assert usual == {number: signal.getsignal(number) for number in usual}
    signal.signal(signal.SIGQUIT, mine)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("", "ended by SIGTERM before it trained; there is no whole checkpoint."),
        ("REQUEST.hold()", "ended by SIGTERM before it trained; there is no whole checkpoint."),
        (WHOLE, "before it trained; checkpoint-3 is whole: go on with resume_from_checkpoint=True."),
        ("REQUEST.hold(); REQUEST.begin(); REQUEST.release('after it was saved')", "SIGTERM after it was saved."),
        ("REQUEST.hold(); REQUEST.begin()", "as no step ended within 0 s; there is no whole checkpoint."),
    ],
)
def test_a_rank_that_cannot_or_need_not_save_ends_by_itself(code: str, words: str, tmp_path: Path) -> None:
    """Also while its main thread runs no handler, as in a collective."""
    code += "\nimport hashlib\nstop_request.PATIENCE = 0.3\nwith REQUEST.listening():\n    print('ready', flush=True)\n"
    code += "    hashlib.pbkdf2_hmac('sha256', b'', b'', 200_000_000)"
    with started(code, tmp_path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=200)
    assert process.returncode == 143
    report = json.loads((tmp_path / "errors" / "rank-0.json").read_text(encoding="utf-8"))
    assert words in report["message"]
    assert report["exit_status"] == 143
    assert f"unsloth_accel: rank 0: {report['message']}" in errors


@pytest.mark.slow
def test_a_rank_ends_though_the_disk_of_its_checkpoints_hangs(tmp_path: Path) -> None:
    code = "stop_request.checkpoints.newest = lambda directory: time.sleep(60)\n"
    code += "with REQUEST.listening():\n    print('ready', flush=True)\n    time.sleep(60)"
    with started(code, tmp_path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 143


def test_a_loop_of_ones_own_ends_with_its_launcher(tmp_path: Path) -> None:
    """As it would after a SIGTERM: with its own handler, where it has one."""
    loop = BEGIN + (
        "stop_request.follow_launcher()\n"
        "stop_request.follow_launcher()\n"
        "signal.signal(15, lambda *_: (open(os.path.join(sys.argv[1], 'done'), 'a').write('saved'), os._exit(0)))\n"
        "print('ready', flush=True)\n"
        "time.sleep(20)\n"
    )
    words = f"[sys.executable, '-c', {loop!r}, {str(tmp_path)!r}]"
    process = started(f"import subprocess; subprocess.Popen({words}); time.sleep(60)", tmp_path, environment=RANK)
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.communicate()
    assert (tmp_path / "done").read_text(encoding="utf-8") == "saved"


def test_a_launcher_that_is_gone_is_noticed_and_a_terminal_too(tmp_path: Path) -> None:
    """By a rank whose output nobody reads any more; a script that nobody launched goes on."""
    rank = BEGIN + (
        "REQUEST.know(sys.argv[1], os.path.join(sys.argv[1], 'output'))\n"
        "REQUEST.hold()\n"
        "with REQUEST.listening():\n"
        "    print('ready', flush=True)\n"
        "    end = time.monotonic() + float(sys.argv[2])\n"
        "    while not REQUEST.number and time.monotonic() < end: time.sleep(0.05)\n"
        "    time.sleep(0.5)\n"
        "    print('asked', REQUEST.number, flush=True) if REQUEST.number else None\n"
        "    open(os.path.join(sys.argv[1], 'done'), 'w').write(str(REQUEST.number))\n"
    )
    for name, launched, seconds in (("rank", True, 120), ("script", False, 3)):
        place = tmp_path / name
        place.mkdir()
        words = f"[sys.executable, '-c', {rank!r}, {str(place)!r}, '{seconds}']"
        launcher = f"import subprocess; subprocess.Popen({words}); time.sleep(60)"
        process = started(launcher, place, environment=RANK if launched else {})
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
        process.stdout.close()
        process.wait()
        deadline = time.monotonic() + 180
        while not (place / "done").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert (place / "done").read_text(encoding="utf-8") == ("100" if launched else "0")
        output = place / "output"
        assert (output.read_text(encoding="utf-8") if output.exists() else "") == ("asked 100\n" if launched else "")
