"""Doctor: what is wrong with this machine or installation, and the fix.

Every check is a small function from a `Machine` to `Result`s; none imports torch or Unsloth. Only the process test
starts programs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from . import gpus, host, installed, known_bad, processes, runnable_strategies, services, shell_variables
from .machine import Machine, this_machine
from .processes import TIME_LIMIT
from .result import Result, Status, collect

__all__ = ["CHECKS", "TIME_LIMIT", "Machine", "Result", "Status", "examine", "exit_status"]

CHECKS: tuple[tuple[str, Callable[[Machine], Iterable[Result]]], ...] = (
    ("machine", installed.machine_read),
    ("python", installed.python),
    ("platform", installed.platform),
    ("unsloth", installed.unsloth),
    ("versions", installed.versions),
    ("capabilities", runnable_strategies.capabilities),
    ("additions", runnable_strategies.added),
    ("known-bad pairs", known_bad.pairs),
    ("torch build", known_bad.torch_for_device),
    ("kernels", known_bad.kernels),
    ("compiled packages", known_bad.built_for_another_torch),
    ("NCCL", known_bad.nccl),
    ("GPUs", gpus.gpus),
    ("GPU kinds", gpus.kinds),
    ("GPU links", gpus.links),
    ("CUDA_VISIBLE_DEVICES", shell_variables.visible_devices),
    ("environment", shell_variables.variables),
    ("accelerate config", shell_variables.default_config),
    ("disk", host.disk),
    ("/dev/shm", host.shared_memory),
    ("open files", host.open_files),
    ("memory", host.host_memory),
    ("proxy", services.proxy),
    ("hub", services.hub),
    ("reporters", services.reporters),
)


def examine(*, quick: bool = False, time_limit: float = TIME_LIMIT, machine: Machine | None = None) -> list[Result]:
    """Run every check and return all results; never raises. `quick` starts no processes.

    `time_limit` is in seconds, for each test that starts processes. `machine` is given by tests.
    """
    machine = machine or this_machine()
    checks = [*CHECKS]
    if not quick:
        checks.append(("all-reduce", lambda one: processes.all_reduce(one, time_limit)))
    return collect(checks, machine)


def exit_status(results: Sequence[Result]) -> int:
    """0 when there is no error, 1 otherwise; warnings don't count."""
    return int(any(result.status == "error" for result in results))
