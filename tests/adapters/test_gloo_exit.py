import json
import os
import subprocess
import sys
from dataclasses import asdict

import pytest

from unsloth_accel.config.promise import PROMISE, Promise


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
