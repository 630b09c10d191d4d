"""A user's script with its two lines and all that such scripts save at their end, on every rank.

own_script.py MODEL OUT: trains two steps of eight rows; each rank writes OUT/rank-N.json, what it wrote itself and what
each call returned or raised. Rank 1 alone has chosen how many blocks keep their activations.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import unsloth_accel

from unsloth import FastLanguageModel  # isort: skip
from unsloth.models._utils import skip_checkpointing  # isort: skip
import safetensors.torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from unsloth_accel.adapters import one_writer

name, out = sys.argv[1], Path(sys.argv[2])
model, tokenizer = FastLanguageModel.from_pretrained(name, max_seq_length=96, dtype="float32", load_in_4bit=False)
model = FastLanguageModel.get_peft_model(model, r=8, target_modules=["q_proj", "v_proj"])
if os.environ["RANK"] == "1":
    skip_checkpointing(model, 2)  # as get_peft_model does on a GPU
trainer = SFTTrainer(
    model=model,
    processing_class=tokenizer,
    train_dataset=Dataset.from_list([{"text": "abc def ghi " * (1 + row % 5)} for row in range(16)]),
    args=SFTConfig(
        output_dir=str(out),
        max_steps=2,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        bf16=False,
        use_cpu=True,
        max_length=96,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    ),
)
trainer = unsloth_accel.observe(unsloth_accel.adapt(trainer, global_batch=8, rehearse=True))
trainer.train()

rank = int(os.environ["RANK"])
written: list[str] = []


def opened(event: str, values: tuple[Any, ...]) -> None:
    if event == "open" and str(values[0]).startswith(str(out)) and values[2] & (os.O_WRONLY | os.O_RDWR):
        written.append(Path(values[0]).parent.name)


def serialized(*arguments: Any, **named: Any) -> Any:
    written.append(Path(arguments[1]).parent.name)
    return serialize(*arguments, **named)


sys.addaudithook(opened)
serialize, safetensors.torch.serialize_file = safetensors.torch.serialize_file, serialized  # of which Python isn't told


def merged() -> Any:
    adapter = unsloth_accel.save(trainer, out / "adapter")
    return unsloth_accel.merge(adapter, out / "merged")


def alone() -> None:
    if rank == 0:
        tokenizer.save_pretrained(out / "alone")


CALLS: dict[str, Callable[[], Any]] = {
    "model": lambda: model.save_pretrained(str(out / "model")),
    "tokenizer": lambda: tokenizer.save_pretrained(str(out / "tokenizer")),
    "unsloths": lambda: model.save_pretrained_merged(str(out / "unsloths"), tokenizer),
    "trainer": lambda: trainer.save_model(str(out / "trainer")),
    "merged": merged,
    "alone": alone,
}
found: dict[str, Any] = {"notes": str(one_writer._place)}
for what, call in CALLS.items():
    try:
        told = str(call())
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
    there = [path.name for path in (out / what).glob("*")]  # at once, as a script goes on
    found[what] = {"told": told, "there": there, "wrote": any(f".{what}." in f".{name}." for name in written)}
(out / f"rank-{rank}.json").write_text(json.dumps(found), encoding="utf-8")
