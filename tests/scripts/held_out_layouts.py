"""Held-out losses of many kinds of trainers, by rows per device, and what they should be: OUT/found.json."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import unsloth_accel

import unsloth  # isort: skip
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, DataCollatorForSeq2Seq, Trainer, TrainingArguments
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from unsloth_accel.adapters import environment

TINY, OUT = sys.argv[1:3]
SHARED: dict[str, Any] = {
    "output_dir": OUT,
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
    "max_steps": 1,
    "per_device_train_batch_size": 1,
}
model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
    TINY, max_seq_length=96, dtype=torch.float32, load_in_4bit=False
)
model = unsloth.FastLanguageModel.get_peft_model(model, r=8, lora_alpha=16, use_gradient_checkpointing=False)


def move() -> None:
    """Move the adapter away from where it began, where all preferences are alike."""
    torch.manual_seed(3)
    for name, weight in model.named_parameters():
        if "lora_B.default" in name:
            weight.data.normal_(std=0.1)


texts = ["abcdefgh" * (1 + (3 * number) % 7) + "xyz"[number % 3] for number in range(7)]
rows = [tokenizer(text)["input_ids"] for text in texts]
tokenised = Dataset.from_list(
    [{"input_ids": row, "labels": [-100] * (2 * n) + row[2 * n :]} for n, row in enumerate(rows)]
)


def of_each_row(model: Any) -> float:
    """The mean over all tokens that are learned, computed row by row."""
    model.eval()
    total, count = 0.0, 0
    for row in tokenised:
        labels = torch.tensor([row["labels"]])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits.float()
        lost = torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], reduction="sum")
        total, count = total + float(lost), count + int((labels[0, 1:] != -100).sum())
    return total / count


def divided(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    logits = outputs.logits[:, :-1].flatten(0, 1).float()
    return torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum") / num_items_in_batch


def right(predicted: Any) -> dict[str, Any]:
    return {"labels": predicted.label_ids.tolist(), "logits": predicted.predictions[:, 0].tolist()}


def trainers() -> Iterator[tuple[str, Any, Any]]:
    import os

    os.environ["UNSLOTH_RETURN_LOGITS"] = "1"
    expected = of_each_row(model)
    os.environ["UNSLOTH_RETURN_LOGITS"] = "0"
    for padding_free in (False, True):
        config = SFTConfig(
            **SHARED,
            padding_free=padding_free,
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=96,
        )
        made = SFTTrainer(
            model=model, processing_class=tokenizer, args=config, train_dataset=tokenised, eval_dataset=tokenised
        )
        yield f"sft, padding_free={padding_free}", made, expected
    made = Trainer(
        model=model,
        args=TrainingArguments(**SHARED, prediction_loss_only=True, dataloader_drop_last=True),
        train_dataset=tokenised,
        eval_dataset=tokenised,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        compute_loss_func=divided,
    )
    os.environ["UNSLOTH_RETURN_LOGITS"] = "1"
    yield "compute_loss_func", made, expected
    os.environ["UNSLOTH_RETURN_LOGITS"] = "0"
    pairs = [{"prompt": "a", "chosen": text, "rejected": text[::-1]} for text in texts]
    config = DPOConfig(**SHARED, max_length=96)
    preferences = Dataset.from_list(pairs)
    made = DPOTrainer(
        model=model, processing_class=tokenizer, args=config, train_dataset=preferences, eval_dataset=preferences
    )
    move()
    yield "dpo", made, None
    torch.manual_seed(3)
    head = AutoModelForSequenceClassification.from_pretrained(TINY, num_labels=3, dtype=torch.float32)
    head.config.pad_token_id = tokenizer.pad_token_id
    for kind, labels in {"single_label": [0, 1, 2, 0, 1], "regression": [[0.5, 2.0, n] for n in range(5)]}.items():
        head.config.problem_type = f"{kind}_classification" if kind == "single_label" else kind
        classified = Dataset.from_list(
            [{"input_ids": row, "labels": label} for row, label in zip(rows, labels, strict=False)]
        )
        with torch.no_grad():
            each = [
                float(head(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss)
                for row in classified
            ]
        for metrics in (None, right):
            made = Trainer(
                model=head,
                args=TrainingArguments(**SHARED),
                train_dataset=classified,
                eval_dataset=classified,
                processing_class=tokenizer,
                compute_metrics=metrics,
            )
            yield f"{kind}, metrics={metrics is not None}", made, sum(each) / len(each)


found: dict[str, Any] = {}
for name, trainer, expected in trainers():
    if "--plain" not in sys.argv:
        unsloth_accel.adapt(trainer)
    losses, metrics = [], []
    for rows_per_device in (1, 2, 8):
        trainer.args.per_device_eval_batch_size = rows_per_device
        told = trainer.evaluate()
        losses.append(told["eval_loss"])
        metrics.append([told.get("eval_labels"), told.get("eval_logits")])
    found[name] = {"expected": expected, "losses": losses, "metrics": metrics if metrics[0][0] else None}
if environment.rank() == 0:
    Path(OUT, "found.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
