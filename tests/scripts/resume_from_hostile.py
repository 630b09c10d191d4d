"""Goes on from a run whose files hold code in the place of weights, one after the other: `python … RUN PLACE`.

Each such file would make the directory PLACE/run if it were loaded as any pickle is. Prints a line of JSON for each:
the file, the exit status, and whether its code ran.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import torch

from unsloth_accel.artifacts.own_files import write_record
from unsloth_accel.training.process import main

FILES = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.bin", "training_args.bin")


class Hostile:
    def __reduce__(self):
        return os.mkdir, (f"{sys.argv[2]}/run",)


if __name__ == "__main__":
    run, place = map(Path, sys.argv[1:3])
    for name in FILES:
        out = place / name
        checkpoint = out / "checkpoint-3"
        shutil.copytree(run / "checkpoint-3", checkpoint)
        shutil.copy(run / "run.planned.yaml", out)
        if name == "adapter_model.bin":
            (checkpoint / "adapter_model.safetensors").unlink()
        torch.save({"a": Hostile()}, checkpoint / name)
        facts = json.loads((checkpoint / "unsloth_accel.json").read_text(encoding="utf-8"))
        write_record(checkpoint, **{key: value for key, value in facts.items() if key != "files"})
        words = ("training.resume=true", "training.max_steps=4", f"output_dir={out}", "training.save_strategy=no")
        status = main(str(out / "run.planned.yaml"), *words)
        print(json.dumps([name, status, (place / "run").exists()]), flush=True)
