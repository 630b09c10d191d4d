"""One of the processes that train many cells on several GPUs, in step: `python -m benchmarks.loaded_jobs` tells how.

accelerate launch --config_file RUN_DIR/accelerate.yaml -m benchmarks.loaded_ranks RUN_DIR/run.planned.yaml
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import unsloth_accel  # noqa: F401  (first: sets what must be set before unsloth is imported)
from benchmarks.pauses import wait_at_gate

JOB = "BENCHMARK_JOB"
"""Variable with the file of what to train, which `benchmarks.loaded_jobs` writes; beside it the figures go."""


def main(run_yaml: str) -> int:
    import unsloth  # noqa: F401  # isort: skip
    import torch
    import trl  # noqa: F401
    from accelerate.utils import broadcast_object_list, gather_object

    from benchmarks.loaded import Cell, in_this_process
    from unsloth_accel.adapters import environment
    from unsloth_accel.config.read_run import load
    from unsloth_accel.methods import METHODS
    from unsloth_accel.training import sft
    from unsloth_accel.training.trainer_config import trainer_config

    wait_at_gate()
    job = json.loads(Path(os.environ[JOB]).read_text(encoding="utf-8"))
    run = load(run_yaml)
    assert run.strategy is not None
    os.environ |= run.strategy.variables(in_4bit=run.model.load_in_4bit)
    # Before the model: with it the processes form their group, and a strategy that divides the weights loads a part.
    trainer_config(run, METHODS[run.method], sft.config_fields(run))
    stop, lines = Path(job["stop"]), Path(job["figures"])

    def may_go_on() -> bool:
        """Whether rank 0 saw no word of the parent's that it is enough."""
        return bool(broadcast_object_list([not stop.exists()])[0])

    cells = [Cell(**one) for one in job["cells"]]
    for _, figures in in_this_process(
        cells, Path(job["work"]), steps=job["steps"], warm_up=job["warm_up"], may_go_on=may_go_on
    ):
        errors = [error for error in gather_object([figures.get("error")]) if error]
        if environment.rank() == 0:
            told: dict[str, Any] = figures | ({"error": errors[0]} if errors else {})
            with lines.open("a", encoding="utf-8") as file:
                file.write(json.dumps(told) + "\n")
    if torch.cuda.is_available():
        torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
