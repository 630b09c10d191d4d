"""Every rule has a file that triggers it and the nearest one that doesn't, and says all that is needed."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
from checked_configs import DDP, FILES, fixture
from conftest import ROOT

from unsloth_accel.config.accelerate_config import AccelerateConfig
from unsloth_accel.hardware.device import Device
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.strategies import STRATEGIES
from unsloth_accel.validation import inputs
from unsloth_accel.validation.rules import RULES, Context, Finding, check_document, read_text, validate
from unsloth_accel.validation.rules.__main__ import table

GPU = Device(name="GPU", index=0, memory_gib=80, compute_capability=(9, 0))
TWO = Hardware(devices=(GPU, GPU), cpu_cores=8, host_memory_gib=64)
BESIDE = {"fsdp1", "deepspeed", "fsdp-size-based-wrap"}
"""Every file of FSDP's version 1, or for DeepSpeed, is warned of, whatever else is wrong with it or not."""


def found(path: Path, context: Context | None = None) -> list[Finding]:
    return [problem for report in validate([path], context) for problem in report.problems]


def context_for(rule: str) -> Context | None:
    if rule.startswith("run-input"):
        return Context(here=True)
    return Context(hardware=TWO) if rule == "too-few-gpus" else None


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files' models are had: whether the Hub has them is asked in test_hub_access.py."""
    monkeypatch.setattr(inputs, "hub_model_problems", lambda name, run: [])


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
        assert problem.severity in (RULES[problem.rule].severity, "warning")
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
    for path in sorted((ROOT / "examples" / "configs").glob("*.yaml")):
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
    assert {problem.rule for problem in check_document(read_text(config.to_yaml()))} == ({"fsdp1"} & {strategy})


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


def test_what_is_held_true_by_a_test_is_and_what_is_an_error_was_seen() -> None:
    reality = (ROOT / "tests" / "validation" / "test_rules_reality.py").read_text(encoding="utf-8")
    alone = {"nothing-to-read", "file-too-large", "alias-bomb", "too-few-gpus"}
    """No file, none that is read, one that would fill the memory, GPUs that aren't there."""
    for rule in RULES.values():
        tested = "held true by a test" in rule.reference
        assert not tested or re.search(rf"(?<![\w-]){rule.id}(?![\w-])", reality), rule.id
        if rule.severity == "error" and "accelerate" in rule.kinds:
            assert tested or "measured" in rule.reference or rule.id in alone, rule.id


def test_the_table_of_rules_is_up_to_date() -> None:
    committed = (ROOT / "docs" / "rules.md").read_text(encoding="utf-8")
    assert committed == table(), "run python -m unsloth_accel.validation.rules"


def test_the_command_line_wins() -> None:
    text = fixture("machine-rank-impossible", "bad").read_text(encoding="utf-8")
    assert check_document(read_text(text, context=Context(flags={"machine_rank": 0}))) == []
    text = fixture("num-processes-missing", "bad").read_text(encoding="utf-8")
    assert check_document(read_text(text, context=Context(flags={"num_processes": 2}))) == []


def test_a_directory_without_a_pair_is_every_config_in_it(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(DDP, encoding="utf-8")
    (tmp_path / "b.json").write_text("{}", encoding="utf-8")
    (tmp_path / "notes.txt").write_text("x", encoding="utf-8")
    assert [Path(report.document.file).name for report in validate([tmp_path])] == ["a.yaml", "b.json"]


def test_an_optimizer_without_kernels_for_a_cpu(tmp_path: Path) -> None:
    text = fixture("run-optimizer", "bad").read_text(encoding="utf-8").replace("strategy: fsdp2", "device: cpu")
    for optimizer, rules in (("lion_8bit", ["run-optimizer"]), ("paged_adamw_8bit", ["run-optimizer"]), ("sgd", [])):
        path = tmp_path / "run.yaml"
        path.write_text(text.replace("adamw_8bit", optimizer), encoding="utf-8")
        assert [problem.rule for problem in found(path)] == rules
