import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import run_directories
from other_models import DENSE, MIXED, TOWERS, counted_spec
from plans import CPU, SMALL, gpus, make, planned

from unsloth_accel.config.read_run import from_dict
from unsloth_accel.errors import ConfigError
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.launch.launcher import plan_problems
from unsloth_accel.models.lora_targets import targets
from unsloth_accel.planning.memory_estimate import usable_gib
from unsloth_accel.planning.planner import plan


@pytest.mark.parametrize(
    ("hardware", "strategy", "count", "precision"),
    [
        (gpus(1), "single", 1, "bf16"),
        (gpus(4), "ddp", 4, "bf16"),
        (gpus(2, (7, 5)), "ddp", 2, "fp16"),
        (CPU, "ddp", 2, "bf16"),
        (Hardware(cpu_cores=1, host_memory_gib=4), "single", 1, "no"),
    ],
)
def test_auto(description: dict[str, Any], hardware: Hardware, strategy: str, count: int, precision: str) -> None:
    made = make(description, hardware)
    assert (made.strategy, made.num_processes, made.mixed_precision) == (strategy, count, precision)
    assert made.batch.global_size == 8
    assert made.reasons


def test_refusals(description: dict[str, Any]) -> None:
    for hardware, asked, words in (
        (gpus(2), {"num_processes": 3}, "3 processes need 3 GPUs and 2 are visible"),
        (CPU, {"device": "cuda"}, "no GPU is visible"),
        (gpus(2), {"num_processes": 2, "strategy": "single"}, "single is one process"),
        (gpus(1), {"strategy": "ddp"}, "ddp needs at least two"),
    ):
        with pytest.raises(ConfigError, match=words):
            make(description, hardware, distributed=asked)
    with pytest.raises(ConfigError, match="accelerate refuses fp16 there"):
        make(description, CPU, training={"fp16": True})
    with pytest.raises(ConfigError, match="both on"):
        make(description, gpus(1), training={"bf16": True, "fp16": True})


@pytest.mark.parametrize(
    ("hardware", "asked", "taken"), [(CPU, "auto", "false"), (CPU, "true", "true"), (gpus(2), "auto", "auto")]
)
def test_a_cpu_rehearses_only_what_is_asked_for(
    description: dict[str, Any], hardware: Hardware, asked: str, taken: str
) -> None:
    made = make(description, hardware, batch={"rehearse": asked})
    assert made.resolved()["batch"]["rehearse"] == taken
    assert any(reason.startswith("batch.rehearse=false: ") for reason in made.reasons) == (taken == "false")


def test_the_environment_says_what_the_yaml_cannot(description: dict[str, Any]) -> None:
    on_cpu = make(description, CPU).environment
    assert on_cpu["ACCELERATE_USE_CPU"] == "true"
    assert on_cpu["OMP_NUM_THREADS"] == "2"
    assert "UNSLOTH_FORCE_CPU" not in on_cpu
    forced = make(description, gpus(2), distributed={"device": "cpu"}).environment
    assert forced["UNSLOTH_FORCE_CPU"] == "1"
    promise = json.loads(on_cpu["UNSLOTH_ACCEL_PROMISE"])
    promised = {"num_processes": 2, "strategy": "ddp", "device": "cpu", "made_by": "the plan", "environment": {}}
    assert promise == promised | {"rows_per_step": 8, "memory_gib": None, "keep_activations": 0}
    estimate = make(description, gpus(2))
    assert json.loads(estimate.environment["UNSLOTH_ACCEL_PROMISE"])["memory_gib"] == round(estimate.memory.training, 2)


def test_the_freest_gpus_are_taken(description: dict[str, Any]) -> None:
    found = [replace(device, memory_free_gib=free) for device, free in zip(gpus(3).devices, (1, 79, 60), strict=True)]
    hardware = replace(gpus(3), devices=tuple(found))
    assert make(description, hardware, distributed={"num_processes": 1}).environment["CUDA_VISIBLE_DEVICES"] == "GPU-11"
    two = make(description, hardware, distributed={"num_processes": 2})
    assert two.environment["CUDA_VISIBLE_DEVICES"] == "GPU-11,GPU-22"
    with pytest.raises(
        ConfigError, match=r"GPU 0 has 1\.0 GiB free of 80\.0.*free the 79\.0 GiB that are in use on GPU 0"
    ):
        make(description, hardware, batch={"global_size": 9})


def test_one_process_sees_one_gpu(description: dict[str, Any]) -> None:
    """The Trainer gives a process that sees several GPUs torch's DataParallel."""
    assert make(description, gpus(4), distributed={"num_processes": 1}).environment["CUDA_VISIBLE_DEVICES"] == "GPU-00"
    assert "CUDA_VISIBLE_DEVICES" not in make(description, gpus(4)).environment


def test_the_written_run_is_decided(description: dict[str, Any]) -> None:
    batch = {"global_size": 8, "balance": "rows", "on_out_of_memory": "stop"}
    made = make(description, CPU, training={"overwrite": True, "max_steps": 1}, batch=batch)
    again = plan(from_dict(made.resolved()), CPU)
    assert again.batch == made.batch
    assert (again.run.batch.balance, again.run.batch.on_out_of_memory) == ("rows", "stop")
    assert again.run.distributed.strategy == "ddp"
    assert not again.run.overwrite


def test_two_machines() -> None:
    made = planned("2x8xH100-80GB", SMALL)
    assert (made.num_processes, made.num_machines) == (16, 2)
    config = made.accelerate_config.to_dict()
    assert (config["num_machines"], config["num_processes"], config["main_process_port"]) == (2, 16, 29500)


@pytest.mark.parametrize(
    ("strategy", "asked", "taken", "why"),
    [
        ("ddp", None, "adamw_torch_fused", "the same steps under every strategy"),
        ("fsdp2", None, "adamw_torch_fused", "the same steps under every strategy"),
        ("fsdp2", "adamw_8bit", "adamw_torch_fused", "fsdp2 can't step the shards of adamw_8bit"),
        ("fsdp2", "paged_adamw_8bit", "adamw_torch_fused", "fsdp2 can't step the shards of paged_adamw_8bit"),
        ("fsdp2_native", "adamw_8bit", "adamw_8bit", ""),
        ("ddp", "adamw_8bit", "adamw_8bit", ""),
        ("fsdp1", None, "adamw_torch", "the same steps under every strategy"),
        ("fsdp1", "adamw_torch_fused", "adamw_torch", "fsdp1 can't save the state of adamw_torch_fused"),
        ("fsdp1", "sgd", "sgd", ""),
    ],
)
def test_the_optimizer_is_said(strategy: str, asked: str | None, taken: str, why: str) -> None:
    training = {"optim": asked} if asked else {}
    made = planned("4xH100-80GB", SMALL, distributed={"strategy": strategy}, training=training)
    assert made.resolved()["training"]["optim"] == taken
    told = [reason for reason in made.reasons if reason.startswith("training.optim")]
    assert len(told) == bool(why)
    assert all(why in reason and taken in reason for reason in told)


def test_on_a_cpu_the_optimizer_is_the_trainers_own() -> None:
    assert "optim" not in planned("cpu", "unsloth/Llama-3.2-1B", 8).resolved()["training"]


def test_the_decoder_layer_is_the_models_own() -> None:
    made = planned("4xH100-80GB", "unsloth/Qwen3-8B", distributed={"strategy": "fsdp2"})
    fsdp = made.accelerate_config.to_dict()["fsdp_config"]
    assert fsdp["fsdp_transformer_layer_cls_to_wrap"] == "Qwen3DecoderLayer"


def test_the_batch_grows_with_memory() -> None:
    small, large = planned("4x4090", "unsloth/Llama-3.2-1B", 512), planned("4xH200", "unsloth/Llama-3.2-1B", 512)
    assert small.batch.per_device < large.batch.per_device
    for made in (small, large):
        assert made.memory is not None
        assert made.memory.total <= usable_gib(made.hardware.devices[0].memory_gib)


def test_tokens_may_be_given_instead_of_rows() -> None:
    made = planned("8xH100-80GB", SMALL, None, batch={"global_tokens": 131072})  # type: ignore[arg-type]
    assert made.batch.global_size == 64
    with pytest.raises(ConfigError, match=r"batch\.global_tokens=131072 or batch\.global_tokens=147456"):
        planned("8xH100-80GB", SMALL, None, batch={"global_tokens": 132000})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="gives the same in rows"):
        planned("8xH100-80GB", SMALL, batch={"global_tokens": 131072})


def test_unknown_size_needs_a_named_strategy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match=r"or name the strategy: distributed\.strategy=ddp"):
        planned("8xH100-80GB", "nobody/nothing")
    made = planned("8xH100-80GB", "nobody/nothing", distributed={"strategy": "ddp"})
    assert made.memory is None
    assert any(reason.startswith("memory is not estimated") for reason in made.reasons)


def test_a_quantized_checkpoint_is_loaded_in_four_bit() -> None:
    """Otherwise Unsloth loads the 16-bit model of that name."""
    made = planned("1xH100-80GB", "unsloth/Llama-3.3-70B-Instruct-bnb-4bit", 8)
    assert made.run.model.load_in_4bit
    assert made.resolved()["model"]["load_in_4bit"] is True
    assert any(reason.startswith("4 bit: the checkpoint is quantized") for reason in made.reasons)


def test_experts_are_trained_and_in_4bit() -> None:
    made = planned("8xH100-80GB", "Qwen/Qwen3-30B-A3B")
    assert made.memory is not None
    # 128 experts × 16 × (2048 + 1536 + 768 + 2048) in 48 blocks, beside the attention's.
    experts = 128 * 16 * (2048 + 1536 + 768 + 2048) * 48
    assert made.memory.terms["lora"] * 2**30 > experts * 4
    in_4bit = planned("1x4090", "unsloth/gpt-oss-20b", 8, model={"load_in_4bit": True})
    assert in_4bit.memory is not None
    assert in_4bit.memory.terms["weights"] < 14


def test_embeddings_among_the_targets_are_trained_whole() -> None:
    modules = ["q_proj", "embed_tokens", "lm_head"]
    made = planned("8xH100-80GB", SMALL, lora={"target_modules": modules})
    assert made.memory is not None
    assert made.memory.terms["lora"] * 2**30 > 2 * 128256 * 4096 * 4
    with pytest.raises(ConfigError, match="no module is left to get LoRA"):
        planned("8xH100-80GB", SMALL, lora={"target_modules": ["lm_head"]})


def test_all_linear_is_spelt_out() -> None:
    modules = planned("8xH100-80GB", SMALL).resolved()["lora"]["target_modules"]
    assert modules == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    phi = planned("8xH100-80GB", "microsoft/Phi-3.5-mini-instruct").resolved()["lora"]["target_modules"]
    assert set(phi) == {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}


def test_an_unknown_decoder_layer_is_not_guessed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nobody"}', encoding="utf-8")
    with pytest.raises(ConfigError):
        planned("2xH100", str(tmp_path), distributed={"strategy": "fsdp2"})


def test_a_plan_is_written_as_json(tmp_path: Path) -> None:
    decided = run_directories.planned(tmp_path, "2xH100-80GB")
    decided.write(tmp_path)
    assert json.loads((tmp_path / "plan.json").read_text(encoding="utf-8")) == json.loads(json.dumps(decided.to_dict()))


@pytest.mark.parametrize("strategy", ["auto", "ddp", "fsdp2_native"])
def test_a_vision_language_model_is_planned_for_text(strategy: str) -> None:
    values = {"model": {"name": "x/y"}, "batch": {"global_size": 8}, "distributed": {"strategy": strategy}}
    spec = counted_spec("qwen2_5_vl")
    made = plan(from_dict(values, to_plan=True), Hardware.parse("4xH100-80GB"), spec)
    assert "0.00B parameters for images or sound stay frozen" in "\n".join(made.reasons)
    assert "No such model was trained on GPUs here" in "\n".join(made.reasons)
    assert not [one for one in plan_problems(made) if one.key == "model.name"]
    on_cpu = plan(from_dict({**values, "distributed": {}}, to_plan=True), Hardware.parse("cpu"), spec)
    assert on_cpu.strategy == "ddp"


@pytest.mark.parametrize("model_type", [*DENSE, *MIXED, *TOWERS])
def test_every_family_that_transformers_builds_is_planned(model_type: str) -> None:
    values = {"model": {"name": "x/y"}, "batch": {"global_size": 8}}
    spec = counted_spec(model_type)
    made = plan(from_dict(values, to_plan=True), Hardware.parse("1xH100-80GB"), spec)
    assert made.memory is not None
    assert made.memory.total > 0
    assert made.run.lora.target_modules == list(targets(from_dict(values, to_plan=True), spec).modules)


def test_what_a_cpu_lacks_is_planned_as_it_will_run_or_refused(description: dict[str, Any]) -> None:
    """Unsloth would do it in silence, while run.yaml still said the other thing."""
    made = make(description, CPU, training={"optim": "paged_adamw_8bit"})
    assert made.resolved()["training"]["optim"] == "adamw_torch_fused"
    assert "training.optim=adamw_torch_fused: paged_adamw_8bit needs a GPU, and Unsloth" in str(made)
    assert make(description, CPU, training={"optim": "sgd"}).resolved()["training"]["optim"] == "sgd"
    for training, words in (
        ({"optim": "lion_8bit"}, r"needs a GPU.*Fix: training\.optim=adamw_torch_fused"),
        ({"optim": "galore_adamw_8bit"}, "another optimizer"),
        ({"activation_offloading": True}, r"no GPU: every process fails.*activation_offloading=false"),
    ):
        with pytest.raises(ConfigError, match=words):
            make(description, CPU, training=training)
    make(description, CPU, training={"activation_offloading": False})
    old = replace(CPU, cpu_bf16=False)
    made = make(description, old, training={"bf16": True})
    assert made.resolved()["training"]["bf16"] is False
    assert "lacks bfloat16 instructions, and Unsloth turns bf16 off" in str(made)
