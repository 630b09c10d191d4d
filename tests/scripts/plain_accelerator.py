"""A user's own Accelerator under a launch: prints what it sees; `--forget` undoes what unsloth_accel has set."""

import os
import sys

import unsloth_accel  # noqa: F401
from unsloth_accel.adapters import environment, rank_checks

if "--forget" in sys.argv:
    os.environ.pop("ACCELERATE_USE_CPU")

from accelerate import Accelerator

accelerator = Accelerator()
promised = environment.promise()
assert promised is not None
rank_checks.check_world(promised)
print(
    f"rank {accelerator.process_index} of {accelerator.num_processes} on {accelerator.device.type}\n",
    end="",
    flush=True,
)  # one write: ranks share a pipe
