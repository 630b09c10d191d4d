"""GRPO by the trainer that Unsloth makes on GPUs, under enable_multi_gpu and enable_grpo_support: MODEL OUTPUT.

On a CPU Unsloth leaves TRL's trainers as they are until `unsloth.models` is imported, which rewrites them.
"""

import json
import sys
from pathlib import Path

# isort: off
import unsloth_accel as ump
from unsloth import FastLanguageModel
import unsloth.models  # noqa: F401  (it rewrites TRL's trainers)
import torch
import trl
from datasets import Dataset
from transformers import Trainer
# isort: on


def evens(completion_ids: list[list[int]], **columns: object) -> list[float]:
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


class Early(Trainer):
    def predict(self, *arguments: object, **named: object) -> object:  # type: ignore[override]
        return super().predict(*arguments, **named)  # type: ignore[arg-type]


OWN = [(trl.GRPOTrainer, "train"), (trl.DPOTrainer.__mro__[1], "evaluate"), (Early, "predict"), (Trainer, "train")]


def methods() -> list[object]:
    return [vars(kind).get(name) for kind, name in OWN]


model_name, output = sys.argv[1:]
before = methods()
ump.enable_grpo_support()
ump.enable_multi_gpu(batch_size_per_gpu=2)
once = methods()
model, tokenizer = FastLanguageModel.from_pretrained(
    model_name, max_seq_length=64, load_in_4bit=False, dtype=torch.float32
)
model = FastLanguageModel.get_peft_model(model, r=4)


class Late(Trainer):
    def train(self, *arguments: object, **named: object) -> object:  # type: ignore[override]
        return super().train(*arguments, **named)  # type: ignore[arg-type]


late = vars(Late)["train"]
args = trl.GRPOConfig(
    output_dir=output,
    max_steps=2,
    num_generations=4,
    max_completion_length=4,
    gradient_accumulation_steps=2,
    optim="adamw_torch",
    report_to="none",
    save_strategy="no",
    use_cpu=True,
    bf16=False,
)
trainer = trl.GRPOTrainer(
    model=model,
    processing_class=tokenizer,
    reward_funcs=evens,
    train_dataset=Dataset.from_list([{"prompt": f"Question {number}?"} for number in range(16)]),
    args=args,
)
trainer.train()
callbacks = [type(one).__name__ for one in trainer.callback_handler.callbacks]
found = {
    "trainer": type(trainer).__name__,
    "own_train": "train" in vars(type(trainer)),
    "adapted": ump.get_multi_gpu_status()["adapted_trainers"],
    "steps": trainer.state.global_step,
    "guards": callbacks.count("Guard"),
    "watched": callbacks.count("Completions"),
    "batch": trainer.args.per_device_train_batch_size,
    "observed": callbacks.count("Throughput"),
    "late": vars(Late)["train"] is not late,
    "wrapped": [a is not b for a, b in zip(before, once, strict=True)],
    "wrapped_once": [a is b for a, b in zip(once, methods(), strict=True)],
}
ump.disable_multi_gpu()
found["restored"] = [a is b for a, b in zip(before, methods(), strict=True)] + [vars(Late)["train"] is late]
if trainer.args.process_index == 0:
    (Path(output) / "found.json").write_text(json.dumps(found), encoding="utf-8")
