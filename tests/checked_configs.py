"""Configs to validate, and what the rules say of them."""

from pathlib import Path

from conftest import ROOT

from unsloth_accel.validation.rules import validate

FILES = ROOT / "tests" / "rules"
DDP = "distributed_type: MULTI_GPU  # two GPUs\nnum_processes: 2\n"


def rules_of(path: Path) -> set[str]:
    return {problem.rule for report in validate([path]) for problem in report.problems}


def fixture(rule: str, name: str) -> Path:
    """The file of a rule whose name begins so: `bad` or `good`."""
    (path,) = FILES.joinpath(rule).glob(f"{name}*")
    return path
