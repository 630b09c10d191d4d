"""How far the losses of DPO differ between two runs that compute the same: in bfloat16, and in float32.

    python -m benchmarks.pair_noise        (writes benchmarks/results/pair-noise-cpu.json; some minutes of one core)

Unsloth and TRL in one process on a CPU, random words as in benchmarks.pairs, two micro-batches to a step. The second
run has the same rows in each step, and others of them in its micro-batches: another order of sums, and other padding.
A loss of pairs is a difference of four sums over some hundred tokens, each of which bfloat16 rounds otherwise.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.pair_rows import write_answers
from benchmarks.pairs import shared_fields
from benchmarks.random_checkpoint import byte_tokenizer, config_values
from benchmarks.tables import RESULTS
from unsloth_accel.adapters.saving import versions
from unsloth_accel.files import write_atomically
from unsloth_accel.verify.verdict import largest

RESULT = RESULTS / "pair-noise-cpu.json"
SHAPE = {"hidden_size": 256, "num_hidden_layers": 8, "intermediate_size": 512}
ROWS, ACCUMULATION, STEPS, LENGTH = 4, 2, 8, 256
LEARNING_RATE = 1e-4
PRECISIONS = ("bfloat16", "float32")


def train(precision: str, *, mixed: bool, directory: Path) -> dict[str, list[float]]:
    """Train a random model, and return each step's loss and gradient norm."""
    import unsloth  # noqa: F401  # isort: skip  (TRL alone has no log-probabilities on a CPU)
    import torch
    from datasets import load_dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    data = directory / "rows.jsonl"
    sizes = [LENGTH // 2 + 13 * number % (LENGTH // 2) for number in range(ROWS * ACCUMULATION * STEPS)]
    write_answers(data, "dpo", sizes, mixed=ROWS if mixed else 0)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config_values("tiny") | SHAPE))
    model = get_peft_model(model.to(getattr(torch, precision)), LoraConfig(r=16, target_modules="all-linear"))
    fields = shared_fields() | {"learning_rate": LEARNING_RATE, "optim": "adamw_torch"}
    config = DPOConfig(
        output_dir=str(directory / "out"),
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        use_cpu=True,
        bf16=precision == "bfloat16",
        max_length=LENGTH,
        max_steps=STEPS,
        per_device_train_batch_size=ROWS,
        gradient_accumulation_steps=ACCUMULATION,
        **fields,
    )
    rows = load_dataset("json", data_files=str(data), split="train", cache_dir=str(directory / "cache"))
    trainer = DPOTrainer(model=model, processing_class=byte_tokenizer(), train_dataset=rows, args=config)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    return {name: [float(log[name]) for log in logs] for name in ("loss", "grad_norm")}


def main() -> None:
    report: dict[str, Any] = {
        "command": "python -m benchmarks.pair_noise",
        "shape": SHAPE,
        "settings": {"rows": ROWS, "accumulation": ACCUMULATION, "length": LENGTH, "learning_rate": LEARNING_RATE},
        "versions": versions(),
    }
    for precision in PRECISIONS:
        runs = []
        for mixed in (False, True):
            with tempfile.TemporaryDirectory() as directory:
                runs.append(train(precision, mixed=mixed, directory=Path(directory)))
        one, other = runs
        report[precision] = {
            "runs": runs,
            "loss_absolute": max(abs(a - b) for a, b in zip(one["loss"], other["loss"], strict=True)),
            "first_grad_norm": largest(one["grad_norm"][:1], other["grad_norm"][:1]),
            "grad_norm": largest(one["grad_norm"], other["grad_norm"]),
        }
        print(precision, json.dumps(report[precision]), flush=True)
    write_atomically(RESULT, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
