"""Train three steps of each checkpoint in MODELS, one after the other, in the processes that were launched.

train_families.py MODELS ROWS OUT: one model in each directory of MODELS; writes OUT/<model>.json, adapters below OUT.
"""

import json
import sys
from pathlib import Path

import unsloth_accel  # isort: skip
from unsloth import FastLanguageModel  # isort: skip
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

from unsloth_accel.adapters.environment import rank, world_size

ROWS_PER_STEP = 8
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def train(directory: Path, rows: str, out: Path) -> None:
    model, tokenizer = FastLanguageModel.from_pretrained(
        str(directory), max_seq_length=96, dtype="float32", load_in_4bit=False
    )
    model = FastLanguageModel.get_peft_model(model, r=16, target_modules=PROJECTIONS)
    args = SFTConfig(
        output_dir=str(out),
        max_steps=3,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=ROWS_PER_STEP // 4 // world_size(),
        learning_rate=1e-2,
        bf16=False,
        use_cpu=True,
        max_length=96,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    data = load_dataset("json", data_files=rows, split="train")
    trainer = unsloth_accel.adapt(SFTTrainer(model=model, processing_class=tokenizer, args=args, train_dataset=data))
    trainer.train()
    trainer.save_model(str(out / directory.name))
    if rank() == 0:
        steps = [entry for entry in trainer.state.log_history if "loss" in entry]
        found = {"wrapped": type(trainer.model_wrapped).__name__, "steps": steps}
        (out / f"{directory.name}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    models, data, to = sys.argv[1:]
    Path(to).mkdir(exist_ok=True)
    for one in sorted(Path(models).iterdir()):
        train(one, data, Path(to))
