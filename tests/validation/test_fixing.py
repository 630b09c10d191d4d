"""What is repaired, and that the rest is kept."""

from collections.abc import Callable
from pathlib import Path

import pytest
from checked_configs import FILES, fixture, rules_of

from unsloth_accel.cli.validate import run
from unsloth_accel.validation.rules import RULES, check_document, read_document, read_text, repaired


def test_what_several_keys_share_is_not_edited(config: Callable[..., Path]) -> None:
    section = "  fsdp_version: 2\n  fsdp_auto_wrap_policy: NO_WRAP\n  fsdp_cpu_ram_efficient_loading: true\n"
    plain = f"distributed_type: FSDP\nnum_processes: 2\nfsdp_config:\n{section}"
    shared = (
        plain.replace("fsdp_config:", "fsdp_config: &it") + "dynamo_config: *it\n",
        f"dynamo_config: &it\n{section}" + plain.replace(f":\n{section}", ": *it\n"),
        f"dynamo_config: &it\n{section}" + plain.replace(section, "  <<: *it\n"),
    )
    mendable = {"fsdp-cpu-ram-efficient-loading", "fsdp-state-dict-type-missing"}
    for text, mended in ((plain, mendable), *((text, set()) for text in shared)):
        document = read_document(config(text))
        found = check_document(document)
        assert {problem.rule for problem in found} - {"nested-unknown-key"} == {*mendable, "fsdp-no-wrap"}
        assert {problem.rule for problem in repaired(document, found)[1]} - {"nested-unknown-key"} == mended


def fix(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """The repaired copy and what was printed of it."""
    before = path.read_bytes()
    run(["--fix", str(path)])
    assert path.read_bytes() == before
    return path.with_name(f"{path.stem}.fixed{path.suffix}").read_text(encoding="utf-8"), capsys.readouterr().out


def test_fix_repairs_lines_and_keeps_the_rest(
    config: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = """# my config: für zwei GPUs
distributed_type: FSDP   # sharded
num_processes: '2'
machine_rnak: 0
mixed_precision: no # full
fsdp_config:   # below
    # the version
    fsdp_version: 2
    fsdp_auto_wrap_policy: transformer_based_wrap
    fsdp_transformer_layer_cls_to_wrap: "LlamaDecoderLayer, Qwen3DecoderLayer"  # two
    fsdp_use_orig_params: true
    fsdp_sharding_strategy: SHARD_GRAD_OP
    fsdp_offload_params: perhaps
num_machines: 1"""
    path = config(text.encode("latin-1"))
    fixed, said = fix(path, capsys)
    assert (
        fixed
        == """# my config: für zwei GPUs
distributed_type: FSDP   # sharded
num_processes: 2
machine_rank: 0
mixed_precision: 'no' # full
fsdp_config:   # below
    # the version
    fsdp_state_dict_type: FULL_STATE_DICT
    fsdp_cpu_ram_efficient_loading: false
    fsdp_version: 2
    fsdp_auto_wrap_policy: transformer_based_wrap
    fsdp_transformer_layer_cls_to_wrap: LlamaDecoderLayer,Qwen3DecoderLayer  # two
    fsdp_reshard_after_forward: false
    fsdp_offload_params: perhaps
num_machines: 1"""
    )
    assert "repaired     3 num_processes: num_processes: 2" in said
    assert (
        "fsdp_config.fsdp_offload_params: fsdp_offload_params: true, or fsdp_offload_params: false [fsdp-not-boolean]"
        in said
    )
    assert rules_of(tmp_path / "config.fixed.yaml") == {"fsdp-not-boolean"}


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        *(("load_in_16bit", ""), ("load_in_4bits", "load_in_4bit"), ("loadin4bit", "load_in_4bit")),
        *(("max_epochs", ""), ("max_setps", "max_steps"), ("exclude_modules", ""), ("use_qalora", "")),
        *(("max_stepps", "max_steps"), ("use_rslorra", "use_rslora"), ("use_dore", "")),
    ],
)
def test_only_a_slip_is_renamed(key: str, meant: str) -> None:
    """Not another word: what it asks for would become something else, and the result be valid."""
    section = {"load": "model", "max_": "training"}.get(key[:4], "lora")
    document = read_text(f"{section}:\n  {key}: true\ndata: {{path: a}}\noutput_dir: out\n")
    (found,) = (one for one in check_document(document) if one.rule == "run-unknown-key")
    assert [repair.value for repair in found.repairs] == ([meant] if meant else [])


def test_fix_in_json(config: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    fixed, _ = fix(config('{"distributed_type": "MULTI_GPUS",\n "num_process": 2}\n', "config.json"), capsys)
    assert fixed == '{"distributed_type": "MULTI_GPU",\n "num_processes": 2}\n'


@pytest.mark.parametrize("rule", RULES)
def test_a_repair_mends_its_problem_and_makes_no_other(rule: str) -> None:
    path = fixture(rule, "bad")
    document = read_document(path)
    if not document.text:
        return
    found = check_document(document)
    text, mended, _ = repaired(document, found)
    again = {problem.rule for problem in check_document(read_text(text, document.file))}
    assert again == {problem.rule for problem in found} - {problem.rule for problem in mended}


def test_enough_rules_can_be_repaired() -> None:
    files = [path for rule in RULES for path in FILES.joinpath(rule).glob("bad.*")]
    mended: set[str] = set()
    for path in files:
        document = read_document(path)
        mended |= {problem.rule for problem in repaired(document, check_document(document))[1]}
    assert len(mended) >= 30


def test_a_key_inside_a_list_has_its_own_value_line_and_repair() -> None:
    document = read_text(
        "model: {name: m}\n"
        "data:\n"
        "  mix:\n"
        "    - {path: a.jsonl, weight: -3}\n"
        "    - path: b.jsonl\n"
        "      weigth: 7\n"
        "output_dir: out\n"
    )
    told = check_document(document)
    assert {(one.key, one.value, one.line, one.rule) for one in told} == {
        ("data.mix.0.weight", -3, 4, "run-value"),
        ("data.mix.1.weigth", 7, 6, "run-unknown-key"),
    }
    text, mended, left = repaired(document, told)
    assert (len(mended), len(left)) == (1, 1)
    assert "      weight: 7\n" in text
    without = document.text.replace("weight: -3", "weight: 3").replace("      weigth: 7\n", "")
    (problem,) = check_document(read_text(without))
    assert (problem.key, problem.value, problem.line) == ("data.mix.1", {"path": "b.jsonl"}, 5)
