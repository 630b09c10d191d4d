from unsloth_accel.validation.rules import names


def test_words_are_those_of_the_installed_accelerate() -> None:
    from accelerate.commands.config.config_args import ClusterConfig, SageMakerConfig
    from accelerate.commands.launch import launch_command_parser
    from accelerate.utils import constants, dataclasses

    assert set(ClusterConfig.__dataclass_fields__) == names.TOP_LEVEL_KEYS
    assert set(SageMakerConfig.__dataclass_fields__) == names.SAGEMAKER_KEYS
    assert {kind.value for kind in dataclasses.DistributedType} == set(names.DISTRIBUTED_TYPES)
    assert {kind.value for kind in dataclasses.SageMakerDistributedType} == set(names.SAGEMAKER_TYPES)
    assert {kind.value for kind in dataclasses.ComputeEnvironment} == set(names.ENVIRONMENTS)
    assert {kind.value for kind in dataclasses.PrecisionType} == set(names.PRECISIONS)
    assert {kind.value for kind in dataclasses.DynamoBackend} == set(names.DYNAMO_BACKENDS)
    assert list(names.SHARDING_STRATEGIES) == constants.FSDP_SHARDING_STRATEGY
    assert list(names.WRAP_POLICIES) == constants.FSDP_AUTO_WRAP_POLICY
    assert set(constants.FSDP_STATE_DICT_TYPE) == set(names.STATE_DICT_TYPES)
    assert set(constants.FSDP_BACKWARD_PREFETCH) == set(names.BACKWARD_PREFETCHES)
    options = {action.dest for action in launch_command_parser()._actions}
    assert {f"fsdp_{name}" for name in names.FSDP_KEYS} - options == {"fsdp_ignored_modules"}
    nested = set().union(*names.NESTED_KEYS.values())
    assert nested <= options
    prefixes = ("fsdp_", "fp8_", "dynamo_", "mpirun_", "parallelism_config_", "megatron_lm_", "deepspeed_", "zero")
    assert {name for name in options if name.startswith(prefixes)} <= nested | {f"fsdp_{n}" for n in names.FSDP_KEYS}


def test_layers_are_those_of_the_installed_transformers() -> None:
    models = names._models()
    assert models is not None
    text = "\n".join(path.read_text(encoding="utf-8") for path in models.glob("*/modeling_*.py"))
    assert [name for name in names.decoder_layers() if f"class {name}(" not in text] == []
    assert names.layer_exists("AfmoeDecoderLayer") is ("class AfmoeDecoderLayer(" in text)
    assert names.layer_exists("NoSuchDecoderLayer") is False
    assert "Qwen3DecoderLayer" in names.layers_of("qwen3")
    assert names.layers_of("../qwen3") == ()
