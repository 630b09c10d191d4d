"""Rank 1 fails, or stops answering; the others would run for ten minutes."""

import os
import sys
import time

rank = int(os.environ["RANK"])
print(f"started {os.getpid()}\n", end="", flush=True)  # one write: ranks share a pipe
if rank == 1 and sys.argv[1] == "raise":
    raise RuntimeError("the disk of rank 1 is gone")
if rank == 1 and sys.argv[1] == "exit":
    sys.exit(7)
if rank == 1 and sys.argv[1] == "kill":
    os.kill(os.getpid(), 9)
time.sleep(600)
