"""The words that accelerate 1.15 knows; `tests/rules` holds them to the installed accelerate."""

from __future__ import annotations

import functools
import importlib.util
import re
from pathlib import Path

from ...models.architectures import ARCHITECTURES

DISTRIBUTED_TYPES = (
    *("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_NPU", "MULTI_MLU", "MULTI_SDAA", "MULTI_MUSA", "MULTI_XPU", "MULTI_HPU"),
    *("MULTI_NEURON", "DEEPSPEED", "FSDP", "XLA", "MEGATRON_LM"),
)
"""`DistributedType` (accelerate/utils/dataclasses.py)."""
SAGEMAKER_TYPES = ("NO", "DATA_PARALLEL", "MODEL_PARALLEL")
ENVIRONMENTS = ("LOCAL_MACHINE", "AMAZON_SAGEMAKER")
PRECISIONS = ("no", "fp8", "fp16", "bf16")
DYNAMO_BACKENDS = (
    *("NO", "EAGER", "AOT_EAGER", "INDUCTOR", "AOT_TS_NVFUSER", "NVPRIMS_NVFUSER", "CUDAGRAPHS", "OFI", "FX2TRT"),
    *("ONNXRT", "TENSORRT", "AOT_TORCHXLA_TRACE_ONCE", "TORCHXLA_TRACE_ONCE", "TVM", "HPU_BACKEND", "NEURON"),
)
SHARDING_STRATEGIES = ("FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD", "HYBRID_SHARD", "HYBRID_SHARD_ZERO2")
WRAP_POLICIES = ("TRANSFORMER_BASED_WRAP", "SIZE_BASED_WRAP", "NO_WRAP")
STATE_DICT_TYPES = ("FULL_STATE_DICT", "SHARDED_STATE_DICT", "LOCAL_STATE_DICT")
BACKWARD_PREFETCHES = ("BACKWARD_PRE", "BACKWARD_POST", "NO_PREFETCH")

TOP_LEVEL_KEYS = {
    *("compute_environment", "distributed_type", "mixed_precision", "use_cpu", "debug", "num_processes"),
    *("machine_rank", "num_machines", "gpu_ids", "main_process_ip", "main_process_port", "rdzv_backend"),
    *("same_network", "main_training_function", "enable_cpu_affinity", "fp8_config", "deepspeed_config"),
    *("fsdp_config", "parallelism_config", "megatron_lm_config", "mpirun_config", "dynamo_config", "downcast_bf16"),
    *("tpu_name", "tpu_zone", "tpu_use_cluster", "tpu_use_sudo", "command_file", "commands", "tpu_vm", "tpu_env"),
}
"""Fields of `ClusterConfig` (accelerate/commands/config/config_args.py)."""
OLD_KEYS = {"fp16", "dynamo_backend"}
"""Keys that `BaseConfig.process_config` still takes and rewrites."""
SAGEMAKER_KEYS = {
    *("compute_environment", "distributed_type", "mixed_precision", "use_cpu", "debug", "ec2_instance_type"),
    *("iam_role_name", "image_uri", "profile", "region", "num_machines", "gpu_ids", "base_job_name"),
    *("pytorch_version", "transformers_version", "py_version", "sagemaker_inputs_file", "sagemaker_metrics_file"),
    *("additional_args", "dynamo_config", "enable_cpu_affinity"),
}
"""Fields of `SageMakerConfig`."""

# What follows: the launcher's options (accelerate/commands/launch.py: launch_command_parser), without their prefix.
FSDP1_TRUTHS = ("forward_prefetch", "use_orig_params", "sync_module_states")
"""Truth values that only version 1 reads."""
FSDP_TRUTHS = (
    *("offload_params", "forward_prefetch", "use_orig_params", "cpu_ram_efficient_loading", "sync_module_states"),
    *("activation_checkpointing", "activation_checkpointing_offload"),
)
FSDP_KEYS = {
    *("version", "min_num_params", "sharding_strategy", "reshard_after_forward", "auto_wrap_policy"),
    *("transformer_layer_cls_to_wrap", "backward_prefetch", "state_dict_type", *FSDP_TRUTHS),
    "ignored_modules",  # no option, but read by accelerate/utils/launch.py: prepare_multi_gpu_env
}
NESTED_KEYS = {
    "dynamo_config": {
        f"dynamo_{name}" for name in ("backend", "mode", "use_fullgraph", "use_dynamic", "use_regional_compilation")
    },
    "fp8_config": {
        *("fp8_backend", "fp8_use_autocast_during_eval", "fp8_margin", "fp8_interval", "fp8_format", "fp8_opt_level"),
        *("fp8_amax_history_len", "fp8_amax_compute_algo", "fp8_override_linear_precision", "fp8_pad_inner_dim"),
        "fp8_enable_fsdp_float8_all_gather",
    },
    "mpirun_config": {"mpirun_hostfile"},
    "parallelism_config": {
        f"parallelism_config_{name}"
        for name in (
            *("dp_replicate_size", "dp_shard_size", "tp_size", "cp_size", "cp_backend", "cp_comm_strategy", "sp_size"),
            *("sp_backend", "sp_seq_length", "sp_seq_length_is_variable", "sp_attn_implementation"),
        )
    },
    "deepspeed_config": {
        *("deepspeed_config_file", "zero_stage", "offload_optimizer_device", "offload_param_device"),
        *("offload_optimizer_nvme_path", "offload_param_nvme_path", "gradient_accumulation_steps"),
        *("gradient_clipping", "zero3_init_flag", "zero3_save_16bit_model", "deepspeed_hostfile"),
        *("deepspeed_exclusion_filter", "deepspeed_inclusion_filter", "deepspeed_multinode_launcher"),
        "deepspeed_moe_layer_cls_names",
    },
    "megatron_lm_config": {
        f"megatron_lm_{name}"
        for name in (
            *("tp_degree", "use_custom_fsdp", "no_load_optim", "eod_mask_loss", "overlap_cpu_optimizer_d2h_h2d"),
            *("no_save_optim", "optimizer_cpu_offload", "use_precision_aware_optimizer", "pp_degree"),
            *("decoder_last_pipeline_num_layers", "num_micro_batches", "sequence_parallelism"),
            *("recompute_activations", "use_distributed_optimizer", "gradient_clipping", "recompute_granularity"),
            *("recompute_method", "recompute_num_layers", "attention_backend", "expert_model_parallel_size"),
            *("context_parallel_size", "attention_dropout", "hidden_dropout", "attention_softmax_in_fp32"),
            *("expert_tensor_parallel_size", "calculate_per_token_loss", "use_rotary_position_embeddings"),
        )
    },
}

_OTHER_LAYERS = {
    *("Llama4TextDecoderLayer", "Ministral3DecoderLayer", "Qwen2MoeDecoderLayer", "Qwen2VLDecoderLayer"),
    *("Qwen2_5_VLDecoderLayer", "Qwen3NextDecoderLayer", "Qwen3VLTextDecoderLayer", "Gemma3nTextDecoderLayer"),
    *("CohereDecoderLayer", "Cohere2DecoderLayer", "GraniteDecoderLayer", "GraniteMoeDecoderLayer"),
    *("FalconDecoderLayer", "FalconH1DecoderLayer", "GlmDecoderLayer", "Glm4DecoderLayer", "OlmoDecoderLayer"),
    *("Olmo2DecoderLayer", "Olmo3DecoderLayer", "OlmoeDecoderLayer", "SmolLM3DecoderLayer", "DeepseekV2DecoderLayer"),
    *("DeepseekV3DecoderLayer", "Starcoder2DecoderLayer", "StableLmDecoderLayer", "GPTNeoXLayer", "GPT2Block"),
    *("BloomBlock", "OPTDecoderLayer", "MptBlock", "Lfm2DecoderLayer"),
}


def decoder_layers() -> set[str]:
    """Return the decoder blocks of common models; any other is looked up in the installed transformers."""
    return _OTHER_LAYERS | {family.decoder_layer_class for family in ARCHITECTURES}


@functools.cache
def layer_exists(name: str) -> bool | None:
    """Return whether transformers has a class `name`; None where it is not installed. Imports nothing."""
    if name in decoder_layers():
        return True
    models = _models()
    if models is None:
        return None
    pattern = re.compile(rb"^class %s\b" % re.escape(name.encode("utf-8", "replace")), re.MULTILINE)
    return any(pattern.search(file.read_bytes()) for file in models.glob("*/modeling_*.py"))


def layers_of(model_type: str) -> tuple[str, ...]:
    """The classes that transformers defines for a `model_type` of config.json; empty where that is not known."""
    models, name = _models(), model_type.replace("-", "_")
    file = models / name / f"modeling_{name}.py" if models and re.fullmatch(r"\w+", name) else None
    if file and file.is_file():
        return tuple(re.findall(r"^class (\w+)", file.read_text(encoding="utf-8"), flags=re.MULTILINE))
    family = ARCHITECTURES.get(model_type)
    return (family.decoder_layer_class,) if family else ()


def _models() -> Path | None:
    spec = importlib.util.find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)), "models")
