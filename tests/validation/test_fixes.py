"""Fixes lead somewhere: whoever does what is proposed meets no new error, and is never sent back."""

import random
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from checked_configs import DDP, FILES
from conftest import ROOT

from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.validation.rules import (
    RULES,
    Context,
    Document,
    Finding,
    check_document,
    read_document,
    read_text,
    repaired,
)

EIGHT = Context(hardware=Hardware.parse("8xH100-80GB"))
PAIR = re.compile(r"\b([a-z]\w+): ('[^']*'|[\w.*]+(?:,\w+)*|\([\w|]+\))")
BASES = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "accelerate_configs").glob("*.yaml"))]
BASES += [
    DDP,
    "distributed_type: 'NO'\nnum_processes: 8\n",
    "distributed_type: DEEPSPEED\nnum_processes: 8\ndeepspeed_config:\n  zero_stage: 3\n",
    "distributed_type: FSDP\nnum_processes: 8\nfsdp_config:\n  fsdp_reshard_after_forward: FULL_SHARD\n",
    "distributed_type: FSDP\nnum_processes: 8\nfsdp_config:\n  fsdp_state_dict_type: LOCAL_STATE_DICT\n",
    "distributed_type: FSDP\nnum_processes: 8\nfsdp_config:\n  fsdp_version: 2\n",
    "distributed_type: MULTI_GPU\nnum_processes: 4\nnum_machines: 2\n",
]
VALUES = [None, True, False, "true", 0, 1, 2, "2", -1, 64, "NO", "no", "x", "0,0", "0,1", "10001", "1e8", ["a"], {}]
VALUES += ["FULL_SHARD", "NO_SHARD", "SHARD_GRAD_OP", "SHARDED_STATE_DICT", "LOCAL_STATE_DICT", "MULTI_GPU", "FSDP"]
KEYS = {
    "": "distributed_type num_processes num_machines machine_rank main_process_ip main_process_port gpu_ids use_cpu "
    "mixed_precision fp16 dynamo_backend debug same_network fsdp_version num_proceses",
    "fsdp_config": "fsdp_version version fsdp_sharding_strategy fsdp_reshard_after_forward fsdp_state_dict_type "
    "fsdp_auto_wrap_policy fsdp_transformer_layer_cls_to_wrap fsdp_min_num_params fsdp_use_orig_params "
    "fsdp_sync_module_states fsdp_cpu_ram_efficient_loading fsdp_backward_prefetch fsdp_backward_prefetch_policy "
    "fsdp_activation_checkpointing fsdp_activation_checkpointing_offload fsdp_offload_params fsdp_verson",
    "parallelism_config": "parallelism_config_dp_shard_size parallelism_config_tp_size parallelism_config_cp_size "
    "tp_size",
    "dynamo_config": "dynamo_backend",
    "deepspeed_config": "zero_stage num_machines bf16",
}


def configs(count: int) -> Iterator[str]:
    """Configs with one to three keys set to a value that may fit or not."""
    chance = random.Random(24)
    for number in range(count):
        values = yaml.safe_load(BASES[number % len(BASES)])
        for _ in range(chance.randint(1, 3)):
            section = chance.choice(["", "", "fsdp_config", "fsdp_config", *KEYS])
            inner = values.setdefault(section, {}) if section else values
            if isinstance(inner, dict):
                inner[chance.choice(KEYS[section].split())] = chance.choice(VALUES)
        yield yaml.safe_dump(values, sort_keys=False)


def problems(text: str, file: str = "config.yaml") -> tuple[Document, list[Finding]]:
    document = read_text(text, file, EIGHT)
    return document, check_document(document)


def identity(finding: Finding) -> tuple[str, str]:
    return finding.rule, finding.key


def errors(found: list[Finding]) -> set[tuple[str, str]]:
    return {identity(one) for one in found if one.severity == "error"}


def told(text: str) -> list[str]:
    return [f"{one.severity} {one.rule}: {one.key}: {one.fix}" for one in problems(text)[1]]


def followed(document: Document, finding: Finding) -> Iterator[str]:
    """The texts that come of doing what `fix` says: each of its alternatives that names keys and values."""
    for alternative in re.split(r",? or (?=\w+: )|, or | where |; ", finding.fix):
        pairs = [] if "one of:" in alternative else PAIR.findall(alternative)
        removed = re.search(r"(?:without|remove) (\w+)", alternative)
        if alternative.startswith("did you mean") or not (pairs or removed):
            continue
        values = yaml.safe_load(document.text)
        if removed:
            section, _, name = (finding.key if removed[1] == "it" else removed[1]).rpartition(".")
            (values[section] if section else values).pop(name, None)
        for name, value in pairs:
            section = finding.key.rpartition(".")[0]
            if name in ("distributed_type", "num_processes", "mixed_precision", "use_cpu", "gpu_ids") or not section:
                section = "fsdp_config" if name.startswith("fsdp_") else ""
            elif name.startswith("fsdp_"):
                section = "fsdp_config"
            inner = values.setdefault(section, {}) if section else values
            if not isinstance(inner, dict):
                break
            short = name.removeprefix("fsdp_")
            inner[short if section == "fsdp_config" and short in inner else name] = yaml.safe_load(value)
        else:
            yield yaml.safe_dump(values, sort_keys=False)


def check(text: str, file: str = "config.yaml") -> int:
    """Every repair, alone and all together, and every fix that names keys; returns how many were tried."""
    document, found = problems(text, file)
    tried = 0
    for finding in found:
        if finding.repairs:
            mended, done, _ = repaired(document, [finding])
            if done:
                tried += 1
                after = problems(mended, file)[1]
                assert errors(after) <= errors(found), (text, finding.rule, mended, told(mended))
                assert identity(finding) not in map(identity, after), (text, finding.rule, mended)
        for after_text in followed(document, finding):
            tried += 1
            after = problems(after_text)[1]
            assert errors(after) <= errors(found), (text, finding.rule, finding.fix, after_text, told(after_text))
            if finding.severity == "error":
                assert identity(finding) not in map(identity, after), (text, finding.rule, finding.fix, after_text)
    seen = {text}
    for _ in range(9):  # all at once, until nothing is left to repair
        mended, done, _ = repaired(document, found)
        if not done:
            break
        assert mended not in seen, ("round in a circle", text, mended)
        seen.add(mended)
        document, found = problems(mended, file)
    else:
        pytest.fail(f"repairs never end: {text}")
    return tried


@pytest.mark.parametrize("rule", [rule for rule in RULES if "accelerate" in RULES[rule].kinds])
def test_a_rule_s_fix_leads_somewhere(rule: str) -> None:
    for path in FILES.joinpath(rule).glob("bad.*"):
        document = read_document(path)
        if document.kind == "accelerate":
            check(document.text, document.file)


def test_fixes_lead_somewhere() -> None:
    assert sum(map(check, configs(200))) > 400


def test_following_a_fix_is_tried() -> None:
    """The test above would see a fix that fails."""
    document, found = problems(f"{DDP}machine_rank: 3\n")
    wrong: Any = found[0].__class__(key="machine_rank", consequence="x.", fix="gpu_ids: 0,0, or num_machines: 1")
    texts = list(followed(document, wrong))
    assert [errors(problems(text)[1]) for text in texts] == [{("gpu-ids-unreadable", "gpu_ids")}, set()]
