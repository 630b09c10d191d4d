"""The child process of `notebook_launch`: runs `accelerate launch` and ends it when the notebook's kernel is gone.

    python -m unsloth_accel.launch.child_main PARENT_PID < launch.json

It is started fresh, not forked, so nothing that the kernel has loaded (CUDA, Unsloth) is in it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..artifacts.run_directory import RunDirectory
from ..errors import LaunchError
from .living import carrying
from .rank_errors import leave_word
from .run_accelerate import Launch, run_accelerate
from .run_lock import MARK

PATIENCE = 45.0
"""Seconds that a stopped launch gets before it is killed; torchrun itself waits 30 for a rank."""


def to_json(command: Launch) -> str:
    """Return a run's launch as the child reads it."""
    return json.dumps(asdict(command), default=str)


def main(parent: int) -> int:
    values: dict[str, Any] = json.load(sys.stdin)
    directory = Path(values["output_dir"])
    command = Launch(**{**values, "arguments": tuple(values["arguments"]), "output_dir": directory})
    # A kernel ignores SIGINT between cells, and a child inherits that. Until run_accelerate listens there are no ranks
    # to end, and an exception in the middle of an import is swallowed or garbled there.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    try:
        run_accelerate(command)
    except LaunchError as error:
        leave_word(RunDirectory(directory).launch_error, error.as_json(), str(error))
        return error.exit_status
    return 0


def _watch(parent: int) -> None:
    """Stop the launch when `parent` is no longer this process's: a killed or restarted kernel can't say so.

    PR_SET_PDEATHSIG would act when the thread that started us ends, and a process that the kernel has forked (a data
    loader's) would keep a pipe open.
    """
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE)
    for process in carrying({MARK: os.environ[MARK]}):
        if process.pid != os.getpid():
            process.kill()
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
