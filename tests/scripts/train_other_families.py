"""Plan, train two steps of, save and reload a random model of each of `other_models.TRAINED_ALONE`, in one process.

train_other_families.py ROWS OUT: writes models and adapters below OUT, and OUT/<model_type>.json.
"""

import json
import sys
from pathlib import Path

import unsloth_accel  # isort: skip
import unsloth  # noqa: F401  # isort: skip
import torch
from datasets import load_dataset
from other_models import TRAINED_ALONE, values
from peft import PeftModel
from plans import CPU
from transformers import AutoConfig, AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

from benchmarks.random_checkpoint import byte_tokenizer
from unsloth_accel.config.read_run import from_dict
from unsloth_accel.models.build_without_weights import build, describe
from unsloth_accel.models.counted import Counted
from unsloth_accel.models.lora_targets import targets
from unsloth_accel.models.spec import from_config
from unsloth_accel.planning.planner import plan
from unsloth_accel.training.load_model import add_adapter, load_model


def train(model_type: str, rows: str, out: Path) -> None:
    described = values(model_type) | {"vocab_size": 320, "dtype": "float32"}
    base = out / f"{model_type}-base"
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**described)).save_pretrained(base)
    byte_tokenizer().save_pretrained(base)
    spec = from_config(described, name=str(base), counted=Counted.of(describe(build(described, None))))
    asked = {"model": {"name": str(base), "max_seq_length": 64, "dtype": "float32"}, "lora": {"r": 4}}
    decided = plan(from_dict(asked, to_plan=True), CPU, spec)
    model, tokenizer = load_model(decided.run)
    model = add_adapter(model, decided.run)
    args = SFTConfig(
        output_dir=str(out),
        max_steps=2,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        bf16=False,
        use_cpu=True,
        max_length=64,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    data = load_dataset("json", data_files=rows, split="train")
    trainer = unsloth_accel.adapt(SFTTrainer(model=model, processing_class=tokenizer, args=args, train_dataset=data))
    trainer.train()
    trainer.save_model(str(out / model_type))
    tokens = torch.arange(5, 25)[None]
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(out / model_type))
    untrained = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        now, reloaded, before = (one.eval()(input_ids=tokens).logits for one in (trainer.model, again, untrained))
    found = {
        "loss": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "planned": targets(decided.run, spec, on_cpu=True).parameters,
        "trained": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "parameters": spec.num_parameters,
        "of_transformers": untrained.num_parameters(),
        "moved": float((now - before).abs().max()),
        "lost": float((now - reloaded).abs().max()),
    }
    (out / f"{model_type}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    data_file, to = sys.argv[1:]
    for one in TRAINED_ALONE:
        train(one, data_file, Path(to))
