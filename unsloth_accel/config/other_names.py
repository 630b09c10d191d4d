"""Where a key belongs that stands in a wrong section, or has the name that it has elsewhere or had before; names of
others' that are taken as they are."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig

from .run_config import RunConfig

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_ELSEWHERE_CALLED = {
    **dict.fromkeys(("model_name_or_path", "model_name", "model_id", "base_model", "base_model_name"), "model.name"),
    "pretrained_model_name_or_path": "model.name",
    **dict.fromkeys(("max_seq_len", "cutoff_len", "sequence_len", "seq_length"), "model.max_seq_length"),
    **dict.fromkeys(("torch_dtype", "compute_dtype"), "model.dtype"),
    **dict.fromkeys(("use_4bit", "qlora"), "model.load_in_4bit"),
    "enable_thinking": "data.chat_template_kwargs",
    **dict.fromkeys(("lora_r", "lora_rank", "rank"), "lora.r"),
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    **dict.fromkeys(("lora_target_modules", "lora_target", "modules"), "lora.target_modules"),
    **dict.fromkeys(("dataset", "datasets", "dataset_name", "dataset_path", "train_file", "train_path"), "data.path"),
    **dict.fromkeys(("eval_dataset", "validation_file", "eval_file", "val_path"), "data.eval_path"),
    **dict.fromkeys(("batch_size", "global_batch_size", "train_batch_size"), "batch.global_size"),
    **dict.fromkeys(("micro_batch_size", "micro_batch", "per_device"), "training.per_device_train_batch_size"),
    **dict.fromkeys(("per_device_batch_size", "per_gpu_train_batch_size"), "training.per_device_train_batch_size"),
    "per_gpu_eval_batch_size": "training.per_device_eval_batch_size",
    **dict.fromkeys(("gradient_accumulation", "grad_accum", "accumulation"), "training.gradient_accumulation_steps"),
    **dict.fromkeys(("lr", "learn_rate"), "training.learning_rate"),
    **dict.fromkeys(("epochs", "num_epochs"), "training.num_train_epochs"),
    "steps": "training.max_steps",
    **dict.fromkeys(("optimizer", "optimiser"), "training.optim"),
    **dict.fromkeys(("lr_scheduler", "scheduler"), "training.lr_scheduler_type"),
    **dict.fromkeys(("gpus", "num_gpus", "nproc_per_node", "world_size"), "distributed.num_processes"),
    "evaluation_strategy": "training.eval_strategy",
    "overwrite_output_dir": "training.overwrite",
    "push_to_hub_token": "training.hub_token",
    "push_to_hub_model_id": "training.hub_model_id",
    "include_inputs_for_metrics": "training.include_for_metrics",
    **dict.fromkeys(("eval_steps_per_epoch", "val_steps"), "training.eval_steps"),
    "out_dir": "output_dir",
}
"""Names in other projects and in older releases, and the key that it is here."""
_GONE = {
    "logging_dir": "remove it; for TensorBoard export TENSORBOARD_LOGGING_DIR={value}",
    "save_safetensors": "remove it: checkpoints are safetensors",
    "half_precision_backend": "remove it",
    "fp16_backend": "remove it",
    "fp16_opt_level": "remove it: apex is no longer used",
    "jit_mode_eval": "remove it",
    "use_ipex": "remove it",
    "use_mps_device": "remove it",
    "tpu_num_cores": "remove it",
    "past_index": "remove it",
    "mp_parameters": "remove it",
    "ray_scope": "remove it",
    "torchdynamo": "remove it; it is training.torch_compile_backend now",
    "include_tokens_per_second": "remove it: tokens per second are always counted",
    "dataset_batch_size": "remove it",
    "chars_per_token": "remove it",
    "num_of_sequences": "remove it",
    "split_batches": "remove it: batch.global_size holds over all processes",
    "dispatch_batches": "remove it",
    "ref_model": "remove it: with LoRA the base model itself is the reference",
    "ref_model_name_or_path": "remove it: with LoRA the base model itself is the reference",
    "ref_model_init_kwargs": "remove it: with LoRA the base model itself is the reference",
}
"""Fields that transformers or TRL had, by what is to be done now; `{value}` is the one given."""


SPELT = {
    "lora.lora_alpha": "lora.alpha",
    "lora.lora_dropout": "lora.dropout",
    "training.chat_template_path": "model.chat_template",
    "training.chat_template_kwargs": "data.chat_template_kwargs",
}
"""Keys as `get_peft_model` and TRL's configs spell them, and as they are here."""


def spelt_here(values: DictConfig) -> DictConfig:
    """Return `values`, a run's keys, with the names of Unsloth and TRL replaced by those that they have here.

    Where both are given nothing is replaced: one of them is told as unknown, or as set elsewhere.
    """
    for theirs, own in SPELT.items():
        section, _, name = theirs.partition(".")
        target, _, key = own.partition(".")
        given = _section(values, section)
        if given is None or name not in given or (target in values and _section(values, target) is None):
            continue
        if key in (_section(values, target) or ()):
            continue
        values = copy.deepcopy(values)
        node = values[section]._get_node(name)
        del values[section][name]
        if target not in values:
            values[target] = {}
        values[target]._set_item_impl(key, node)
    return values


def _section(values: DictConfig, name: str) -> DictConfig | None:
    node = values._get_node(name) if name in values else None
    sound = isinstance(node, DictConfig) and not node._is_none() and not node._is_missing()
    return node if sound and isinstance(node, DictConfig) else None


def gone(key: str, value: Any) -> str | None:
    """Return what is to be written now in the place of a field that transformers or TRL no longer has."""
    if key == "warmup_ratio":  # a number below 1 is a share of all steps
        return f"training.warmup_steps: {value}"
    if key == "no_cuda":
        return "distributed.device: cpu" if value is True else "remove it"
    if key in ("group_by_length", "adafactor"):
        field = "optim: adafactor" if key == "adafactor" else f"train_sampling_strategy: {key}"
        return f"training.{field}" if value is True else "remove it"
    return _GONE[key].format(value=value) if key in _GONE else None


def belongs(key: str, training: Iterable[str], elsewhere: Mapping[str, str]) -> str | None:
    """Return the dotted key that `key` is the last part of, or that it has another name for; None where there is none,
    or several. `training` are its fields, `elsewhere` those of them that are set in another section."""
    if key in elsewhere:
        return elsewhere[key] if " and " not in elsewhere[key] else None
    if key in training:
        return f"training.{key}"
    found = [name for name in _own_keys() if name.rpartition(".")[2] == key]
    return found[0] if len(found) == 1 else _ELSEWHERE_CALLED.get(key)


def _own_keys() -> list[str]:
    """Return the dotted keys of a run's sections."""
    return [
        f"{section.name}.{one.name}"
        for section in dataclasses.fields(RunConfig)
        if isinstance(section.default_factory, type) and dataclasses.is_dataclass(section.default_factory)
        for one in dataclasses.fields(cast("type[DataclassInstance]", section.default_factory))
    ]
