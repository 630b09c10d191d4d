from __future__ import annotations

import sys
from pathlib import Path

import fork_server
import pytest

WAITS = """
import datetime, sys, types
from torch import distributed
from unsloth_accel.adapters.gloo_timeout import heed_timeout

distributed.init_process_group("gloo", rank=0, world_size=1, init_method=f"file://{sys.argv[1]}")
group = distributed.distributed_c10d._get_default_group()
backend = group._get_backend(__import__("torch").device("cpu"))
before = backend.options._timeout
heed_timeout(types.SimpleNamespace(ddp_timeout_delta=datetime.timedelta(seconds=90)))
print(before, backend.options._timeout)
"""


@pytest.mark.slow
def test_a_cpus_collectives_wait_as_long_as_was_asked(tmp_path: Path) -> None:
    done = fork_server.run([sys.executable, "-c", WAITS, f"{tmp_path}/store"], capture_output=True, text=True)
    assert done.stdout.split("\n")[0] == "0:30:00 0:01:30", done.stderr
