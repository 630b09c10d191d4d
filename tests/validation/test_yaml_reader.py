"""What is read of odd files, and that nothing makes the reader, the rules or the repairs crash."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from checked_configs import DDP, rules_of
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from unsloth_accel.validation.rules import (
    RULES,
    Context,
    Finding,
    check_document,
    read_document,
    read_text,
    repaired,
    validate,
)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (DDP.encode("utf-16"), "not-utf-8"),
        (DDP.encode("utf-16-le"), "not-utf-8"),
        (DDP.encode("utf-16-be"), "not-utf-8"),
        (DDP.encode("utf-32"), "not-utf-8"),
        (b"# caf\xe9\n" + DDP.encode(), "not-utf-8"),
        ("a: *nowhere\n" + DDP, "yaml-syntax"),
        (DDP + "? [a, b]\n: 1\n", "key-not-text"),
        (DDP + "debug: !!int maybe\n", "yaml-value"),
        (DDP + "machine_rank: 0x" + "f" * 5000 + "\n", "yaml-value"),
        (DDP + "machine_rank: " + "9" * 5000 + "\n", "yaml-value"),
        ("tpu_env: &a [*a]\n" + DDP, "alias-bomb"),
        (DDP + "<<: 3\n", "yaml-value"),
        (DDP + '"\\e[2J": 1\n', "unknown-key"),
    ],
)
def test_odd_files(config: Callable[..., Path], text: str | bytes, rule: str) -> None:
    assert rules_of(config(text)) == {rule}


def test_a_byte_order_mark_is_all_right_in_yaml(config: Callable[..., Path]) -> None:
    assert rules_of(config(b"\xef\xbb\xbf" + DDP.encode())) == set()


def test_aliases_and_merges_count_as_what_they_stand_for(config: Callable[..., Path]) -> None:
    text = (
        "base: &base {num_processes: 0, machine_rank: 0}\n"
        "more: &more {machine_rank: 5, debug: false}\n"
        "use_cpu: false\n"
        "<<: [*base, *more]\n"
        "debug: true\n"
        "distributed_type: MULTI_GPU\n"
        "num_machines: &two 2\n"
        "main_process_ip: 10.0.0.1\n"
        "main_process_port: *two\n"
    )
    document = read_document(config(text))
    assert document.get("num_processes") == 0
    assert document.get("main_process_port") == 2
    assert document.get("machine_rank") == 0  # the first of several merged ones
    assert document.get("debug") is True  # its own key
    problems = {problem.rule: problem for problem in check_document(document)}
    assert set(problems) == {"unknown-key", "num-processes-impossible", "debug-hides-failure", "merge-conflict"}
    assert "takes machine_rank from several mappings, as 0 and 5" in str(problems["merge-conflict"])
    assert problems["num-processes-impossible"].line == 1  # where it is written
    # An edit there would change what else uses it.
    assert repaired(document, [problems["num-processes-impossible"]])[1] == []


def test_no_tag_runs_code(tmp_path: Path, config: Callable[..., Path]) -> None:
    mark = tmp_path / "mark"
    for tag in ("!!python/object/apply:os.system", "!!python/object/new:os.system", "!!python/name:os.system"):
        assert rules_of(config(f'{DDP}main_process_ip: {tag} ["touch {mark}"]\n')) == {"unknown-tag"}
    assert not mark.exists()


# Nothing makes it crash.

EXAMPLES = 60  # thousands were tried when this was written
KEYS = [
    *("distributed_type", "num_processes", "num_machines", "machine_rank", "gpu_ids", "mixed_precision", "use_cpu"),
    *("main_process_ip", "main_process_port", "compute_environment", "fsdp_config", "dynamo_config", "debug"),
    *("parallelism_config", "deepspeed_config", "mpirun_config", "fp8_config", "downcast_bf16", "commands", "fp16"),
    *("fsdp_version", "fsdp_auto_wrap_policy", "fsdp_state_dict_type", "fsdp_transformer_layer_cls_to_wrap"),
    *("fsdp_sharding_strategy", "fsdp_reshard_after_forward", "fsdp_ignored_modules", "fsdp_min_num_params"),
    *("version", "parallelism_config_tp_size", "tp_size", "dynamo_backend", "rdzv_backend", "zero_optimization"),
    *("model", "data", "lora", "batch", "distributed", "training", "output_dir", "name", "path", "r", "dropout"),
    *("global_size", "strategy", "max_steps", "save_steps", "eval_steps", "load_best_model_at_end", "optim"),
]
WORDS = ["FSDP", "MULTI_GPU", "NO", "AMAZON_SAGEMAKER", "TRANSFORMER_BASED_WRAP", "SIZE_BASED_WRAP", "best", "${x}", ""]
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(WORDS),
    st.dates(),
    st.sampled_from([0, 1, 2, -1]),
)
keys = st.one_of(st.sampled_from(KEYS), st.text(max_size=12), st.booleans(), st.integers())
trees = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=6)),
    max_leaves=25,
)
often = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def holds(problems: list[Finding]) -> None:
    """Problems, and nothing but."""
    for problem in problems:
        assert problem.rule in RULES
        assert str(problem).isprintable()
        assert problem.consequence
        assert problem.fix


@often
@given(st.dictionaries(keys, trees, max_size=12))
@example({"distributed_type": "FSDP", "num_processes": 2, "fsdp_config": {"fsdp_ignored_modules": "("}})
@example({"model": {"name": "x"}, "lora": {"dropout": "much"}})
def test_no_structure_makes_it_crash(values: dict[Any, Any]) -> None:
    document = read_text(yaml.safe_dump(values, allow_unicode=True))
    found = check_document(document)
    holds(found)
    holds(check_document(read_text(repaired(document, found)[0])))


@often
@given(st.binary(max_size=200))
@example(b"\xff\xfe")
@example(b"\x00\x00\xfe\xff")
@example(b"a: \xed\xa0\x80")
@example(b'"\\UFFFFFFFF"')
@example(b"- " * 1000)
def test_no_bytes_make_it_crash(tmp_path: Path, data: bytes) -> None:
    for name in ("x.yaml", "x.json"):
        (tmp_path / name).write_bytes(data)
        for report in validate([tmp_path / name]):
            holds(list(report.problems))


ALPHABET = st.sampled_from([*"abc:-?[]{}&*!|>'\"#%@,. \n\t0129~<=$\\", "\n  ", "<<: ", "*a", "&a ", "!!int ", "---\n"])


@often
@given(st.lists(st.one_of(ALPHABET, st.sampled_from(KEYS)), max_size=40).map("".join))
def test_no_text_makes_it_crash(text: str) -> None:
    for file in ("x.yaml", "x.json"):
        document = read_text(text, file)
        found = check_document(document)
        holds(found)
        holds(check_document(read_text(repaired(document, found)[0], file)))


def same(text: str) -> None:
    """The reader makes of a text what PyYAML's safe reader makes of it, unless it has something to tell of it."""
    document = read_text(text)
    if document.kind != "unreadable" and not document.found:
        # As text: NaN is not equal to itself.
        assert repr(document.values) == repr(yaml.safe_load(text))


@often
@given(st.lists(st.one_of(ALPHABET, st.sampled_from(KEYS)), max_size=40).map("".join))
@example("a: &a {x: 1}\nb: &b {x: 2, y: 3}\nc: {<<: *a, <<: *b}\nd: {<<: [*a, *b], y: 0}\n")
@example("a: {b: [{c: 1}], d: 2026-11-22, e: 1_000, f: 0x1f, g: .nan, h: ~, i: !!str 1}\n")
def test_values_are_those_that_accelerate_reads_from_text(text: str) -> None:
    same(text)


@often
@given(st.dictionaries(st.sampled_from(KEYS), trees, max_size=8))
def test_values_are_those_that_accelerate_reads(values: dict[str, Any]) -> None:
    same(yaml.safe_dump(values, allow_unicode=True))


@often
@given(st.text(max_size=60), st.sampled_from(["x\0y", "\n", "a" * 5000]))
def test_no_name_makes_it_crash(name: str, odd: str) -> None:
    for path in (name, odd):
        for report in validate([path] if path not in ("", ".", "/", "..") else []):
            assert all(problem.rule in RULES and str(problem) for problem in report.problems)


@pytest.mark.parametrize(
    "section", ["training: {learning_rate: N}", "rewards: {functions: [{name: format, weight: N}]}"]
)
def test_a_number_that_no_float_holds_is_told_once(section: str) -> None:
    text = f"model: {{name: m}}\ndata: {{path: a.jsonl}}\noutput_dir: out\n{section}".replace("N", "1" + "0" * 400)
    told = check_document(read_text(text, context=Context(here=True)))
    assert [one.rule for one in told if one.severity == "error" and one.rule != "run-reward"] == ["yaml-value"]


@pytest.mark.parametrize(("number", "rule"), [("010", "yaml-number"), ("1" + "0" * 400, "yaml-value")])
def test_what_the_reader_finds_changes_nothing_of_the_rest(number: str, rule: str) -> None:
    """PyYAML reads 1e-6 as text, and rows are looked for all the same where they can be."""
    text = (
        "model: {name: m}\ndata: {path: a.jsonl}\noutput_dir: out\n"
        "training: {lr_scheduler_type: cosine_with_min_lr, lr_scheduler_kwargs: {min_lr: 1e-6}, learning_rate: 1e-4}\n"
    )
    plain = read_text(text, context=Context(here=True))
    odd = read_text(text.replace("1e-4}", f"1e-4, seed: {number}}}"), context=Context(here=True))
    usual = [one.key for one in check_document(plain)] if rule == "yaml-number" else []
    assert [one.key for one in check_document(odd) if one.rule != rule] == usual
    assert rule in {one.rule for one in check_document(odd)}


def test_a_json_file_that_holds_null_is_no_config() -> None:
    assert {finding.rule for finding in check_document(read_text("null", "x.json"))} == {"not-a-mapping"}
