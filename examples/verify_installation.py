"""Verify the installation: the doctor's checks, then a training of two steps in two processes.

    python examples/verify_installation.py

The processes are on two GPUs where there are as many, else on the CPU. Ends with status 0 where all is well.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from unsloth_accel.hardware.hardware import Hardware

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
parser.add_argument("--strategy", help="of the training; default: ddp")
parser.add_argument("--skip-doctor", action="store_true", help="train only")
options = parser.parse_args()

hardware = Hardware.detect()
print(hardware, flush=True)
failed = []
if not options.skip_doctor:
    checked = subprocess.run([sys.executable, "-m", "unsloth_accel.cli", "doctor"], check=False)
    failed += ["unsloth-accel doctor"] if checked.returncode else []
with tempfile.TemporaryDirectory() as place:
    here = Path(__file__).parent
    words = ["--model", options.model, "--data", str(here / "data" / "elements-train.jsonl"), "--output", place]
    words += ["--max-steps", "2", "--per-device", "1", *(["--strategy", options.strategy] if options.strategy else [])]
    on_cpu = {"CUDA_VISIBLE_DEVICES": ""} if len(hardware.devices) < 2 else {}
    command = [sys.executable, str(here / "quick_start.py"), "--launch", *words]
    launched = subprocess.run(command, env={**os.environ, **on_cpu}, check=False)
    if launched.returncode or not Path(place, "adapter", "adapter_model.safetensors").is_file():
        failed.append("the training in two processes")
print(f"FAILED: {', '.join(failed)}" if failed else "all is well: two processes trained, and saved an adapter")
sys.exit(1 if failed else 0)
