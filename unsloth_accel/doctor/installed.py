"""Checks of the installation: Python, the platform, and every version against the bounds of its users.

The bounds are those in the metadata of the installed Unsloth and of this package: of what will run, not of a list
kept here. A lower bound and an exclusion stand for something known to fail, so to break one is an error. An upper bound
says how far somebody has tried: what is newer may work, and is a warning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from .machine import Machine
from .result import REPORT, Result, error, warning

if TYPE_CHECKING:
    from packaging.requirements import Requirement
    from packaging.specifiers import Specifier

CORE = (
    *("torch", "transformers", "trl", "peft", "accelerate", "datasets", "huggingface-hub", "triton", "bitsandbytes"),
    "xformers",
)
"""Packages with a line of their own."""
OPTIONAL = {
    "bitsandbytes": "model.load_in_4bit and 8-bit optimizers can't run",
    "xformers": "Unsloth falls back to another attention",
}
"""Packages that Unsloth requires and trains without, and what is lost."""
UPPER = ("<", "<=")
"""Operators of a bound beyond which nobody tried."""
REQUIRERS = ("unsloth", "unsloth_zoo", "unsloth_accel")
UNSLOTH_ON_A_CPU = "2026.10.9"
"""The newest Unsloth that this package was tried with on a CPU."""


def machine_read(machine: Machine) -> Iterator[Result]:
    """Parts of this machine that could not be read at all."""
    for fault in machine.faults:
        yield error("machine", f"could not be read: {fault}", REPORT)


def python(machine: Machine) -> Iterator[Result]:
    """Python against the bounds of Unsloth and torch."""
    from packaging.specifiers import SpecifierSet

    bounds = {name: machine.packages.requires_python(name) for name in (*REQUIRERS, "torch")}
    refused = {name: bound for name, bound in bounds.items() if machine.python not in SpecifierSet(bound)}
    if not refused:
        yield Result(name="python", detail=machine.python)
        return
    said = ", ".join(f"{name} wants {bound}" for name, bound in refused.items())
    fix = "make a new environment with a Python in these bounds: python3.12 -m venv .venv, then install again"
    yield error("python", f"{machine.python}; {said}", fix)


def platform(machine: Machine) -> Iterator[Result]:
    """NCCL, and with it several GPUs, exists on Linux only."""
    detail = f"{machine.system} {machine.architecture}"
    if machine.system == "Linux":
        yield Result(name="platform", detail=detail)
        return
    where = {"Windows": "use WSL2 or a Linux machine", "Darwin": "use a Linux machine; plan and validate work here"}
    fix = where.get(machine.system, "use a Linux machine")
    detail += ": torch has no NCCL here, so several GPUs can't train together"
    yield warning("platform", detail, fix, "torch.distributed: NCCL is built for Linux only")


def unsloth(machine: Machine) -> Iterator[Result]:
    """Unsloth and unsloth_zoo: there, of one release, and able to run on this machine."""
    own, zoo = machine.packages.version("unsloth"), machine.packages.version("unsloth_zoo")
    if own is None or zoo is None:
        missing = [name for name, version in (("unsloth", own), ("unsloth_zoo", zoo)) if version is None]
        yield error("unsloth", f"{' and '.join(missing)} not installed", _install_unsloth(machine))
        return
    detail = f"{own}, unsloth_zoo {zoo}"
    if own.release != zoo.release:
        newest = max(own, zoo)
        fix = f'pip install --no-deps "unsloth=={newest}" "unsloth_zoo=={newest}"'
        yield warning("unsloth", f"{detail}: the two patch the same functions and are released together", fix)
    elif machine.without_gpu and machine.packages.file("unsloth", "unsloth/_cpu_init.py") is None:
        detail += ": this release has no CPU backend, and this process sees no GPU"
        yield error("unsloth", detail, _install_unsloth(machine))
    else:
        yield Result(name="unsloth", detail=detail)


def versions(machine: Machine) -> Iterator[Result]:
    """Every required package against the bounds of all that require it."""
    wanted = _wanted(machine)
    listed = [name for name in CORE if name in wanted]
    for name in listed:
        yield _version(machine, name, wanted[name])
    others = [_version(machine, name, wanted[name]) for name in sorted(wanted.keys() - listed)]
    faulty = [result for result in others if result.status != "ok"]
    for result in faulty:
        # What only Unsloth's inference or data tools use must not stop a run.
        yield result if result.name in _ours(machine) else replace(result, status="warning")
    if not faulty:
        yield Result(name="other packages", detail=f"{len(others)} within the bounds of {', '.join(REQUIRERS)}")


def _wanted(machine: Machine) -> dict[str, list[tuple[str, Requirement]]]:
    """Return who requires what on this machine, by canonical package name.

    On a CPU Unsloth runs without most of what it requires; there only the packages in this package's `cpu` extra count.
    """
    from packaging.utils import canonicalize_name

    extra = "cpu" if machine.without_gpu else "gpu"
    ours = _ours(machine, extra)
    wanted: dict[str, list[tuple[str, Requirement]]] = {}
    for requirer in REQUIRERS:
        for one in machine.packages.requirements(requirer, extra if requirer == "unsloth_accel" else ""):
            name = canonicalize_name(one.name)
            needed = not machine.without_gpu or name in ours or name in ("unsloth-zoo", "huggingface-hub")
            if needed and name != "unsloth":
                wanted.setdefault(name, []).append((requirer, one))
    return wanted


def _version(machine: Machine, name: str, wanted: Sequence[tuple[str, Requirement]]) -> Result:
    from packaging.specifiers import SpecifierSet

    version = machine.packages.version(name)
    if name == "torch" and machine.torch is not None:
        version = machine.torch.version  # says the build too
    bound = SpecifierSet()
    for _, one in wanted:
        bound &= one.specifier
    fix = _install(machine, name, str(bound))
    if version is None:
        lost = OPTIONAL.get(name)
        if lost:
            return warning(name, f"not installed; {lost}", fix)
        return error(name, f"not installed; required by {' and '.join(requirer for requirer, _ in wanted)}", fix)
    clauses = [(requirer, clause) for requirer, one in wanted for clause in one.specifier]
    broken = [(requirer, clause) for requirer, clause in clauses if not clause.contains(version, prereleases=True)]
    if not broken:
        return Result(name=name, detail=str(version))
    if not all(clause.operator in UPPER for _, clause in broken):
        return error(name, f"{version} is out of bounds ({_said(broken)})", fix)
    upper = [(requirer, clause) for requirer, clause in clauses if clause.operator in UPPER]
    ours = [pair for pair in upper if pair[0] == "unsloth_accel" and pair not in broken]
    if ours:
        tried = f"but in those of what was tried here ({_said(ours)})"
        return warning(name, f"{version} is out of bounds ({_said(broken)}), {tried}", fix)
    return warning(name, f"{version} is newer than what was tried ({_said(broken)})", fix)


def _said(clauses: Sequence[tuple[str, Specifier]]) -> str:
    """Return clauses with their requirers: `unsloth and unsloth_zoo: <=5.17.0`."""
    whose: dict[str, dict[str, None]] = {}
    for requirer, clause in clauses:
        whose.setdefault(str(clause), {})[requirer] = None
    return ", ".join(f"{' and '.join(requirers)}: {clause}" for clause, requirers in whose.items())


def _install(machine: Machine, name: str, bound: str) -> str:
    command = f'pip install "{name}{bound}"'
    if name == "torch" and machine.without_gpu:
        return f"{command}, with PIP_EXTRA_INDEX_URL set to PyTorch's CPU index if you want no CUDA build"
    return command


def _install_unsloth(machine: Machine) -> str:
    if machine.without_gpu:
        both = f"unsloth=={UNSLOTH_ON_A_CPU} unsloth_zoo=={UNSLOTH_ON_A_CPU}"
        return f'pip install "unsloth_accel[cpu]" && pip install --no-deps {both} (`make install` does both)'
    return 'pip install "unsloth_accel[gpu]" (`make install` in a checkout)'


def _ours(machine: Machine, extra: str = "") -> set[str]:
    """Return the canonical names of the packages that this one requires."""
    from packaging.utils import canonicalize_name

    return {canonicalize_name(one.name) for one in machine.packages.requirements("unsloth_accel", extra)}
