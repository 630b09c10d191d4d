"""Verify the installation: the doctor's checks, then a training of two steps in two processes.

    python examples/verify_installation.py

Ends with status 0 where all is well.
"""

import argparse
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.multigpu.launched_count import config_for

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
parser.add_argument("--skip-doctor", action="store_true", help="train only")
options = parser.parse_args()

hardware = Hardware.detect()
print(hardware, flush=True)
failed = []
if not options.skip_doctor:
    checked = subprocess.run([sys.executable, "-m", "unsloth_accel.cli", "doctor"], check=False)
    failed += ["unsloth-accel doctor"] if checked.returncode else []
with tempfile.TemporaryDirectory() as place:
    config = config_for(2, None, hardware if len(hardware.devices) > 1 else replace(hardware, devices=()))
    config.write(Path(place, "two.yaml"))
    script = Path(__file__).with_name("quick_start.py")
    words = ["--config_file", f"{place}/two.yaml", str(script), "--model", options.model, "--max-steps", "2"]
    data = Path(__file__).with_name("data") / "elements-train.jsonl"
    words += ["--data", str(data), "--per-device", "1", "--output", f"{place}/run"]
    launched = subprocess.run([sys.executable, "-m", "unsloth_accel.cli", "launch", *words], check=False)
    if launched.returncode or not Path(place, "run", "adapter", "adapter_model.safetensors").is_file():
        failed.append("the training in two processes")
print(f"FAILED: {', '.join(failed)}" if failed else "all is well: two processes trained, and saved an adapter")
sys.exit(1 if failed else 0)
