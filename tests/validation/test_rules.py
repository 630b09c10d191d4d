"""Every rule has a file that triggers it and the nearest one that doesn't, and its words are accelerate's own."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from unsloth_accel.config.accelerate_config import AccelerateConfig
from unsloth_accel.hardware.hardware import Device, Hardware
from unsloth_accel.strategies import STRATEGIES
from unsloth_accel.validation.rules import RULES, Context, Finding, check, names, read_text, validate
from unsloth_accel.validation.rules.__main__ import table

FILES = ROOT / "tests" / "rules"
CPU = Hardware(cpu_cores=2, host_memory_gib=8, reason="no driver")
GPU = Device(name="GPU", index=0, memory_gib=80, compute_capability=(9, 0))
TWO = Hardware(devices=(GPU, GPU), cpu_cores=8, host_memory_gib=64)
BESIDE = {"fsdp1"}
"""Every file of version 1 is warned of, whatever else is wrong with it or not."""


def found(path: Path, context: Context | None = None) -> list[Finding]:
    return [problem for report in validate([path], context) for problem in report.problems]


def fixture(rule: str, name: str) -> Path:
    (path,) = FILES.joinpath(rule).glob(f"{name}*")
    return path


def context_for(rule: str) -> Context | None:
    return Context(hardware=TWO) if rule == "too-few-gpus" else None


def test_there_are_rules_and_files_for_each() -> None:
    assert len(RULES) >= 100
    directories = {path.name for path in FILES.iterdir() if path.is_dir()} - {"foreign"}
    assert directories == set(RULES)


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_tells_its_file_and_not_the_nearest_valid_one(rule: str) -> None:
    bad = found(fixture(rule, "bad"), context_for(rule))
    assert {problem.rule for problem in bad} - (BESIDE - {rule}) == {rule}
    assert {problem.rule for problem in found(fixture(rule, "good"), context_for(rule))} <= BESIDE


@pytest.mark.parametrize("rule", RULES)
def test_a_problem_says_everything(rule: str) -> None:
    for problem in found(fixture(rule, "bad"), context_for(rule)):
        assert problem.key
        assert problem.consequence.endswith((".", "?"))
        assert problem.fix
        assert problem.severity == RULES[problem.rule].severity
        path = Path(problem.file)
        if problem.line is None:
            assert rule in ("nothing-to-read", "file-too-large", "nested-too-deeply")
        else:
            assert 1 <= problem.line <= len(path.read_bytes().splitlines())


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        ("fsdp-unknown-key", 15),
        ("duplicate-key", 9),
        ("tab", 10),
        ("run-value", 13),
        ("fsdp-wrap-policy-missing", 9),
        ("several-documents", 10),
        ("not-utf-8", 1),
        ("yaml-number", 6),
        ("pair-optimizer", 10),
    ],
)
def test_the_line_is_the_keys_own_or_its_sections(rule: str, line: int) -> None:
    assert [problem.line for problem in found(fixture(rule, "bad"))] == [line]


def test_what_is_shipped_has_no_errors_and_only_warnings_that_its_comment_says() -> None:
    said = {
        "cpu_ddp.yaml": {"multi-gpu-on-cpu"},
        "fsdp1.yaml": {"fsdp1"},
        "multi_node_ddp.yaml": {"main-process-ip-placeholder"},
        "multi_node_fsdp2.yaml": {"main-process-ip-placeholder"},
    }
    for path in sorted((ROOT / "accelerate_configs").iterdir()):
        assert {problem.rule for problem in found(path)} == said.get(path.name, set()), path
    for path in sorted((ROOT / "examples" / "configs").iterdir()):
        assert found(path) == [], path


@pytest.mark.parametrize("strategy", STRATEGIES.names)
@pytest.mark.parametrize("machines", [1, 2])
def test_the_generators_output_has_no_problems(strategy: Any, machines: int) -> None:
    if strategy == "single" and machines > 1:
        return
    config = AccelerateConfig(
        strategy=strategy,
        num_processes=1 if strategy == "single" else 4,
        mixed_precision="bf16",
        num_machines=machines,
        main_process_ip="10.0.0.1" if machines > 1 else None,
    )
    assert {problem.rule for problem in check(read_text(config.to_yaml()))} == ({"fsdp1"} & {strategy})


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
    assert [name for name in names.DECODER_LAYERS if f"class {name}(" not in text] == []
    assert names.layer_exists("AfmoeDecoderLayer") is ("class AfmoeDecoderLayer(" in text)
    assert names.layer_exists("NoSuchDecoderLayer") is False
    assert "Qwen3DecoderLayer" in names.layers_of("qwen3")
    assert names.layers_of("../qwen3") == ()


@pytest.mark.parametrize("rule", RULES)
def test_references_lead_somewhere(rule: str) -> None:
    """Files are there, and what is quoted from them stands in them, up to line breaks."""
    reference = re.sub(r"(\w/) (?=\w)", r"\1", RULES[rule].reference)  # a path broken over two lines
    files = re.findall(r"\w+(?:/[\w.]+)+\.py", reference)
    assert files or "measured" in reference
    text = ""
    for file in files:
        package, _, rest = file.partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            return  # Unsloth is not everywhere installed
        path = Path(spec.origin).parent / rest
        assert path.is_file(), file
        text += path.read_text(encoding="utf-8")
    squeezed = "".join(re.sub(r'"\s*\n\s*f?"', "", text).split())
    for quoted in re.findall(r'"([^"]+)"|`([^`]+)`', reference):
        for part in "".join(quoted).split("…"):
            assert "".join(part.split()) in squeezed, part


def test_the_table_of_rules_is_up_to_date() -> None:
    committed = (ROOT / "docs" / "rules.md").read_text(encoding="utf-8")
    assert committed == table(), "run python -m unsloth_accel.validation.rules"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"distributed_type": "MULTI_CPU", "num_processes": 2}, "starts one process for MULTI_CPU, not 2"),
        ({"distributed_type": "NO", "num_processes": 2}, "one process starts, not 2"),
        ({"distributed_type": "MULTI_GPU", "num_processes": 2}, "2 processes need 2 GPUs and 0 are visible"),
        ({"distributed_type": "MULTI_GPUS"}, "did you mean MULTI_GPU?"),
        ({"num_processes": 2}, "distributed_type: is missing"),
        ({"distributed_type": False, "num_processes": 1}, "YAML reads an unquoted NO as false"),
    ],
)
def test_accelerate_configs_that_would_do_something_else(config: dict[str, Any], words: str) -> None:
    given = {"num_processes": 2, **config}
    (only,) = check(read_text(yaml.safe_dump(given), context=Context(hardware=CPU)))
    assert words in str(only)


@pytest.mark.parametrize(
    "config",
    [
        {"distributed_type": "MULTI_CPU", "num_processes": 1},
        {"distributed_type": "MULTI_CPU", "num_processes": 2, "mpirun_config": {"mpirun_hostfile": "hosts"}},
        {"distributed_type": "NO", "num_processes": 1},
        {"distributed_type": "MULTI_GPU", "num_processes": 2, "use_cpu": True},
        {"distributed_type": "DEEPSPEED", "num_processes": 8},
        {"compute_environment": "AMAZON_SAGEMAKER", "distributed_type": "DATA_PARALLEL"},
        # What several machines have is not known here.
        {
            "distributed_type": "MULTI_GPU",
            "num_processes": 16,
            "num_machines": 2,
            "machine_rank": 0,
            "main_process_ip": "10.0.0.1",
            "main_process_port": 29500,
        },
    ],
)
def test_accelerate_configs_that_may_be_launched_here(config: dict[str, Any]) -> None:
    problems = check(read_text(yaml.safe_dump(config), context=Context(hardware=CPU, launching=True)))
    assert [problem for problem in problems if problem.severity == "error"] == []


def test_the_command_line_wins() -> None:
    text = fixture("machine-rank-impossible", "bad").read_text(encoding="utf-8")
    assert check(read_text(text, context=Context(flags=frozenset({"machine_rank"})))) == []
    text = fixture("num-processes-missing", "bad").read_text(encoding="utf-8")
    assert check(read_text(text, context=Context(num_processes=2))) == []


def test_a_hub_models_layers_are_known_too(tmp_path: Path) -> None:
    """A pasted Llama config beside another model's run, whose shape is among the known ones."""
    (tmp_path / "accelerate.yaml").write_text(
        (ROOT / "accelerate_configs" / "fsdp2.yaml").read_text(encoding="utf-8"), encoding="utf-8"
    )
    run = (
        "model: {name: unsloth/Qwen3-8B}\ndata: {path: x.jsonl}\nbatch: {global_size: 8}\n"
        "distributed: {strategy: fsdp2, num_processes: 2}\ntraining: {bf16: true}\noutput_dir: out\n"
    )
    (tmp_path / "run.yaml").write_text(run, encoding="utf-8")
    found = [problem for report in validate([str(tmp_path)]) for problem in report.problems]
    assert [problem.rule for problem in found] == ["pair-layer-class"]
    assert "Qwen3DecoderLayer" in found[0].fix
