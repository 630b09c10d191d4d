"""Which strategy is chosen, and what is said about the others."""

import re
from typing import Any

import pytest
from plans import LARGE, SMALL, planned

from unsloth_accel.errors import ConfigError
from unsloth_accel.planning.plan import Plan


def why_not(made: Plan) -> dict[str, str]:
    return {option.strategy: option.reason for option in made.rejected}


def test_ddp_where_it_fits() -> None:
    made = planned("8xH100-80GB", SMALL)
    assert (made.strategy, made.num_processes) == ("ddp", 8)
    assert str(made.batch).startswith("64 rows per step = 4 × 2 × 8")
    assert set(why_not(made)) == {"fsdp2", "fsdp2_native", "fsdp1", "single"}
    assert "slower" in why_not(made)["fsdp2_native"]
    assert "GPUs would be idle" in why_not(made)["single"]


def test_sharding_where_it_does_not_and_four_bit_is_proposed() -> None:
    made = planned("8xH100-80GB", LARGE)
    assert made.strategy == "fsdp2"
    assert "needs" in why_not(made)["ddp"]
    assert "slower" in why_not(made)["fsdp2_native"]
    four_bit = planned("2x4090", "unsloth/Qwen3-14B")
    assert four_bit.strategy == "fsdp2"
    assert any("model.load_in_4bit=true would let every GPU hold the model" in reason for reason in four_bit.reasons)
    made = planned("8xH100-80GB", LARGE, distributed={"strategy": "fsdp2_native"})
    assert made.accelerate_config.environment["UNSLOTH_FSDP2_SHARDED_LOAD"] == "1"
    assert made.environment["UNSLOTH_FSDP2_LAYOUT"] == "sharded"


def test_four_bit_turns_sharding_into_ddp() -> None:
    assert planned("8xH200", LARGE).strategy == "fsdp2"
    assert planned("8xH200", LARGE, model={"load_in_4bit": True}).strategy == "ddp"


def test_nothing_fits_says_what_would() -> None:
    with pytest.raises(ConfigError, match=r"load_in_4bit=true \(fsdp2\), or 4 such GPUs \(fsdp2\)"):
        planned("2xT4", "unsloth/Qwen3-14B", 16)
    with pytest.raises(ConfigError, match="needs more memory than there is"):
        planned("1xT4", LARGE, 16)


def test_fsdp1_only_when_asked_and_with_a_warning() -> None:
    made = planned("8xH100-80GB", SMALL, distributed={"strategy": "fsdp1"})
    assert made.strategy == "fsdp1"
    assert any(reason.startswith("beware: ") for reason in made.reasons)
    assert any("ddp would be faster" in reason for reason in made.reasons)


MIXTURE = "unsloth/Qwen3-30B-A3B"


def test_a_mixture_is_divided_where_it_is_asked_for() -> None:
    """Unsloth's sharded loading can't read experts that are several tensors in the checkpoint: each GPU loads all."""
    made = planned("8xH100-80GB", MIXTURE)
    assert made.strategy == "ddp"
    assert "several tensors of the checkpoint" in why_not(made)["fsdp2"] == why_not(made)["fsdp2_native"]
    for strategy in ("fsdp2", "fsdp2_native"):
        divided = planned("8xH100-80GB", MIXTURE, distributed={"strategy": strategy})
        assert divided.strategy == strategy
        assert divided.memory is not None
        assert divided.memory.loading > 56  # GiB of all its weights
        with pytest.raises(ConfigError, match=r"needs 63\.3 GiB per GPU"):
            planned("8xA100-40GB", MIXTURE, distributed={"strategy": strategy})


def test_attention_alone_is_offered_where_experts_do_not_fit() -> None:
    with pytest.raises(ConfigError, match=r"single needs 28\.3 GiB") as caught:
        planned("1xRTX4090", MIXTURE, model={"load_in_4bit": True})
    (problem,) = caught.value.problems
    assert "lora.target_modules=[q_proj, k_proj, v_proj, o_proj] (single, 18.6 GiB with 1 row at once)" in problem.fix


def test_what_is_asked_for_and_cannot_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="ddp needs"):
        planned("8xH100-80GB", LARGE, distributed={"strategy": "ddp"})


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


def test_ddp_is_taken_while_it_is_nearly_as_fast() -> None:
    """A gain of two or three percent is no reason to shard; the room for kept blocks may be one."""
    made = planned("8xA100-80GB", "unsloth/Qwen3-32B", 64, model={"load_in_4bit": True})
    assert made.strategy == "ddp"
    assert why_not(made)["fsdp2"].startswith("hardly faster: ")
    made = planned("2xH100", "unsloth/Qwen3-32B", 64)
    assert (made.strategy, made.keep_activations) == ("fsdp2", 64)
    assert why_not(made)["ddp"].startswith("slower: ")


def test_one_process_on_several_machines_is_on_one_gpu() -> None:
    """It was planned on a CPU that has the GPU's memory, or ended in a traceback."""
    made = planned("2x8xT4", "unsloth/Qwen3-1.7B", 16, distributed={"strategy": "single"})
    assert (made.device, made.num_processes, made.num_machines, len(made.devices)) == ("cuda", 1, 1, 1)
    assert made.memory is not None
    assert made.memory.total < 15
    assert "1 process: single is one; the other 15 of 16 GPUs are idle." in made.reasons
    assert planned("2x8xT4", "unsloth/Qwen3-1.7B", 16, distributed={"num_processes": 1}).strategy == "single"
    with pytest.raises(ConfigError, match=r"single needs 140\.1 GiB.*Fix: model\.load_in_4bit=true and .*8 such GPUs"):
        planned("2x1xT4", LARGE, 16, distributed={"strategy": "single"})


def test_four_bit_needs_fewer_gpus() -> None:
    with pytest.raises(
        ConfigError, match=r"Fix: model\.load_in_4bit=true and 4 such GPUs \(fsdp2\), or 16 such GPUs \(fsdp2\)$"
    ):
        planned("1x4090", LARGE, 16)


def test_four_bit_under_fsdp1_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"every process fails\. Fix: distributed.strategy=ddp, or .*_4bit=false$"):
        planned("2xH100", SMALL, 16, distributed={"strategy": "fsdp1"}, model={"load_in_4bit": True})


def test_fixes_do_not_go_in_a_circle() -> None:
    """ddp named fsdp2, which loads a mixture whole, whose fix was ddp."""
    with pytest.raises(ConfigError) as raised:
        planned("8xA100-40GB", MIXTURE, 16, distributed={"strategy": "fsdp2"})
    assert raised.value.problems[0].fix == "model.load_in_4bit=true"


def test_what_is_asked_for_is_refused_only_beyond_the_worst_error() -> None:
    def asked(length: int) -> Plan:
        more = {"training": {"per_device_train_batch_size": 8}, "model": {"max_seq_length": length}}
        return planned("2xT4", "unsloth/Llama-3.2-3B", 16, distributed={"strategy": "ddp"}, **more)

    (tight,) = [reason for reason in asked(8192).reasons if reason.startswith("tight")]
    assert "needs 16.3 GiB per GPU with 8 rows at once (14.5 GiB if the estimate is 11% too high" in tight
    assert not any(reason.startswith("tight") for reason in asked(4096).reasons)
    with pytest.raises(ConfigError, match=r"ddp needs 18\.1 GiB .*\(16\.1 GiB if .*; a GPU has 15\.0 GiB.*size=1, or "):
        asked(10240)


def test_what_a_fix_puts_right_besides_is_told() -> None:
    """Otherwise nobody would know why it names another batch."""
    words = (
        r"training\.bf16=True: V100.* has no bfloat16.*Besides, batch\.global_size=8: can't be 3 rows per device × 4 "
        r"processes.*Fix: batch\.global_size=12 and no training\.bf16$"
    )
    training = {"bf16": True, "per_device_train_batch_size": 3}
    with pytest.raises(ConfigError, match=words):
        planned("4xV100-32GB", "unsloth/Qwen3-1.7B", 8, training=training)
    with pytest.raises(ConfigError, match=r"Fix: distributed\.num_processes=2, or 3 such GPUs$"):
        planned("2xH100", SMALL, 6, distributed={"num_processes": 3})
