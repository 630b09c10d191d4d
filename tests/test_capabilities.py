"""What installed versions can do: looked for in real releases' file and function names, and held against a plan."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import CONFIG, ROOT
from releases import NEWEST, OLDER, UNSLOTH, looked

from unsloth_accel.capabilities.probe import Capabilities, here, probe
from unsloth_accel.config.read_run import from_dict
from unsloth_accel.errors import ConfigError
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.models.spec import from_config
from unsloth_accel.planning.plan import Plan
from unsloth_accel.planning.planner import plan
from unsloth_accel.strategies import STRATEGIES


def planned(found: Capabilities, name: str, strategy: str = "auto", *, elsewhere: bool = False) -> Plan:
    values: dict[str, Any] = {
        "model": {"name": name},
        "batch": {"global_size": 64},
        "distributed": {"strategy": strategy},
    }
    hardware = Hardware.parse("8xH100-80GB")
    return plan(from_dict(values, to_plan=True), hardware, capabilities=found, elsewhere=elsewhere)


SMALL, LARGE = "unsloth/Llama-3.1-8B-Instruct", "unsloth/Llama-3.3-70B-Instruct"


def test_the_newest_release_lacks_nothing(tmp_path: Path) -> None:
    found = looked(tmp_path, NEWEST)
    assert found.missing == ()
    assert found.strategies("cuda") == ["single", "ddp", "fsdp2", "fsdp2_native", "fsdp1"]
    assert found.strategies("cpu") == ["single", "ddp", "fsdp2_native"]


@pytest.mark.parametrize("version", OLDER)
def test_an_older_release_keeps_ddp(version: str, tmp_path: Path) -> None:
    found = looked(tmp_path, version)
    assert found.strategies("cuda")[:2] == ["single", "ddp"]
    assert not {"fsdp2", "fsdp2_native"} & set(found.strategies("cuda"))
    assert found.strategies("cpu") == []
    assert f"unsloth {version} has no unsloth/models/fsdp2_native.py" in found.unavailable("cuda")["fsdp2_native"]


def test_releases_are_told_apart_by_names(tmp_path: Path) -> None:
    """Not by version numbers: GRPO's synchronisation came in a 2026.9, DDP's unused parameters after it."""
    lost = {}
    for version in (*OLDER, NEWEST):
        lost[version] = {one.what for one in looked(tmp_path / version, version).missing}
    assert "GRPO under DDP" in lost["2026.8.22"]
    assert "GRPO under DDP" not in lost["2026.9.14"]
    assert "rotary buffers kept out of DDP" in lost["2025.12.10"]
    assert "rotary buffers kept out of DDP" not in lost["2026.8.22"]
    assert "placement by LOCAL_RANK" not in lost["2026.9.14"]
    assert "DDP's unused parameters" in lost["2026.9.14"]
    assert "loss that DDP may scale" in lost["2025.12.10"]
    assert "loss that DDP may scale" not in lost["2026.8.22"]


@pytest.mark.parametrize("one", UNSLOTH, ids=lambda one: one.what)
def test_every_probe_of_unsloth_can_fail(one: Any, tmp_path: Path) -> None:
    found = looked(tmp_path, NEWEST, without=one.places[0].partition(":")[0])
    assert one.what in {lost.what for lost in found.missing}
    needing = {strategy.name for strategy in STRATEGIES if one.what in strategy.needs}
    assert needing <= set(found.unavailable(one.only or "cuda", load_in_4bit=one.only == "4bit"))


def test_four_bit_is_looked_at_only_where_it_is_used(tmp_path: Path) -> None:
    found = looked(tmp_path, NEWEST, without="unsloth/models/fsdp2_qlora.py")
    assert found.unavailable("cuda") == {}
    assert set(found.unavailable("cuda", load_in_4bit=True)) == {"fsdp2", "fsdp2_native"}


@pytest.mark.parametrize(
    ("source", "package", "lost"),
    [
        ("def varlen_attn(query, window_size): ...", None, True),  # torch 2.11
        ("def varlen_attn(query, window_size, enable_gqa): ...", None, False),
        ("def varlen_attn(query, window_size): ...", "xformers", False),
        ("def varlen_attn(query, window_size): ...", "flash_attn", False),
    ],
)
def test_attention_of_many_rows(source: str, package: str | None, lost: bool, tmp_path: Path) -> None:
    what = "attention of many rows in one call"
    files = {"unsloth/__init__.py": "", "torch/__init__.py": "", "torch/nn/attention/varlen.py": source}
    for name, text in (files | ({f"{package}/__init__.py": ""} if package else {})).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    found = probe([str(tmp_path)])
    assert (what in [one.what for one in found.missing]) == lost
    assert found.strategies("cuda")[:2] == ["single", "ddp"]


def test_nothing_is_said_without_unsloth(tmp_path: Path) -> None:
    found = probe([str(tmp_path)])
    assert (found.versions, found.missing, found.unavailable("cuda")) == ({}, (), {})


def test_what_is_installed_here() -> None:
    """The versions that these tests run with have everything but what a CPU installation leaves out."""
    assert {one.package for one in here().missing} <= {"triton", "bitsandbytes"}


def test_a_look_imports_nothing() -> None:
    code = "import sys\nfrom unsloth_accel.capabilities.probe import here\nhere()\n"
    code += "print(sorted({'torch', 'unsloth', 'transformers', 'accelerate', 'trl', 'peft'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_plan_rejects_what_the_versions_lack(tmp_path: Path) -> None:
    found = looked(tmp_path, "2026.8.22")
    made = planned(found, SMALL)
    assert made.strategy == "ddp"
    why = {option.strategy: option.reason for option in made.rejected}
    assert why["fsdp2_native"].startswith("unsloth 2026.8.22 has no unsloth/models/fsdp2_native.py")
    assert why["fsdp2"].startswith("unsloth 2026.8.22 has no unsloth/models/fsdp2.py")
    assert set(why) == {"fsdp2", "fsdp2_native", "fsdp1", "single"}
    assert not any("fsdp2" in reason for reason in made.reasons)


def test_a_model_that_only_sharding_would_fit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        planned(looked(tmp_path, "2026.8.22"), LARGE)
    (problem,) = raised.value.problems
    assert "fsdp2_native: unsloth 2026.8.22 has no" in problem.consequence
    assert "model.load_in_4bit=true (ddp)" in problem.fix
    assert "such GPUs" not in problem.fix


@pytest.mark.parametrize("strategy", ["fsdp2", "fsdp2_native", "fsdp1"])
def test_what_is_asked_for_and_lacking_is_refused(strategy: str, tmp_path: Path) -> None:
    found = looked(tmp_path, "2025.12.10")
    with pytest.raises(ConfigError, match=r"unsloth 2025\.12\.10 has no") as raised:
        planned(found, SMALL, strategy)
    (problem,) = raised.value.problems
    assert (problem.key, problem.value) == ("distributed.strategy", strategy)
    assert problem.fix.startswith("pip install -U unsloth")
    assert problem.fix.endswith("distributed.strategy=ddp")


def test_elsewhere_it_is_a_note(tmp_path: Path) -> None:
    made = planned(looked(tmp_path, "2026.8.22"), LARGE, elsewhere=True)
    assert made.strategy == "fsdp2"
    assert any("needs other versions than are installed here" in reason for reason in made.reasons)
    assert not any("other versions" in reason for reason in planned(here(), LARGE, elsewhere=True).reasons)


def test_on_a_cpu_it_is_refused_without_a_backend(tmp_path: Path) -> None:
    values: dict[str, Any] = {"model": {"name": "tiny", "max_seq_length": 64}, "batch": {"global_size": 8}}
    hardware = Hardware(cpu_cores=2, host_memory_gib=8, reason="no driver")
    spec = from_config(CONFIG, name="tiny")
    with pytest.raises(ConfigError, match="Unsloth stops at import") as raised:
        plan(from_dict(values, to_plan=True), hardware, spec, looked(tmp_path, "2026.9.14"))
    assert raised.value.problems[0].key == "distributed.device"
    assert "strategy=ddp" not in raised.value.problems[0].fix
