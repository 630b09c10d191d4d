"""Train a run.yaml with DDP turned off by the fault that adapters/ddp.py mends; `--no-guard` lets it go on."""

import sys

import unsloth_accel  # noqa: F401
from unsloth_accel.adapters import rank_checks
from unsloth_accel.training import adapt as trainer

trainer.wrap_after_evaluation = lambda accelerator: None
if "--no-guard" in sys.argv:
    rank_checks.check_equal = lambda tensors, what: None

from unsloth_accel.training import process  # noqa: E402

sys.exit(process.main(sys.argv[1]))
