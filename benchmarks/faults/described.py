"""The run.yaml of a trial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .trial import EVALUATE, SAVE, STEPS, Trial

ROOT = Path(__file__).resolve().parent.parent.parent
SMOLLM2 = ROOT / "models" / "SmolLM2-135M-Instruct"


def described(trial: Trial, work: Path, device: str, output_dir: Path) -> dict[str, Any]:
    """Return the description; the model and the rows are in `work`."""
    model, rows = (SMOLLM2, 1) if trial.model == "smollm2" else (work / trial.model, 2)
    values: dict[str, Any] = {
        "model": {"name": str(model), "max_seq_length": 64, "load_in_4bit": False},
        "data": {"path": str(work / "rows.jsonl"), "eval_path": str(work / "held-out.jsonl")},
        "batch": {"global_size": rows * trial.processes},
        "distributed": {"strategy": trial.strategy, "num_processes": trial.processes},
        "training": {
            "max_steps": STEPS,
            "save_strategy": "steps",
            "save_steps": SAVE,
            "save_total_limit": 2,
            "eval_strategy": "steps",
            "eval_steps": EVALUATE,
            "logging_steps": 1,
            "learning_rate": 1e-3,
        },
        "logging": {"progress": False},
        "output_dir": str(output_dir),
    }
    if device == "cpu":
        values["distributed"]["device"] = "cpu"
    for section, given in trial.settings.items():
        values[section] = values.get(section, {}) | given
    return values
