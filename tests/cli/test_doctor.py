import json
import platform
import subprocess
import sys

import pytest
from conftest import ROOT, Run

from unsloth_accel.cli.doctor import entries
from unsloth_accel.doctor import (
    Result,
)


def test_the_report_is_aligned_and_counts() -> None:
    results = [
        Result(name="torch", detail="2.13.0"),
        Result(name="known-bad pair", status="error", detail="it breaks", fix="pip install", reference="accelerate#1"),
    ]
    assert [f"{prefix}{text}".rstrip() for prefix, text in entries(results)] == [
        "ok       torch           2.13.0",
        "error    known-bad pair  it breaks",
        "                         fix: pip install  [accelerate#1]",
        "",
        "1 error, 0 warnings in 2 results",
    ]


def test_quick_reads_this_machine_without_torch() -> None:
    code = (
        "import sys; from unsloth_accel.cli.main import main; status = main(['doctor', '--quick', '--json'])\n"
        "assert not {'torch', 'unsloth', 'accelerate', 'transformers'} & set(sys.modules), 'heavy imports'\n"
        "sys.exit(status)"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert said.stderr == ""
    report = json.loads(said.stdout)
    results = report["results"]
    assert said.returncode == report["exit_status"] == int(any(one["status"] == "error" for one in results))
    by_name = {one["name"]: one for one in results}
    assert by_name["python"]["detail"] == platform.python_version()
    assert set(by_name["python"]) == {"name", "status", "detail", "fix", "reference"}
    assert not any(name.startswith("all-reduce") for name in by_name)


def test_help_has_an_example(cli: Run) -> None:
    said = cli("doctor", "--help")
    assert said.returncode == 0
    assert "unsloth-accel doctor --quick" in said.stdout


@pytest.mark.slow
def test_doctor_on_this_machine(cli: Run) -> None:
    said = cli("doctor", "--json")
    report = json.loads(said.stdout)
    assert said.returncode == report["exit_status"]
    by_name = {one["name"]: one for one in report["results"]}
    assert by_name["all-reduce, gloo"]["status"] == "ok", by_name["all-reduce, gloo"]
    assert by_name["all-reduce, gloo"]["detail"] == "2 processes, exact sum"
    # The GPU recipe's Unsloth has no CPU backend, and tests hide the GPUs.
    assert {one["name"] for one in report["results"] if one["status"] == "error"} <= {"unsloth"}
