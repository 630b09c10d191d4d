"""The rules tell the truth: their bad files go through the installed accelerate, and what they say happens."""

import json
import os
import random
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fork_server
import pytest
from checked_configs import fixture
from random_runs import TRAINING

from unsloth_accel.config.installed_source import compared_words
from unsloth_accel.config.run_config import RunConfig
from unsloth_accel.config.trainer_settings import given_fields
from unsloth_accel.validation.rules import Document, check_document, read_text
from unsloth_accel.validation.rules.run_words import _CLASSES


@dataclass
class Launched:
    """What `accelerate launch` made of a config, up to where it would start processes."""

    several: bool
    """torchrun would start them; otherwise one process."""
    args: Any
    environment: dict[str, str]


def launch(rule: str, name: str) -> Launched:
    """Through accelerate's own parser, validation and environment; its launchers are not called."""
    from accelerate.commands import launch as module
    from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

    args = module.launch_command_parser().parse_args(["--config_file", str(fixture(rule, name)), "script.py"])
    args, _, _ = module._validate_launch_command(args)
    several = any((args.use_fsdp, args.use_megatron_lm, args.multi_gpu))
    environment = prepare_multi_gpu_env(args) if several else prepare_simple_launcher_cmd_env(args)[1]
    return Launched(several, args, environment)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("FSDP_", "ACCELERATE_", "PARALLELISM_CONFIG_")):
            monkeypatch.delenv(name)


def plugin(rule: str, name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The FSDP plugin that each process would build."""
    import torch
    from accelerate.utils import FullyShardedDataParallelPlugin, dataclasses

    # On a machine without GPUs the plugin stops at sync_module_states, which needs a device.
    monkeypatch.setattr(dataclasses, "is_cuda_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    for key, value in launch(rule, name).environment.items():
        if key.startswith("FSDP_"):
            monkeypatch.setenv(key, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return FullyShardedDataParallelPlugin()


REFUSED = [
    ("byte-order-mark", "Unexpected UTF-8 BOM"),
    ("compute-environment-unknown", "unknown keys"),
    ("control-character", "special characters are not allowed"),
    ("deepspeed-json", "distributed_type"),
    ("distributed-type-missing", "distributed_type"),
    ("distributed-type-unknown", "is not a valid DistributedType"),
    ("dynamo-backend-unknown", "Unknown dynamo backend"),
    ("empty-file", "'NoneType' object has no attribute 'get'"),
    ("fsdp-loading-without-sync", "fsdp_sync_module_states"),
    ("gpu-ids-not-text", "has no attribute 'split'"),
    ("gpu-ids-one", "Less than two GPU ids"),
    ("json-syntax", "Expecting property name"),
    ("key-not-text", "unknown keys"),
    ("main-process-port-impossible", "port must be 0-65535"),
    ("mixed-precision-unknown", "Unknown mixed_precision mode"),
    ("nested-too-deeply", "recursion"),
    ("not-a-mapping", "has no attribute 'get'"),
    ("not-utf-8", "can't decode byte"),
    ("num-processes-missing", "manually pass in"),
    ("sagemaker", "had unknown keys (['num_processes'])"),
    ("several-documents", "expected a single document"),
    ("tab", "cannot start any token"),
    ("training-script", "distributed_type"),
    ("transformers-fsdp", "distributed_type"),
    ("unknown-key", "unknown keys"),
    ("unknown-kind", "distributed_type"),
    ("unknown-tag", "could not determine a constructor"),
    ("word-read-as-boolean", "'bool' object has no attribute 'lower'"),
    ("wrong-type", "not supported between instances of 'str' and 'int'"),
    ("yaml-syntax", "expected ',' or ']'"),
    ("yaml-value", "month must be in"),
]
OTHER_FILES = ("training-script",)
"""Their good file is a run, which is nothing for accelerate either."""


@pytest.mark.parametrize(("rule", "words"), REFUSED)
def test_accelerate_refuses_the_bad_file_and_takes_the_good_one(rule: str, words: str) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011  (of every kind, which is the point)
        launch(rule, "bad")
    assert words in str(caught.value)
    if rule not in OTHER_FILES:
        launch(rule, "good")


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("fsdp-min-num-params", "invalid literal for int"),
        ("fsdp-activation-offload", "requires `activation_checkpointing=True`"),
        ("fsdp-not-boolean", "invalid truth value none"),
        ("fsdp-state-dict-type-impossible", "FSDP2 does not support LOCAL_STATE_DICT"),
        ("fsdp-version-unknown", "TRUE"),
        ("fsdp-wrap-policy-unknown", "Invalid auto wrap policy"),
        ("fsdp1-backward-prefetch-unknown", "BACKWARDS"),
        ("fsdp1-sharding-strategy-unknown", "FULL_SHARDED"),
        ("fsdp2-reshard-not-boolean", "invalid truth value full_shard"),
    ],
)
def test_every_process_fails_after_it_has_started(rule: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((ValueError, KeyError), match=words):
        plugin(rule, "bad", monkeypatch)
    plugin(rule, "good", monkeypatch)


@pytest.mark.parametrize(
    ("rule", "name", "bad", "good"),
    [
        ("fsdp-cpu-ram-efficient-loading", "FSDP_CPU_RAM_EFFICIENT_LOADING", "true", "false"),
        ("fsdp-config-ignored", "ACCELERATE_USE_FSDP", None, "true"),
        ("deepspeed-config-ignored", "ACCELERATE_USE_DEEPSPEED", None, None),
        ("fsdp-config-missing", "FSDP_VERSION", "1", "2"),
        ("fsdp-config-missing", "FSDP_AUTO_WRAP_POLICY", None, "TRANSFORMER_BASED_WRAP"),
        ("fsdp-version-missing", "FSDP_VERSION", "1", "2"),
        ("fsdp-layer-class-list", "FSDP_TRANSFORMER_CLS_TO_WRAP", "['LlamaDecoderLayer']", "LlamaDecoderLayer"),
        ("fsdp-ignored-modules", "FSDP_IGNORED_MODULES", "['lm_head']", ".*lm_head"),
        ("fp8-config-ignored", "ACCELERATE_FP8_BACKEND", None, None),
        ("multi-gpu-on-cpu", "ACCELERATE_USE_CPU", None, None),
        ("cpu-affinity-ignored", "ACCELERATE_CPU_AFFINITY", None, None),
        ("parallelism-prefix", "PARALLELISM_CONFIG_DP_SHARD_SIZE", "2", "2"),
    ],
)
def test_processes_are_told(rule: str, name: str, bad: str | None, good: str | None) -> None:
    assert launch(rule, "bad").environment.get(name) == bad
    assert launch(rule, "good").environment.get(name) == good


@pytest.mark.parametrize(
    ("rule", "several", "name", "value"),
    [
        ("multi-cpu-one-process", False, "num_processes", 2),
        ("one-process-starts", False, "num_processes", 2),
        ("num-processes-uneven", True, "nproc_per_node", "7"),
        ("num-processes-impossible", True, "nproc_per_node", "0"),
        ("rdzv-backend-ignored", True, "rdzv_backend", "static"),
        ("same-network-ignored", True, "same_network", False),
        ("tpu-keys-ignored", True, "downcast_bf16", False),
        ("main-process-ip-missing", True, "rdzv_endpoint", "None:29500"),
        ("main-process-ip-impossible", True, "rdzv_endpoint", "10001:29500"),
        ("main-process-ip-placeholder", True, "rdzv_endpoint", "$MASTER_ADDR:29500"),
        ("nested-key-overrules", True, "num_processes", 4),
        ("nested-unknown-key", True, "dynamo_backend", "no"),
        ("gpu-ids-too-few", True, "nproc_per_node", "4"),
        ("one-process-distributed", True, "nproc_per_node", "1"),
        ("machine-rank-missing", True, "node_rank", 0),
        ("machine-rank-impossible", True, "node_rank", 2),
        ("section-not-a-mapping", True, "dynamo_backend", "no"),
    ],
)
def test_the_launcher_makes_of_it(rule: str, several: bool, name: str, value: Any) -> None:
    made = launch(rule, "bad")
    assert made.several is several
    assert getattr(made.args, name) == value


def test_each_machine_chooses_its_own_port() -> None:
    first, second = (launch("main-process-port-any", "bad").args.rdzv_endpoint for _ in range(2))
    assert first != second
    assert launch("main-process-port-any", "good").args.rdzv_endpoint == "10.0.0.1:29500"


def test_a_misspelt_key_leaves_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    made = launch("fsdp-unknown-key", "bad")
    assert made.args.fsdp_reshard_after_foward is True
    assert made.args.fsdp_reshard_after_forward == "true"  # the flag's default, a text


@pytest.mark.parametrize(
    ("rule", "name", "value"),
    [
        ("fsdp-no-wrap", "auto_wrap_policy", "None"),
        ("fsdp-wrap-policy-missing", "auto_wrap_policy", "None"),
        ("fsdp-state-dict-type-missing", "state_dict_type", "StateDictType.SHARDED_STATE_DICT"),
        ("fsdp2-old-keys", "use_orig_params", "None"),
        ("fsdp2-sharding-strategy", "reshard_after_forward", "True"),
        ("fsdp1-reshard-ignored", "sharding_strategy", "ShardingStrategy.FULL_SHARD"),
        ("fsdp1-no-shard", "sharding_strategy", "ShardingStrategy.NO_SHARD"),
    ],
)
def test_the_plugin_makes_of_it(rule: str, name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(getattr(plugin(rule, "bad", monkeypatch), name)) == value


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("parallelism-size-impossible", "dp_replicate_size must be at least 1"),
        ("parallelism-cp-and-sp", "mutually exclusive"),
        ("parallelism-product", "does not match"),
        ("parallelism-no-shard", "no dimension for FSDP to shard across"),
        ("parallelism-needs-fsdp2", "only compatible"),
    ],
)
def test_parallelism_fails_in_every_process(rule: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.parallelism_config import ParallelismConfig
    from accelerate.utils import DistributedType

    def build(name: str) -> None:
        made = launch(rule, name)
        for key, value in made.environment.items():
            if key.startswith("PARALLELISM_CONFIG_"):
                monkeypatch.setenv(key, value)

        class Accelerator:
            multi_device = False
            num_processes = made.args.num_processes
            is_fsdp2 = made.environment["FSDP_VERSION"] == "2"
            is_main_process = True
            distributed_type = DistributedType.FSDP

        ParallelismConfig()._validate_accelerator(Accelerator())

    with pytest.raises(ValueError, match=words):
        build("bad")
    build("good")


class _Console:
    def print(self, text: str) -> None: ...

    def print_exception(self, **kwargs: Any) -> None: ...


def test_a_failed_run_leaves_with_status_0_under_debug(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed.run
    from accelerate.commands import launch as module

    def fail(args: Any) -> None:
        raise RuntimeError("a rank failed")

    monkeypatch.setattr(torch.distributed.run, "run", fail)
    monkeypatch.setattr(module, "is_rich_available", lambda: True)
    # rich may be missing here; then the launcher has no console either.
    monkeypatch.setattr(module, "get_console", _Console, raising=False)

    def run(name: str) -> None:
        file = str(fixture("debug-hides-failure", name))
        module.launch_command(module.launch_command_parser().parse_args(["--config_file", file, "script.py"]))

    run("bad")  # and nothing is raised
    with pytest.raises(RuntimeError, match="a rank failed"):
        run("good")


def test_old_keys_are_dropped() -> None:
    from accelerate.commands.config.config_args import ClusterConfig

    assert ClusterConfig.from_yaml_file(str(fixture("old-key-overruled", "bad"))).mixed_precision == "bf16"
    assert ClusterConfig.from_yaml_file(str(fixture("old-key-overruled", "good"))).mixed_precision == "fp16"


def test_the_last_of_two_keys_wins() -> None:
    assert launch("duplicate-key", "bad").args.num_processes == 4


def test_yaml_reads_the_number_as_octal() -> None:
    assert launch("yaml-number", "bad").args.num_processes == 8


def test_no_machine_on_a_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """num-machines-impossible: accelerate divides by it for a CPU, and takes it for one machine otherwise."""
    from accelerate.commands import launch as module

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    path = tmp_path / "config.yaml"
    text = fixture("num-machines-impossible", "bad").read_text(encoding="utf-8")
    path.write_text(text.replace("use_cpu: false", "use_cpu: true"), encoding="utf-8")
    args = module.launch_command_parser().parse_args(["--config_file", str(path), "script.py"])
    with pytest.raises(ZeroDivisionError):
        module._validate_launch_command(args)
    assert launch("num-machines-impossible", "bad").args.nproc_per_node == "2"


def test_fp16_does_nothing_on_a_cpu() -> None:
    """The rule fp16-on-cpu."""
    code = (
        "import json; from accelerate import Accelerator; a = Accelerator(cpu=True, mixed_precision='fp16'); "
        "print(json.dumps([a.native_amp, a.scaler]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [False, None]


REFUSED = {
    "run-two-precisions": "At most one of fp16 and bf16",
    "run-load-best": "requires the save and eval strategy to match",
    "run-unknown-word": "is not a valid SchedulerType",
    "run-data-loader": "--dataloader_prefetch_factor can only be set",
    "run-steps": "requires non-zero --logging_steps",
    "run-plateau-needs-evaluation": "requires an eval strategy",
}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What TrainingArguments say to each rule's files, by `RULE bad` and `RULE good`: in a process of its own, since a
    test before these may have imported unsloth, which patches them."""
    import yaml

    def fields(rule: str, name: str) -> Any:
        return yaml.safe_load(fixture(rule, name).read_text(encoding="utf-8"))["training"]

    given = {f"{rule} {name}": fields(rule, name) for rule in REFUSED for name in ("bad", "good")}
    given |= {f"random {seed}": given_fields(RunConfig(training=drawn(seed))) for seed in range(DRAWN)}
    code = (
        "import json, sys\nfrom transformers import TrainingArguments\nsaid = {}\n"
        "for name, fields in json.loads(sys.argv[1]).items():\n"
        "    said[name] = ''\n"
        "    try:\n        TrainingArguments(output_dir=sys.argv[2], use_cpu=True, **fields)\n"
        "    except ValueError as error:\n        said[name] = str(error)\n"
        "print(json.dumps(said))"
    )
    command = [sys.executable, "-c", code, json.dumps(given), str(tmp_path_factory.mktemp("arguments"))]
    done = fork_server.run(command, capture_output=True, text=True, check=True)
    said: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return said


@pytest.mark.parametrize("rule", REFUSED)
def test_training_arguments_refuse_it(rule: str, refusals: dict[str, str]) -> None:
    assert REFUSED[rule] in refusals[f"{rule} bad"]
    assert refusals[f"{rule} good"] == ""


@pytest.mark.parametrize(
    ("word", "name"),
    [
        *(("warmup_stable_decay", "warmup_type"), ("warmup_stable_decay", "decay_type"), ("greedy", "mode")),
        *(("greedy", "threshold_mode"), ("reduce_lr_on_plateau", "mode"), ("reduce_lr_on_plateau", "threshold_mode")),
    ],
)
def test_words_of_a_scheduler_are_those_that_it_takes(word: str, name: str) -> None:
    import torch
    from transformers import get_scheduler

    place = {**_CLASSES, "warmup_stable_decay": "transformers/optimization.py:get_wsd_schedule"}[word]
    words = compared_words(place.removesuffix(".__init__"), name)
    assert len(words) > 1
    rest = {"num_decay_steps": 3} if word == "warmup_stable_decay" else {}
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    for one in words:
        get_scheduler(word, optimizer, 1, 9, {name: one, **rest})
    with pytest.raises(ValueError, match="nknown"):
        get_scheduler(word, optimizer, 1, 9, {name: "other", **rest})


DRAWN = 200
_OF_TRAINING_ARGUMENTS = (
    *("optim", "lr_scheduler_type", "eval_strategy", "save_strategy", "logging_strategy", "hub_strategy", "debug"),
    *("eval_steps", "save_steps", "logging_steps", "load_best_model_at_end", "metric_for_best_model", "warmup_steps"),
    *("dataloader_num_workers", "dataloader_prefetch_factor", "torch_empty_cache_steps", "bf16", "fp16", "tf32"),
)


LATER = {
    *("run-number", "run-optimizer-package", "run-optimizer-arguments", "run-unknown-metric", "run-data-loader"),
    *("run-steps", "run-load-best", "run-best-metric", "run-fp16-on-cpu", "run-scheduler-arguments"),
}
"""Rules of which some findings show only when training begins, or never: 0 steps between checkpoints, a best checkpoint
without an evaluation, fp16 that accelerate passes over on a CPU."""


def drawn(seed: int) -> dict[str, Any]:
    """Random fields of TrainingArguments."""
    draw = random.Random(seed)
    names = draw.sample(_OF_TRAINING_ARGUMENTS, draw.randint(1, 5))
    return {name: draw.choice([value for value in TRAINING[name] if value is not None]) for name in names}


def test_whatever_training_arguments_refuse_is_found(refusals: dict[str, str]) -> None:
    """Settings as the processes have them, our defaults included, and nothing that they take is refused but for what
    would go wrong later, or go wrong without a word."""
    refused = 0
    for seed in range(DRAWN):
        values = {"training": drawn(seed), "distributed": {"device": "cpu"}, "data": {"eval_path": "eval.jsonl"}}
        found = check_document(Document(file="", kind="run", values=values))
        rules = {one.rule for one in found if one.severity == "error"}
        said = refusals[f"random {seed}"]
        refused += bool(said)
        assert rules if said else not rules - LATER, (seed, said, rules)
    assert 50 < refused < 190


@pytest.mark.parametrize("rule", ["fsdp-layer-class-unknown", "fsdp-layer-class-list"])
def test_the_class_is_not_found_when_the_model_is_prepared(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    class LlamaDecoderLayer(torch.nn.Linear):
        """The class that the good file names."""

    model = torch.nn.Sequential(LlamaDecoderLayer(2, 2))
    with pytest.raises(ValueError, match="Could not find the transformer layer class"):
        plugin(rule, "bad", monkeypatch).set_auto_wrap_policy(model)
    plugin(rule, "good", monkeypatch).set_auto_wrap_policy(model)


@pytest.mark.parametrize(("ids", "seen"), [("0,0", []), ("0,gpu1", [0]), ("all", []), ("gpu0,1", []), ("0, 1", [0, 1])])
def test_what_cuda_makes_of_gpu_ids(ids: str, seen: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from checked_configs import DDP

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ids)
    assert torch.cuda._parse_visible_devices() == seen  # type: ignore[attr-defined]
    rules = {one.rule for one in check_document(read_text(f"{DDP}gpu_ids: '{ids}'\n"))}
    assert rules == (set() if len(seen) == 2 or ids == "all" else {"gpu-ids-unreadable"})


def test_an_unquoted_no_starts_one_process(tmp_path: Path) -> None:
    from accelerate.commands import launch as module

    path = tmp_path / "config.yaml"

    def started(text: str) -> Any:
        path.write_text(text, encoding="utf-8")
        args = module.launch_command_parser().parse_args(["--config_file", str(path), "script.py"])
        return module._validate_launch_command(args)[0]

    args = started("distributed_type: NO\nnum_processes: 1\n")
    assert not any((args.multi_gpu, args.use_fsdp, args.use_deepspeed, args.use_megatron_lm, args.tpu))
    with pytest.raises(ValueError, match="manually pass in"):
        started("distributed_type: NO\n")
    # What only looks wrong: accelerate takes it as it is meant.
    assert started("distributed_type: MULTI_GPU\nnum_processes: 2\nfp16: false\nmixed_precision: bf16\n").multi_gpu
    assert started("distributed_type: MULTI_GPU\nnum_processes: '2'\n").multi_gpu
    old = "dynamo_backend: 'NO'\ndynamo_config: {}\n"
    assert started(f"distributed_type: MULTI_GPU\nnum_processes: 2\n{old}").dynamo_backend == "no"


@pytest.mark.parametrize("kind", ["DATA_PARALLEL", "MODEL_PARALLEL", "'NO'"])
def test_accelerate_stops_at_every_sagemaker_config(kind: str, tmp_path: Path) -> None:
    from accelerate.commands import launch as module

    text = fixture("sagemaker", "bad").read_text(encoding="utf-8").replace("'NO'", kind)
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    args = module.launch_command_parser().parse_args(["--config_file", str(tmp_path / "config.yaml"), "script.py"])
    with pytest.raises((AttributeError, ValueError), match=r"parallelism_config|unknown keys"):
        module._validate_launch_command(args)


def test_deepspeed_is_not_told_of_a_cpu() -> None:
    from accelerate.commands import launch as module
    from accelerate.utils.launch import prepare_deepspeed_cmd_env

    args = module.launch_command_parser().parse_args(
        ["--config_file", str(fixture("deepspeed-use-cpu", "bad")), "script.py"]
    )
    args, _, _ = module._validate_launch_command(args)
    args.deepspeed_fields_from_accelerate_config = ""
    assert args.use_deepspeed
    assert args.use_cpu is True
    assert "ACCELERATE_USE_CPU" not in prepare_deepspeed_cmd_env(args)[1]


def test_replicas_hold_everything_where_a_parallelism_config_asks_for_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    made = launch("parallelism-replicated", "bad")
    assert made.several
    assert "ACCELERATE_USE_FSDP" not in made.environment
    assert made.environment["PARALLELISM_CONFIG_DP_SHARD_SIZE"] == "2"


def test_peft_s_wrap_policy_makes_lora_trainable_without_original_parameters(tmp_path: Path) -> None:
    """Without it FSDP1 raises, as fsdp1-use-orig-params says; in a process of its own, for its process group."""
    code = """
import sys, torch, torch.distributed as dist
from peft import LoraConfig, get_peft_model
from peft.utils.other import fsdp_auto_wrap_policy
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
small = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=32)
for policy in (fsdp_auto_wrap_policy, lambda model: ModuleWrapPolicy({LlamaDecoderLayer})):
    model = get_peft_model(LlamaForCausalLM(LlamaConfig(**small)), LoraConfig(r=2, target_modules=["q_proj"]))
    try:
        model = FSDP(model, auto_wrap_policy=policy(model), use_orig_params=False, device_id=torch.device("cpu"))
        print("wrapped", [p.requires_grad for p in model.parameters()].count(True))
    except ValueError as error:
        print(error)
dist.destroy_process_group()
"""
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "store")]
    done = fork_server.run(command, capture_output=True, text=True, check=True)
    first, second, *_ = done.stdout.splitlines()
    assert first == "wrapped 2"  # A and B
    assert "has both parameters with requires_grad=True and False" in second
