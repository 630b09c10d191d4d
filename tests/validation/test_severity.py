"""Errors fail, or train otherwise than the file says; all else is a warning."""

from typing import Any

import pytest
from checked_configs import DDP

from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.validation.rules import Context, Finding, check_document, folded, of_flags, read_text

FSDP = "distributed_type: FSDP\nnum_processes: 2\nfsdp_config:\n  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP\n"
TWO = "distributed_type: MULTI_GPU\nnum_processes: 4\nnum_machines: 2\nmachine_rank: 0\n"
ZERO = "deepspeed_config:\n  zero_stage: 2\n"
NONE = Hardware(cpu_cores=2, host_memory_gib=8, reason="no driver")


def told(text: str, **flags: Any) -> dict[str, str]:
    """The severities by rule."""
    return {one.rule: one.severity for one in check_document(read_text(text, context=Context(flags=flags)))}


@pytest.mark.parametrize(
    ("rule", "error", "warning"),
    [
        ("word-read-as-boolean", f"{DDP}mixed_precision: no\n", "distributed_type: NO\nnum_processes: 1\n"),
        ("word-read-as-boolean", f"{DDP}dynamo_backend: NO\n", "distributed_type: NO\nnum_processes: 1\n"),
        ("distributed-type-missing", "num_processes: 2\n", "distributed_type:\nnum_processes: 1\n"),
        ("fsdp-config-ignored", DDP + FSDP.partition("2\n")[2], DDP.replace("2\n", "1\n") + FSDP.partition("2\n")[2]),
        ("deepspeed-config-ignored", f"{DDP}{ZERO}", f"{DDP}{ZERO}".replace("stage: 2", "stage: 0")),
        ("fsdp-ignored-modules", f"{FSDP}  fsdp_ignored_modules: '('\n", f"{FSDP}  fsdp_ignored_modules: [lm_head]\n"),
        (
            "fsdp-min-num-params",
            FSDP.replace("TRANSFORMER", "SIZE") + "  fsdp_min_num_params: 1e8\n",
            f"{FSDP}  fsdp_min_num_params: 1e8\n",
        ),
        ("fsdp-unknown-key", f"{FSDP}  fsdp_verson: 2\n", f"{FSDP}  fsdp_backward_prefetch_policy: BACKWARD_PRE\n"),
        ("fsdp-unknown-key", f"{FSDP}  state_dict_typ: x\n", f"{FSDP}  fsdp_limit_all_gathers: true\n"),
        (
            "nested-unknown-key",
            f"{DDP}dynamo_config: {{dynamo_backnd: EAGER}}\n",
            "distributed_type: DEEPSPEED\nnum_processes: 2\ndeepspeed_config: {zero_stge: 3}\n",
        ),
        ("machine-rank-impossible", f"{TWO}main_process_ip: 10.0.0.1\nmachine_rank: 2\n", f"{DDP}machine_rank: 1\n"),
        ("num-machines-impossible", f"{DDP}num_machines: 0\nuse_cpu: true\n", f"{DDP}num_machines: 0\n"),
        ("wrong-type", f"{DDP}num_machines: '1'\n", DDP.replace("2\n", "'2'\n")),
        ("wrong-type", f"{DDP}num_machines:\n", f"{DDP}use_cpu: maybe\n"),
        ("wrong-type", f"{DDP}main_process_port: '29500'\n", f"{DDP}use_cpu: 'false'\n"),
        (
            "section-not-a-mapping",
            "distributed_type: DEEPSPEED\nnum_processes: 2\ndeepspeed_config: x\n",
            f"{DDP}dynamo_config: inductor\n",
        ),
        (
            "parallelism-prefix",
            f"{FSDP}  fsdp_version: 2\nparallelism_config:\n  dp_shard_size: 2\n",
            f"{DDP}parallelism_config:\n  dp_shard_size: 2\n",
        ),
        ("duplicate-key", "model: {name: x}\nmodel: {name: y}\noutput_dir: z\n", f"{DDP}num_processes: 4\n"),
    ],
)
def test_an_error_and_the_warning_beside_it(rule: str, error: str, warning: str) -> None:
    assert told(error)[rule] == "error"
    assert told(warning)[rule] == "warning"
    assert "error" not in told(warning).values()


def test_an_unquoted_no_without_a_number_is_refused_as_accelerate_does() -> None:
    assert told("distributed_type: NO\n")["num-processes-missing"] == "error"
    assert "num-processes-missing" not in told("distributed_type: 'NO'\n")


@pytest.mark.parametrize(
    "text",
    [
        f"{FSDP}  fsdp_state_dict_type: SHARDED_STATE_DICT\n  fsdp_backward_prefetch_policy: BACKWARD_PRE\n",
        f"{FSDP}  fsdp_use_orig_params: false\n  fsdp_sharding_strategy: NO_SHARD\n",
        f"{FSDP}  fsdp_version: 2\n",
        "distributed_type: FSDP\nnum_processes: 2\n",
        f"{DDP}fp16: false\nmixed_precision: bf16\ndynamo_backend: 'NO'\ndynamo_config: {{}}\n",
        f"{DDP}fp16: true\nmixed_precision: bf16\n",
        "distributed_type: DEEPSPEED\nnum_processes: 2\ndeepspeed_config:\n  bf16: {enabled: true}\n",
        "distributed_type: DEEPSPEED\nnum_processes: 4\nnum_machines: 2\nuse_cpu: true\n",
        "distributed_type: 'NO'\nnum_processes: 8\n",
        f"{TWO}main_process_ip: node1\n",
        f"{TWO}main_process_ip: localhost\n",
    ],
)
def test_what_trains_is_not_refused(text: str) -> None:
    assert "error" not in told(text).values()


def test_what_says_nothing_is_not_told() -> None:
    assert told(f"{DDP}fp16: false\nmixed_precision: bf16\ndynamo_backend: 'NO'\ndynamo_config: {{}}\n") == {}
    unread = "distributed_type: DEEPSPEED\nnum_processes: 2\ndeepspeed_config:\n  bf16: {}\n  optimizer: {}\n"
    assert [one.rule for one in check_document(read_text(unread))] == ["deepspeed", "nested-unknown-key"]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (f"{DDP}parallelism_config:\n  parallelism_config_dp_shard_size: 2\n", "parallelism-replicated"),
        (f"{TWO}main_process_ip: '1921680110'\n", "main-process-ip-impossible"),
        (f"{TWO}main_process_ip: 10001\n", "main-process-ip-impossible"),
        (f"{TWO}main_process_ip: 10.0.0.256\n", "main-process-ip-impossible"),
        (f"{TWO}main_process_ip: node1\n", "main-process-ip-placeholder"),
        (f"{DDP}gpu_ids: 0,0\n", "gpu-ids-unreadable"),
        (f"{DDP}gpu_ids: 0,gpu1\n", "gpu-ids-unreadable"),
        ("distributed_type: 'NO'\ngpu_ids: first\n", "gpu-ids-unreadable"),
        (f"{FSDP}  fsdp_version: 1\n  fsdp_sharding_strategy: NO_SHARD\n", "fsdp1-no-shard"),
        (f"{FSDP}  fsdp_sharding_strategy: 3\n", "fsdp1-no-shard"),
        ("distributed_type: DEEPSPEED\nnum_processes: 2\nuse_cpu: true\n", "deepspeed-use-cpu"),
        ("compute_environment: AMAZON_SAGEMAKER\ndistributed_type: DATA_PARALLEL\n", "sagemaker"),
    ],
)
def test_what_was_missed_is_told(text: str, rule: str) -> None:
    assert rule in told(text)


def flagged(hardware: Hardware, text: str = "", **flags: Any) -> list[str]:
    """What is said of a file, or of none, launched with these flags."""
    context = Context(hardware=hardware, flags=flags, launching=True)
    return [str(one) for one in check_document(read_text(text, context=context) if text else of_flags(context))]


def test_a_flag_hides_no_rule_that_it_violates() -> None:
    (only,) = flagged(NONE, DDP, num_processes=64)
    assert only.startswith("error: --num_processes=64: 64 processes need 64 GPUs and 0 are visible (no driver).")
    assert flagged(NONE, DDP, num_processes=64, use_fsdp=True)  # and neither does a flag that chooses the kind
    (only,) = flagged(NONE, num_processes=64)
    assert only.startswith("error: --num_processes=64: one process starts, not 64.")
    (only,) = flagged(NONE, num_processes=64, multi_gpu=True)
    assert "64 processes need 64 GPUs and 0 are visible" in only
    two = Hardware.parse("2xH100-80GB")
    assert flagged(two, DDP, num_processes=2) == flagged(two, num_processes=2) == flagged(two) == flagged(NONE) == []
    (only,) = flagged(two, DDP, gpu_ids="0,0")
    assert only.startswith("error: --gpu_ids='0,0'")
    (only,) = flagged(two, FSDP + "  fsdp_version: 1\n", fsdp_version="3", fsdp_cpu_ram_efficient_loading="false")[:1]
    assert only.startswith("error: --fsdp_version='3': every process fails")


def test_what_the_command_line_gives_is_not_the_file_s() -> None:
    wrong = f"{TWO}machine_rank: 7\nmain_process_ip: 10001\nnum_machines: 2\n"
    assert "error" in told(wrong).values()
    assert set(told(wrong, machine_rank=1, main_process_ip="10.0.0.1")) == {"duplicate-key"}
    wrong = f"{DDP}same_network: true\nenable_cpu_affinity: true\nrdzv_backend: c10d\n"
    assert len(told(wrong)) == 2
    assert told(wrong, enable_cpu_affinity=True, rdzv_backend="c10d") == {}
    assert told("distributed_type: FSDP\nnum_processes: 2\nfsdp_config: {version: 3}\n", fsdp_version="2").keys() >= {
        "fsdp-wrap-policy-missing"
    }
    assert "error" not in told(f"{DDP}use_cpu: false\n", cpu=True, num_processes=1).values()


def test_folding_leaves_errors_and_single_lines() -> None:
    def rules(found: list[Finding]) -> list[str]:
        return [one.rule for one in folded(found)]

    single = check_document(read_text(f"{FSDP}  fsdp_version: 2\n  fsdp_state_dict_type: FULL_STATE_DICT\n"))
    assert len(single) == 2
    assert rules(single[:1]) == [single[0].rule]
    (both,) = folded(single)
    assert both.severity == "warning"
    assert both.rule.count(",") == 1
    failing = check_document(read_text(f"{FSDP}  fsdp_version: 2\n  fsdp_offload_params: perhaps\n"))
    assert [one.rule for one in folded(failing) if one.severity == "error"] == ["fsdp-not-boolean"]
    assert rules([]) == []
