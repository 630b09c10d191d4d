"""The YAML of `accelerate config`, which says how a training is launched, and nothing of the training itself."""

from __future__ import annotations

from collections.abc import Mapping

from .keys import Chooses, Covered, Entry, Tool, Untranslated, alike
from .shared import FP8, ON_CPU, SHARDING

_NO_OTHER = "is for other systems; launch runs GPUs or a CPU of one machine."


_KEYS: Mapping[str, Entry] = {
    "num_processes": Covered(
        "a factor of batch.global_size; launch starts one process per visible GPU",
        "a factor of `batch.global_size`; launch starts one process per visible GPU",
    ),
    "distributed_type": Chooses(
        {kind: {} for kind in ("NO", "MULTI_GPU", "MULTI_CPU", "FSDP", "DEEPSPEED")},
        "accelerate's plugin for it isn't used: unsloth-accel plan run.yaml shows the strategies that there are.",
        SHARDING,
    ),
    "mixed_precision": Chooses(
        {"bf16": {"training.bf16": True}, "fp16": {"training.fp16": True}, "no": {"training.bf16": False}}, FP8.reason
    ),
    "use_cpu": ON_CPU,
    "num_machines": Untranslated("launch runs on one machine: start it on each with a script of your own.", off=(1,)),
    "gpu_ids": Chooses({"all": {}}, "export CUDA_VISIBLE_DEVICES=…, which names the GPUs to be used."),
    **alike("fsdp_config deepspeed_config", Covered(SHARDING)),
    **alike(
        "compute_environment debug machine_rank main_process_ip main_process_port main_training_function rdzv_backend "
        "same_network enable_cpu_affinity",
        Covered("launch writes an accelerate config of its own"),
    ),
    **alike("tpu_env tpu_use_cluster tpu_use_sudo", Untranslated(_NO_OTHER, off=([], False))),
    "downcast_bf16": Untranslated(_NO_OTHER, off=("no", False)),
    "megatron_lm_config": Untranslated("Megatron divides models otherwise; the plan decides here.", off=({},)),
    "dynamo_config": Untranslated("Unsloth compiles what it replaces: leave it out.", off=({},)),
    **alike("ipex_config mpirun_config", Untranslated(_NO_OTHER, off=({},))),
    "fp8_config": Untranslated(FP8.reason, off=({},)),
}

ACCELERATE = Tool(
    name="accelerate",
    link="https://github.com/huggingface/accelerate",
    needs=frozenset({"distributed_type", "compute_environment"}),
    marks=frozenset({"num_processes", "mixed_precision", "use_cpu", "distributed_type", "num_machines"}),
    keys=_KEYS,
    trains=False,
)
