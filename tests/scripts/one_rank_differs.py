"""Train a run.yaml; rank 1 is given what DIFFERENCE (in the environment) says: another file, or other rows."""

import os
import sys

import unsloth_accel  # noqa: F401
from unsloth_accel.adapters import environment
from unsloth_accel.config.read_run import load
from unsloth_accel.training import process

kind, value = os.environ["DIFFERENCE"].split("=", 1)
different = environment.rank() == 1
if kind == "data.path":
    sys.exit(process.main(sys.argv[1], *([f"data.path={value}"] if different else [])))
environment.show_own_errors_plainly()
trainer = process.build_trainer(load(sys.argv[1]))
if different:
    trainer.train_dataset = trainer.train_dataset.select(range(int(value)))
    trainer.args.learning_rate *= 2
trainer.train()
