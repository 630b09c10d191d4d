import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT
from doctor_machines import OWN, UNSLOTH, Place, bad, device, machine, only

from unsloth_accel.doctor import (
    installed,
)
from unsloth_accel.doctor.machine import Packages


def test_a_python_out_of_bounds_is_an_error(place: Place) -> None:
    place.add("unsloth", "2026.10.9", UNSLOTH, python="<3.15,>=3.9")
    found = only(installed.python, replace(machine(place), python="3.15.0"))
    assert found.status == "error"
    assert "unsloth wants <3.15,>=3.9" in found.detail
    assert "torch" not in found.detail


@pytest.mark.parametrize("system", ["Windows", "Darwin"])
def test_other_systems_are_told_of_nccl(place: Place, system: str) -> None:
    assert "Linux machine" in only(installed.platform, replace(machine(place), system=system)).fix


@pytest.mark.parametrize(
    ("name", "version", "status", "clause"),
    [
        ("transformers", "5.18.0", "warning", "unsloth: <=5.17.0"),
        ("transformers", "5.0.0", "error", "unsloth: !=5.0.0"),
        ("trl", "1.16.0", "warning", "unsloth: <=1.15.0"),
        ("trl", "0.17.0", "error", "unsloth_accel: >=0.18.2"),
        ("accelerate", "1.14.0", "error", "unsloth_accel: >=1.15"),
    ],
)
def test_a_version_out_of_bounds_names_the_clause_and_whose_it_is(
    place: Place, name: str, version: str, status: str, clause: str
) -> None:
    place.add(name, version)
    found = only(installed.versions, machine(place))
    assert (found.name, found.status) == (name, status)
    assert f"({clause})" in found.detail


@pytest.mark.parametrize(
    ("version", "status", "detail"),
    [
        ("5.17.0", "ok", "5.17.0"),
        (
            "5.24.0",
            "warning",
            "5.24.0 is out of bounds (unsloth: <=5.17.0), but in those of what was tried here "
            "(unsloth_accel: <=5.24.0)",
        ),
        (
            "5.25.0",
            "warning",
            "5.25.0 is newer than what was tried (unsloth: <=5.17.0, unsloth_accel: <=5.24.0)",
        ),
        ("5.1.0", "error", "5.1.0 is out of bounds (unsloth_accel: !=5.1.0)"),
    ],
)
def test_what_nobody_tried_is_a_warning_with_the_figure(place: Place, version: str, status: str, detail: str) -> None:
    place.own.write_text(OWN.replace("    transformers\n", "    transformers!=5.1.0,<=5.24.0\n"), encoding="utf-8")
    place.add("transformers", version)
    found = next(result for result in installed.versions(machine(place)) if result.name == "transformers")
    assert (found.status, found.detail) == (status, detail)


def pins(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==([\w.]+)", text, flags=re.MULTILINE))


def test_what_is_pinned_lies_within_our_bounds() -> None:
    """And all that is required is pinned."""
    pinned = pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    for extra in ("cpu", "quickstart", "test"):
        for one in Packages().requirements("unsloth_accel", extra):
            assert one.name == "wheel" or one.specifier.contains(pinned[one.name.lower().replace("_", "-")]), one


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_make_installs_what_is_pinned(device: str, tmp_path: Path) -> None:
    """On GPUs all but torch and triton, which Unsloth's own requirements choose."""
    (tmp_path / "venv").mkdir()
    command = ["make", "--dry-run", "install", f"DEVICE={device}", f"VENV={tmp_path / 'venv'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    printed = [line for line in done.stdout.splitlines() if " pip " in line and " --upgrade " not in line]
    assert printed
    assert all(re.search(r" -c \S*constraints\.txt ", line) for line in printed)
    whole = pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    for line in done.stdout.splitlines():
        if line.startswith("sed "):
            subprocess.run(line, shell=True, cwd=ROOT, check=True)
    left = tmp_path / "venv" / "constraints.txt"
    used = pins(left.read_text(encoding="utf-8")) if device == "cuda" else whole
    assert whole.keys() - used.keys() == ({"torch", "triton"} if device == "cuda" else set())


def test_the_fix_is_the_pip_command_with_both_bounds(place: Place) -> None:
    place.add("trl", "1.16.0")
    assert only(installed.versions, machine(place)).fix == 'pip install "trl<=1.15.0,>=0.18.2"'


def test_bounds_follow_the_installed_unsloth(place: Place) -> None:
    place.add("trl", "1.16.0")
    place.add("unsloth", "2026.11.1", ("trl<=1.16.0",))
    assert bad(installed.versions, machine(place)) == []


def test_torch_out_of_bounds_keeps_its_build_in_the_report(place: Place) -> None:
    place.torch("2.15.0+cpu")
    found = only(installed.versions, machine(place))
    assert found.status == "warning"
    assert "2.15.0+cpu" in found.detail
    assert "unsloth and unsloth_accel: <2.15" in found.detail


def test_on_a_cpu_only_what_the_cpu_extra_names_is_needed(place: Place) -> None:
    for name in ("einops", "xformers", "bitsandbytes"):
        place.remove(name)
    assert bad(installed.versions, machine(place)) == []
    found = {result.name: result.status for result in bad(installed.versions, machine(place, device(0)))}
    assert found == {"einops": "warning", "xformers": "warning", "bitsandbytes": "warning"}


def test_a_package_of_our_own_bounds_that_is_missing_is_an_error(place: Place) -> None:
    place.remove("accelerate")
    found = only(installed.versions, machine(place))
    assert (found.status, found.fix) == ("error", 'pip install "accelerate>=1.15"')


def test_missing_unsloth_gets_the_recipe_of_this_machine(place: Place) -> None:
    place.remove("unsloth_zoo")
    found = only(installed.unsloth, machine(place))
    assert found.detail == "unsloth_zoo not installed"
    assert f"--no-deps unsloth=={installed.UNSLOTH_ON_A_CPU}" in found.fix
    assert "[gpu]" in only(installed.unsloth, machine(place, device(0))).fix


def test_the_cpu_recipe_is_the_makefiles() -> None:
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert {f"{name}=={installed.UNSLOTH_ON_A_CPU}" for name in ("unsloth", "unsloth-zoo")} <= set(pinned)


def test_unsloth_and_its_zoo_of_two_releases_are_told(place: Place) -> None:
    place.add("unsloth_zoo", "2026.10.10")
    found = only(installed.unsloth, machine(place))
    assert found.status == "warning"
    assert found.fix == 'pip install --no-deps "unsloth==2026.10.10" "unsloth_zoo==2026.10.10"'


def test_unsloth_without_a_cpu_backend_is_an_error_only_without_gpus(place: Place) -> None:
    (place.directory / "unsloth" / "_cpu_init.py").unlink()
    assert "no CPU backend" in only(installed.unsloth, machine(place)).detail
    assert bad(installed.unsloth, machine(place, device(0))) == []
