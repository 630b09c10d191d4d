"""A script of a user's own, of which the ranks that the command line names fail; the others fall over that."""

import os
import sys

import unsloth_accel  # noqa: F401

# isort: split
import torch

rank = int(os.environ.get("RANK", "0"))
if "RANK" in os.environ:
    torch.distributed.init_process_group("gloo")
    torch.distributed.barrier()
if str(rank) in sys.argv[1:]:
    raise RuntimeError(f"the disk of rank {rank} is gone\nand with it all rows")
torch.distributed.barrier()
