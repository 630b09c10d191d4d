"""Advice for a run that is short of memory, cheapest first."""

from __future__ import annotations

from ..config.run_config import RunConfig
from ..strategies import choosable


def advice(run: RunConfig, *, batch: bool = True) -> str:
    """Return overrides of `run` that take less memory per process; without `batch` none that computes fewer rows at
    once, or keeps fewer activations."""
    per_device = int(run.training.get("per_device_train_batch_size", 1))
    found = []
    if batch and run.model.keep_activations not in ("auto", 0):
        found.append("model.keep_activations=0 (all blocks compute theirs again)")
    if batch and per_device > 1:
        found.append(f"training.per_device_train_batch_size={per_device // 2} (the global batch stays)")
    if run.model.gradient_checkpointing != "unsloth":
        found.append("model.gradient_checkpointing=unsloth")
    sharding = next((one for one in choosable(2) if one.shards_weights), None)
    if sharding and run.strategy and not run.strategy.one_process and not run.strategy.shards_weights:
        found.append(f"distributed.strategy={sharding.name} (the GPUs divide the base model)")
    if not run.model.load_in_4bit:
        found.append("model.load_in_4bit=true")
    found.append(f"model.max_seq_length below {run.model.max_seq_length}")
    return "; or ".join(found)
