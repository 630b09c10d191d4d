"""Which strategy is chosen, and what is said about the others."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unsloth_accel.config.run_config import from_dict
from unsloth_accel.errors import ConfigError
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.planning.planner import Plan, plan


def planned(hardware: str, name: str, size: int = 64, **changes: Any) -> Plan:
    values: dict[str, Any] = {"model": {"name": name}, "batch": {"global_size": size}}
    for key, more in changes.items():
        values[key] = {**values.get(key, {}), **more}
    return plan(from_dict(values, to_plan=True), Hardware.parse(hardware))


def why_not(made: Plan) -> dict[str, str]:
    return {option.strategy: option.reason for option in made.rejected}


SMALL, LARGE = "unsloth/Llama-3.1-8B-Instruct", "unsloth/Llama-3.3-70B-Instruct"


def test_ddp_where_it_fits() -> None:
    made = planned("8xH100-80GB", SMALL)
    assert (made.strategy, made.num_processes) == ("ddp", 8)
    assert str(made.batch).startswith("64 rows per step = 8 × 1 × 8")
    assert set(why_not(made)) == {"fsdp2", "fsdp2_native", "fsdp1", "single"}
    assert "slower" in why_not(made)["fsdp2_native"]
    assert "GPUs would be idle" in why_not(made)["single"]


def test_sharding_where_it_does_not_and_four_bit_is_proposed() -> None:
    made = planned("8xH100-80GB", LARGE)
    assert made.strategy == "fsdp2"
    assert "needs" in why_not(made)["ddp"]
    assert "slower" in why_not(made)["fsdp2_native"]
    assert any("model.load_in_4bit=true would let every GPU hold the model" in reason for reason in made.reasons)
    made = planned("8xH100-80GB", LARGE, distributed={"strategy": "fsdp2_native"})
    assert made.accelerate_config.environment["UNSLOTH_FSDP2_SHARDED_LOAD"] == "1"
    assert made.environment["UNSLOTH_FSDP2_LAYOUT"] == "sharded"


def test_four_bit_turns_sharding_into_ddp() -> None:
    assert planned("8xH100-80GB", LARGE, model={"load_in_4bit": True}).strategy == "ddp"


def test_fp16_where_there_is_no_bf16() -> None:
    made = planned("2xT4", "unsloth/Qwen3-0.6B", 16)
    assert made.mixed_precision == "fp16"
    assert any("no bfloat16" in reason for reason in made.reasons)


def test_two_machines() -> None:
    made = planned("2x8xH100-80GB", SMALL)
    assert (made.num_processes, made.num_machines) == (16, 2)
    config = made.accelerate_config.to_dict()
    assert (config["num_machines"], config["num_processes"], config["main_process_port"]) == (2, 16, 29500)


def test_nothing_fits_says_what_would() -> None:
    with pytest.raises(ConfigError, match=r"load_in_4bit=true \(ddp would fit\), or 4 such GPUs \(fsdp2\)"):
        planned("2xT4", "unsloth/Qwen3-14B", 16)
    with pytest.raises(ConfigError, match="needs more memory than there is"):
        planned("1xT4", LARGE, 16)


def test_fsdp1_only_when_asked_and_with_a_warning() -> None:
    made = planned("8xH100-80GB", SMALL, distributed={"strategy": "fsdp1"})
    assert made.strategy == "fsdp1"
    assert any(reason.startswith("beware: ") for reason in made.reasons)
    assert any("ddp would be faster" in reason for reason in made.reasons)


MIXTURE = "unsloth/Qwen3-30B-A3B"


def test_a_mixture_is_never_divided() -> None:
    """Unsloth's sharded loading can't read experts that are several tensors in the checkpoint."""
    made = planned("8xH100-80GB", MIXTURE)
    assert made.strategy == "ddp"
    assert "several tensors of the checkpoint" in why_not(made)["fsdp2"] == why_not(made)["fsdp2_native"]
    for strategy in ("fsdp2", "fsdp2_native"):
        with pytest.raises(ConfigError, match=r"several tensors of the checkpoint.*Fix: distributed.strategy=ddp"):
            planned("8xH100-80GB", MIXTURE, distributed={"strategy": strategy})


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


def test_memory_is_that_of_the_optimizer_that_steps() -> None:
    fsdp2, native = (
        planned("4xH100-80GB", SMALL, distributed={"strategy": strategy}, training={"optim": "adamw_8bit"}).memory
        for strategy in ("fsdp2", "fsdp2_native")
    )
    assert fsdp2 is not None
    assert native is not None
    assert fsdp2.terms["optimizer"] == 2 * fsdp2.terms["lora"]
    assert native.terms["optimizer"] == pytest.approx(native.terms["lora"] / 2)


def test_on_a_cpu_the_optimizer_is_the_trainers_own() -> None:
    assert "optim" not in planned("cpu", "unsloth/Llama-3.2-1B", 8).resolved()["training"]


def test_what_is_asked_for_and_cannot_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="ddp needs"):
        planned("8xH100-80GB", LARGE, distributed={"strategy": "ddp"})


def test_the_decoder_layer_is_the_models_own() -> None:
    made = planned("4xH100-80GB", "unsloth/Qwen3-8B", distributed={"strategy": "fsdp2"})
    fsdp = made.accelerate_config.to_dict()["fsdp_config"]
    assert fsdp["fsdp_transformer_layer_cls_to_wrap"] == "Qwen3DecoderLayer"


def test_the_batch_grows_with_memory() -> None:
    small, large = planned("4x4090", "unsloth/Llama-3.2-1B", 512), planned("4xH200", "unsloth/Llama-3.2-1B", 512)
    assert small.batch.per_device < large.batch.per_device == 128
    for made in (small, large):
        assert made.memory is not None
        assert made.memory.total <= 0.95 * made.hardware.devices[0].memory_gib


def test_tokens_may_be_given_instead_of_rows() -> None:
    made = planned("8xH100-80GB", SMALL, None, batch={"global_tokens": 131072})  # type: ignore[arg-type]
    assert made.batch.global_size == 64
    with pytest.raises(ConfigError, match=r"batch\.global_tokens=131072 or batch\.global_tokens=133120"):
        planned("8xH100-80GB", SMALL, None, batch={"global_tokens": 132000})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="says the same in rows"):
        planned("8xH100-80GB", SMALL, batch={"global_tokens": 131072})


@settings(deadline=None)
@given(
    machines=st.integers(1, 3),
    count=st.integers(1, 9),
    card=st.sampled_from(["T4", "4090", "A100-80GB", "H200"]),
    size=st.integers(1, 600),
    model=st.sampled_from(["unsloth/Qwen3-0.6B", SMALL, LARGE]),
    packed=st.booleans(),
)
def test_a_plan_keeps_the_batch_and_fits_or_refuses(
    machines: int, count: int, card: str, size: int, model: str, packed: bool
) -> None:
    hardware = f"{machines}x{count}x{card}"
    try:
        made = planned(hardware, model, size, model={"load_in_4bit": packed})
    except ConfigError:
        return
    batch = made.batch
    assert batch.per_device * batch.accumulation * batch.num_processes == batch.global_size == size
    assert made.num_processes == machines * count
    assert made.memory is not None
    assert made.memory.total <= 0.95 * made.hardware.devices[0].memory_gib
    assert made.accelerate_config.to_dict()["num_processes"] == made.num_processes


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


def test_experts_are_trained_and_packed() -> None:
    made = planned("8xH100-80GB", "Qwen/Qwen3-30B-A3B")
    assert made.memory is not None
    # 128 experts × 16 × (2048 + 1536 + 768 + 2048) in 48 blocks, beside the attention's.
    experts = 128 * 16 * (2048 + 1536 + 768 + 2048) * 48
    assert made.memory.terms["lora"] * 2**30 > experts * 4
    packed = planned("1x4090", "unsloth/gpt-oss-20b", 8, model={"load_in_4bit": True})
    assert packed.memory is not None
    assert packed.memory.terms["weights"] < 14


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


def test_every_suggestion_works() -> None:
    """What a refusal says would fit is planned without another refusal."""
    cases: list[tuple[str, str, dict[str, Any]]] = [
        ("2xT4", "unsloth/Qwen3-14B", {}),
        ("2xT4", SMALL, {"distributed": {"strategy": "ddp"}}),
        ("4x4090", LARGE, {}),
        ("2xH100", SMALL, {"training": {"per_device_train_batch_size": 128}, "model": {"max_seq_length": 8192}}),
    ]
    seen = 0
    for hardware, name, changes in cases:
        with pytest.raises(ConfigError) as caught:
            planned(hardware, name, 256, **changes)
        fix = caught.value.problems[0].fix
        for word in re.findall(r"[a-z_]+\.[a-z0-9_]+=[\w.]+", fix):
            key, value = word.split("=")
            section, field = key.split(".")
            more = {k: dict(v) for k, v in changes.items()}
            if field == "strategy":
                continue  # told together with the number of GPUs
            more.setdefault(section, {})[field] = {"true": True}.get(value) or int(value)
            planned(hardware, name, 256, **more)
            seen += 1
        for count in re.findall(r"(\d+) such GPUs", fix):
            more = {**changes, "distributed": {"strategy": "fsdp2"}}
            planned(f"{count}x{hardware.split('x')[1]}", name, 256, **more)
            seen += 1
    assert seen >= 5


def test_the_network_is_one_edge_of_the_ring() -> None:
    """Two machines of 8: a sharded step sends 2 × 15/16 of the weights over the slowest edge."""
    made = planned("2x8xH100-80GB", LARGE)
    assert made.speed is not None
    gathered = 2 * 15 / 16 * 70.55e9 * 2 / 12.5e9
    assert made.speed.communication == pytest.approx(gathered, rel=0.05)


def test_speed_is_of_the_planned_batch() -> None:
    made = planned("2xT4", "unsloth/Qwen3-8B", None, model={"load_in_4bit": True, "max_seq_length": 8192})  # type: ignore[arg-type]
    assert made.speed is not None
    assert made.speed.tokens == made.batch.global_size * 8192


def test_an_unknown_decoder_layer_is_not_guessed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nobody"}', encoding="utf-8")
    with pytest.raises(ConfigError):
        planned("2xH100", str(tmp_path), distributed={"strategy": "fsdp2"})


def test_ddp_is_taken_while_it_is_nearly_as_fast() -> None:
    """With fewer rows at once it launches more kernels, which the estimate counts; that is no reason to shard."""
    made = planned("2xH100", "unsloth/Qwen3-32B", 64)
    assert made.strategy == "ddp"
    assert why_not(made)["fsdp2_native"].startswith("hardly faster: ")
