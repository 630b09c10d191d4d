"""unsloth-accel validate: what it prints, what it repairs, and that nothing makes it crash."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, Run, write_yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from unsloth_accel.cli.validate import run
from unsloth_accel.errors import ConfigError
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.launch.launcher import launch
from unsloth_accel.validation.rules import RULES, Finding, check, read, read_text, repaired, validate

FILES = ROOT / "tests" / "rules"
FOREIGN = sorted((FILES / "foreign").iterdir())
SCRIPT = "examples/sft.py"
DDP = "distributed_type: MULTI_GPU  # two GPUs\nnum_processes: 2\n"


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str | bytes, str], Path]:
    def write(text: str | bytes, name: str = "config.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def rules_of(path: Path) -> set[str]:
    return {problem.rule for report in validate([path]) for problem in report.problems}


def test_every_problem_of_every_file_in_one_go(cli: Run) -> None:
    files = [FILES / "fsdp-unknown-key" / "bad.yaml", FILES / "tab" / "bad.yaml", ROOT / "accelerate_configs/ddp.yaml"]
    done = cli("validate", *files)
    assert done.returncode == 1
    first, one, second, other, third = done.stdout.splitlines()
    assert first.endswith("fsdp-unknown-key/bad.yaml: 1 error")
    assert "15 error    fsdp_config.fsdp_reshard_after_foward=True: unknown key;" in one
    assert one.endswith("Fix: did you mean fsdp_reshard_after_forward? [fsdp-unknown-key]")
    assert second.endswith("tab/bad.yaml: 1 error")
    assert "10 error" in other
    assert third.endswith("ddp.yaml: nothing to correct")
    assert done.stderr == ""


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    path = FILES / "fsdp-unknown-key" / "bad.yaml"
    assert run(["--json", str(path), str(ROOT / "accelerate_configs" / "fsdp1.yaml")]) == 1
    first, second = json.loads(capsys.readouterr().out)
    assert first == {
        "file": str(path),
        "line": 15,
        "severity": "error",
        "key": "fsdp_config.fsdp_reshard_after_foward",
        "value": True,
        "consequence": "unknown key; accelerate drops it silently and takes the default.",
        "fix": "did you mean fsdp_reshard_after_forward?",
        "rule": "fsdp-unknown-key",
    }
    assert (second["severity"], second["rule"]) == ("warning", "fsdp1")


def test_exit_status(cli: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([str(ROOT / "accelerate_configs" / "ddp.yaml")]) == 0
    assert run([str(ROOT / "accelerate_configs" / "fsdp1.yaml")]) == 0  # a warning
    assert run(["nowhere.yaml"]) == 1
    assert "no such file" in capsys.readouterr().out
    assert cli("validate").returncode == 2
    assert "examples:" in cli("validate", "--help").stdout


def test_it_is_fast_because_it_imports_no_torch() -> None:
    code = (
        "import sys; from unsloth_accel.cli.validate import run; "
        "run(['tests/rules/pair-optimizer/bad', 'accelerate_configs']); "
        "print([name for name in ('torch', 'accelerate', 'transformers', 'trl', 'unsloth') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_hardware_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    ddp = str(ROOT / "accelerate_configs" / "ddp.yaml")
    assert run(["--hardware", "8xH100-80GB", ddp]) == 0
    assert run(["--hardware", "1xT4", ddp]) == 1
    assert "2 processes need 2 GPUs and 1 are visible" in capsys.readouterr().out


def test_a_directory_without_a_pair_is_every_config_in_it(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(DDP, encoding="utf-8")
    (tmp_path / "b.json").write_text("{}", encoding="utf-8")
    (tmp_path / "notes.txt").write_text("x", encoding="utf-8")
    assert [Path(report.document.file).name for report in validate([tmp_path])] == ["a.yaml", "b.json"]


@pytest.mark.parametrize("path", FOREIGN, ids=lambda path: path.name)
def test_configs_of_other_projects_get_a_fitting_answer(path: Path) -> None:
    fitting = {
        "accelerate_deepspeed.yaml": {"deepspeed"},
        "accelerate_megatron.yaml": {"megatron-lm"},
        "accelerate_mpi_cpu.yaml": {"same-network-ignored"},
        "accelerate_old_wizard.yaml": {
            *("fsdp-version-missing", "fsdp-unknown-key", "fsdp-cpu-ram-efficient-loading"),
        },
        "accelerate_sagemaker.yaml": {"sagemaker"},
        "accelerate_tpu_pod.yaml": {"tpu", "tpu-keys-ignored", "commands-ignored"},
        "accelerate_xpu.yaml": {"other-device"},
        "axolotl.yaml": {"training-script"},
        "deepspeed_zero3.json": {"deepspeed-json"},
        "kubernetes.yaml": {"unknown-kind"},
        "llamafactory.yaml": {"training-script"},
        "torchtune.yaml": {"training-script"},
        "transformers_fsdp.json": {"transformers-fsdp"},
        "trl_script.yaml": {"training-script"},
    }
    assert rules_of(path) == fitting[path.name]


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
    document = read(config(text))
    assert document.get("num_processes") == 0
    assert document.get("main_process_port") == 2
    assert document.get("machine_rank") == 0  # the first of several merged ones
    assert document.get("debug") is True  # its own key
    problems = {problem.rule: problem for problem in check(document)}
    assert set(problems) == {"unknown-key", "num-processes-impossible", "debug-hides-failure", "merge-conflict"}
    assert "takes machine_rank from several mappings, as 0 and 5" in str(problems["merge-conflict"])
    assert problems["num-processes-impossible"].line == 1  # where it is written
    # An edit there would change what else uses it.
    assert repaired(document, [problems["num-processes-impossible"]])[1] == []


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
        document = read(config(text))
        found = check(document)
        assert {problem.rule for problem in found} - {"nested-unknown-key"} == {*mendable, "fsdp-no-wrap"}
        assert {problem.rule for problem in repaired(document, found)[1]} - {"nested-unknown-key"} == mended


def test_no_tag_runs_code(tmp_path: Path, config: Callable[..., Path]) -> None:
    mark = tmp_path / "mark"
    for tag in ("!!python/object/apply:os.system", "!!python/object/new:os.system", "!!python/name:os.system"):
        assert rules_of(config(f'{DDP}main_process_ip: {tag} ["touch {mark}"]\n')) == {"unknown-tag"}
    assert not mark.exists()


# --fix


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
    assert "fsdp_config.fsdp_offload_params: fsdp_offload_params: true, or false [fsdp-not-boolean]" in said
    assert rules_of(tmp_path / "config.fixed.yaml") == {"fsdp-not-boolean"}


def test_fix_in_json(config: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    fixed, _ = fix(config('{"distributed_type": "MULTI_GPUS",\n "num_process": 2}\n', "config.json"), capsys)
    assert fixed == '{"distributed_type": "MULTI_GPU",\n "num_processes": 2}\n'


def test_fix_overwrites_nothing(
    config: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(DDP.replace("2", "'2'"))
    mine = tmp_path / "config.fixed.yaml"
    mine.write_text("mine", encoding="utf-8")
    assert run(["--fix", str(path)]) == 1
    assert "is there already; nothing was written" in capsys.readouterr().out
    assert mine.read_text(encoding="utf-8") == "mine"


def test_fix_leaves_what_is_a_choice(
    tmp_path: Path, config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(DDP + "fsdp_config: {fsdp_version: 2}\n")
    assert run(["--fix", str(path)]) == 1
    assert "nothing to repair without a choice" in capsys.readouterr().out
    lines = "fsdp_transformer_layer_cls_to_wrap:\n    - LlamaDecoderLayer  # text\n    - Qwen3DecoderLayer\n"
    good = FILES.joinpath("fsdp-layer-class-list", "good.yaml").read_text(encoding="utf-8")
    path = config(good.replace("fsdp_transformer_layer_cls_to_wrap: LlamaDecoderLayer\n", lines))
    assert rules_of(path) == {"fsdp-layer-class-list"}
    assert run(["--fix", str(path)]) == 1
    assert "nothing that can be repaired line by line" in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("rule", RULES)
def test_a_repair_mends_its_problem_and_makes_no_other(rule: str) -> None:
    (path,) = FILES.joinpath(rule).glob("bad*")
    document = read(path)
    if not document.text:
        return
    found = check(document)
    text, mended, _ = repaired(document, found)
    again = {problem.rule for problem in check(read_text(text, document.file))}
    assert again == {problem.rule for problem in found} - {problem.rule for problem in mended}


def test_enough_rules_can_be_repaired() -> None:
    files = [path for rule in RULES for path in FILES.joinpath(rule).glob("bad.*")]
    mended: set[str] = set()
    for path in files:
        document = read(path)
        mended |= {problem.rule for problem in repaired(document, check(document))[1]}
    assert len(mended) >= 30


# launch


def test_launch_validates_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cpu = Hardware(cpu_cores=2, host_memory_gib=8, reason="no driver")
    path = write_yaml(tmp_path / "c.yaml", {"distributed_type": "NO", "num_processes": 1, "enable_cpu_affinty": True})
    with pytest.raises(ConfigError, match=r"c\.yaml:2: enable_cpu_affinty.*did you mean enable_cpu_affinity"):
        launch(["--config_file", str(path), SCRIPT], run=lambda command: pytest.fail("it ran"), hardware=cpu)
    write_yaml(path, {"distributed_type": "NO", "num_processes": 1, "enable_cpu_affinity": True})
    ran: list[Any] = []
    launch(["--config_file", str(path), SCRIPT], run=ran.append, hardware=cpu)
    assert len(ran) == 1
    assert "warning: " in capsys.readouterr().err
    launch(["--config_file", str(path), "--enable_cpu_affinity", SCRIPT], run=ran.append, hardware=cpu)
    assert capsys.readouterr().err == ""
    launch(["--config_file", "accelerate_configs/cpu_ddp.yaml", SCRIPT], run=ran.append, hardware=cpu)
    assert capsys.readouterr().err == ""  # launch itself says what accelerate leaves out


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
    found = check(document)
    holds(found)
    holds(check(read_text(repaired(document, found)[0])))


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
        found = check(document)
        holds(found)
        holds(check(read_text(repaired(document, found)[0], file)))


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
