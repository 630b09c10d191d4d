"""Random run files with faults in them, and the fixes of their problems, applied as a reader would."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from unsloth_accel.errors import Problem

TRAINING: dict[str, Sequence[Any]] = {
    "optim": ("adamw_torch", "adam", "adamw_8bits", "galore_adamw", "lomo", "adamw_anyprecision", "sgd", "Adafactor"),
    "optim_args": ("a=b", "fused"),
    "lr_scheduler_type": ("cosine", "cosin", "cosine_with_min_lr", "cosine_with_minlr", "wsd", "greedy", "polynomial"),
    "lr_scheduler_kwargs": ({"min_lr": 1e-6}, {"min_lr": 0.0, "min_lr_rate": 0.1}, {"foo": 1}, {"num_cycle": 2}, "bad"),
    "eval_strategy": ("no", "steps", "epoch", "step", "best", False),
    "save_strategy": ("no", "steps", "epoch", "best", "epochs", None),
    "logging_strategy": ("steps", "epoch", "stpes"),
    "hub_strategy": ("end", "every"),
    "loss_type": ("nll", "dft", "foo", "chunked"),
    "packing_strategy": ("bfd", "bfd-requeue", "ffd"),
    "train_sampling_strategy": ("random", "group_by_lenght"),
    "debug": ("", "underflow"),
    "eval_steps": (0, 1, 3, 0.1, 2.5, 500),
    "save_steps": (0, 1, 4, 0.1, 2.5, 500),
    "logging_steps": (0, 1, 5, 0.1, 2.5),
    "load_best_model_at_end": (True, False),
    "metric_for_best_model": ("loss", "eval_loss", "eval_acuracy", "f1"),
    "learning_rate": (-1, 0, 2e-4, 3, "high", float("nan")),
    "weight_decay": (-0.1, 0.1),
    "adam_beta1": (-1, 0.9, 1),
    "adam_beta2": (0.99, 1.0),
    "adam_epsilon": (-1, 1e-8),
    "warmup_steps": (-1, 0.1, 5),
    "label_smoothing_factor": (0.1, 2),
    "seed": (-1, 42, 2**32),
    "dataloader_num_workers": (-1, 2),
    "dataloader_prefetch_factor": (0, 2),
    "dataloader_persistent_workers": (True,),
    "torch_empty_cache_steps": (0, 2),
    "bf16": (True, False),
    "fp16": (True, False),
    "tf32": (True,),
    "ddp_backend": ("gloo", "glo", "nccl"),
    "max_steps": (10, 0, -1, 10**12, "ten"),
    "num_train_epochs": (1, 0, -1, float("inf")),
    "per_device_train_batch_size": (0, 1, 3, 8),
    "gradient_accumulation_steps": (0, 1, 3),
    "per_device_eval_batch_size": (0, 2),
    "early_stopping_patience": (0, 2),
    "early_stopping_threshold": (0.1, -1),
    "save_minutes": (5, -1),
    "resume": (False, "maybe"),
    "save_only_model": (True,),
    "torch_compile": (True,),
    "ddp_find_unused_parameters": (True,),
    "packing": (True, False),
    # Names of other releases, and of other places.
    "group_by_length": (True, False),
    "warmup_ratio": (0.1,),
    "logging_dir": ("logs",),
    "evaluation_strategy": ("epoch",),
    "no_cuda": (True,),
    "max_seq_length": (512,),
    "lora_alpha": (16,),
    "learning_rat": (1e-4,),
    "gradient_checkpointing": (True,),
    "report_to": ("none",),
    "auto_find_batch_size": (True,),
}
OTHERS: dict[str, Sequence[Any]] = {
    "batch.global_size": (4, 7, 0, 12, 1_000_003),
    "batch.balance": ("tokens", "rows", "token"),
    "model.max_seq_length": (512, 500, 0, 10**10),
    "model.load_in_4bit": (False, "yes please"),
    "model.dtype": (None, "bf16", "float32", "bfloat16"),
    "model.gradient_checkpointing": (True, False, "unsloht"),
    "lora.r": (8, 0, "many"),
    "lora.alpha": (16, 0),
    "lora.dropout": (0.1, 1.5),
    "lora.target_modules": ("all-linear", ["q_proj"], "q_proj", []),
    "lora.random_state": (1, -1),
    "lora.rr": (8,),
    "data.train_on": ("all", "responses", "response"),
    "data.format": ("auto", "chats"),
    "data.streaming": (True, False),
    "data.columns": ({"message": "x"}, {"messages": "x"}),
    "data.eval_path": (None, "eval.jsonl"),
    "distributed.num_processes": (1, 2, 3, "auto", 0, "all"),
    "distributed.strategy": ("auto", "ddp", "single", "fsdp", "fsdp2"),
    "distributed.device": ("cpu", "gpu", "auto"),
    "evaluation.max_rows": (0, 8),
    "evaluation.samples": (-1, 2),
    "evaluation.exact_match": (True, False),
    "logging.report_to": ("none", "wandbb", ["none"], ["tensorbord"], [], None, "tensorboard"),
    "logging.hang_after": (1, 60),
    "logging.rank_sync_steps": (-1, 5),
    "method": ("sft", "sftt"),
    "learning_rate": (1e-4,),
    "epochs": (2,),
    "lora_rank": (8,),
    "dataset": ("train.jsonl",),
    "outputdir": ("x",),
}


def random_run(seed: int, model: str = "tiny") -> dict[str, Any]:
    """Return a run's nested keys and values, of which up to six are drawn."""
    draw = random.Random(seed)
    values: dict[str, Any] = {
        "model": {"name": model, "max_seq_length": 512},
        "data": {"path": "train.jsonl", "eval_path": "eval.jsonl"},
        "distributed": {"device": "cpu", "num_processes": 2},
        "training": {},
        "output_dir": "out",
    }
    pool = {**{f"training.{key}": choices for key, choices in TRAINING.items()}, **OTHERS}
    for key in draw.sample(sorted(pool), draw.randint(1, 6)):
        put(values, key, draw.choice(pool[key]))
    return values


def put(values: dict[str, Any], key: str, value: Any) -> None:
    """Give a dotted key a value."""
    *sections, name = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    values[name] = value


def take(values: dict[str, Any], key: str) -> Any:
    """Remove a dotted key, and return its value."""
    *sections, name = key.split(".")
    for section in sections:
        values = values.get(section, {})
    return values.pop(name, None)


def fixed(values: dict[str, Any], problem: Problem) -> dict[str, Any] | None:
    """Return `values` after the first way that a problem's fix names; None where it is left to the reader."""
    made = copy.deepcopy(values)
    first, _, more = problem.fix.partition(" Then also: ")
    first = first.rpartition(" So: ")[2]
    meant = re.match(r"did you mean ([\w.-]+)\?", first)
    moved = re.match(r"set ([\w.]+) instead", first)
    listed = re.match(r"(?:use )?one of: (.+?)\.?$", first)
    unknown = re.search("unknown (key|column)", problem.consequence)
    if unknown and not meant and not first.startswith("remove it"):
        take(made, problem.key)  # another one takes its place
    if (meant and unknown) or moved:
        target = (meant or moved)[1]  # type: ignore[index]
        value = take(made, problem.key)
        if moved:
            return made  # it has its value there
        put(made, target, value)
    elif meant:
        if isinstance(_get(values, problem.key), list | dict):
            return None
        put(made, problem.key, meant[1])
    elif first.startswith("remove it"):
        take(made, problem.key)
    elif listed:
        put(made, problem.key, _parsed(listed[1].split(", ")[0]))
    elif not _assign(made, first):
        number = re.match(r"(?:give )?(\d+)(?:,| or more| minutes)", first)
        if not number:
            return None
        put(made, problem.key, int(number[1]))
    for one in more.split("; ") if more else ():
        if not _assign(made, one):
            return None
    return made


def _assign(values: dict[str, Any], text: str) -> bool:
    """Apply `key: value`, or several with ` and ` between them; what follows an `or` is another way."""
    text = re.split(r",? or |, ", text)[0] if "{" not in text else text
    pairs = [re.fullmatch(r"([\w.]+)(?:: |=)(.+)", one) for one in text.split(" and ")]
    if not all(pairs):
        return False
    for pair in pairs:
        assert pair is not None
        put(values, pair[1], _parsed(pair[2]))
    return True


def _parsed(text: str) -> Any:
    """Return a value as a run's reader takes it."""
    found = OmegaConf.create(f"value: {text}").value
    return OmegaConf.to_container(found) if OmegaConf.is_config(found) else found


def _get(values: dict[str, Any], key: str) -> Any:
    section, _, name = key.partition(".")
    found = values.get(section)
    return found.get(name) if name and isinstance(found, dict) else found
