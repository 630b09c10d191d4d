"""Device and processes of a run on given hardware, and whether its strategy can be run by so many."""

from __future__ import annotations

from typing import Literal

from ..config.run_config import RunConfig
from ..config.trainer_settings import settings
from ..errors import Problem, counted
from ..hardware.device import Device
from ..hardware.hardware import Hardware
from ..hardware.parse import MOST_GPUS
from ..methods import METHODS
from ..strategies import STRATEGIES, usual
from .options import free_gib
from .ways import Refused, Way

STRATEGY, PROCESSES = "distributed.strategy", "distributed.num_processes"


def device_of(run: RunConfig, hardware: Hardware, reasons: list[str]) -> Literal["cuda", "cpu"]:
    """Return the device to train on, and add to `reasons` why it is a CPU; raises `Refused` where a GPU is lacking."""
    asked = run.distributed.device
    if asked == "cuda" and not hardware.devices:
        consequence = f"no GPU is visible: {hardware.reason}."
        problem = Problem(key="distributed.device", value=asked, consequence=consequence, fix="")
        raise Refused(problem, [[Way(changes={"distributed.device": "cpu"})]], "make a GPU visible")
    if asked == "cpu" or not hardware.devices:
        for name, consequence in _needs_gpu(run).items():
            if run.training.get(name):
                problem = Problem(key=f"training.{name}", value=True, consequence=consequence, fix="")
                raise Refused(problem, [[Way(changes={f"training.{name}": False})]])
        why = "distributed.device is cpu" if asked == "cpu" else f"no GPU is visible ({hardware.reason})"
        reasons.append(f"device cpu: {why}.")
        return "cpu"
    return "cuda"


def _needs_gpu(run: RunConfig) -> dict[str, str]:
    """Return what each field that is refused without a GPU would do there."""
    moves = "moves activations from a GPU to the host, and there is no GPU: every process fails."
    found = {"activation_offloading": moves}
    if METHODS[run.method].generates and settings(run).get("vllm_mode") == "server":
        found["use_vllm"] = "sends weights to the server by NCCL, from a GPU, and there is none: TRL's client stops."
    return found


def count_of(run: RunConfig, hardware: Hardware, device: str, reasons: list[str]) -> int:
    """Return the number of processes over all machines, with its reason; raises `Refused` for more than GPUs."""
    asked = run.distributed.num_processes
    gpus = len(hardware.devices) * hardware.num_machines
    if asked == "auto" and run.strategy and run.strategy.one_process:
        if device == "cuda" and gpus > 1:
            reasons.append(f"1 process: {run.strategy.name} is one; the other {gpus - 1} of {gpus} GPUs are idle.")
        return 1
    if asked == "auto" and device == "cuda":
        where = f" on each of {hardware.num_machines} machines" if hardware.num_machines > 1 else ""
        reasons.append(f"{counted(gpus, 'process')}: one per visible GPU{where}.")
        return gpus
    if asked == "auto":
        count = min(2, hardware.cpu_cores)
        why = "on a CPU more would only divide its cores; two take the multi-GPU path"
        reasons.append(f"{counted(count, 'process')}: {why}.")
        return count
    consequence = ""
    if device == "cuda" and 1 < asked < gpus and hardware.num_machines > 1:
        consequence = f"{hardware.num_machines} machines have {gpus} GPUs, and accelerate starts as many on each."
    elif device == "cuda" and asked > gpus:
        need = f"{counted(asked, 'process')} need{'s' * (asked == 1)} {counted(asked, 'GPU')}"
        consequence = f"{need} and {gpus} are visible ({hardware.reason})."
    if consequence:
        problem = Problem(key=PROCESSES, value=asked, consequence=consequence, fix="")
        numbers = [Way(changes={PROCESSES: number}) for number in (gpus, "auto")]
        more = [[Way(gpus=asked)]] if hardware.num_machines == 1 and asked <= MOST_GPUS else []
        raise Refused(problem, [numbers, *more])
    return int(asked)


def to_strategy(name: str) -> Way:
    """Return the way to another strategy."""
    return Way(changes={STRATEGY: name})


def other_strategies(count: int) -> list[list[Way]]:
    """Return the ways to the strategy that works wherever the model fits, or whichever the plan takes."""
    return [[to_strategy(usual(count).name), to_strategy("auto")]]


def with_processes(run: RunConfig, hardware: Hardware, count: int) -> list[Way]:
    """Return the ways in which `run` is one of `count` processes."""
    each, rest = divmod(count, hardware.num_machines)
    ways = [Way(changes={PROCESSES: count})]
    if hardware.devices and not rest and each <= MOST_GPUS:
        auto = {} if run.distributed.num_processes == "auto" else {PROCESSES: "auto"}
        ways.append(Way(changes=auto, gpus=each, machines=hardware.num_machines))
    return ways


def check_strategy(run: RunConfig, hardware: Hardware, count: int, device: str) -> None:
    """Raise `Refused` where the strategy asked for can't be run by `count` processes on `device`."""
    asked = run.distributed.strategy
    if asked == "auto":
        return
    strategy, ways = STRATEGIES[asked], other_strategies(count)
    auto = [] if run.distributed.num_processes == "auto" else [[Way(changes={PROCESSES: "auto"})]]
    if strategy.one_process and count > 1:
        consequence, ways = f"{asked} is one process and {PROCESSES} is {count}.", ways + auto
    elif not strategy.one_process and count == 1:
        consequence = f"{asked} needs at least two processes and there is one."
        several = [[Way(gpus=2), Way(gpus=4)]] if len(hardware.devices) == 1 else []
        ways = [[to_strategy("auto")], *auto, *several]
    elif count % strategy.processes_per_row:
        consequence = f"{strategy.processes_per_row} processes compute the same rows under it, and there are {count}."
        less = count // strategy.processes_per_row * strategy.processes_per_row
        more = less + strategy.processes_per_row
        ways = [*(with_processes(run, hardware, number) for number in (less, more) if number), *ways]
    elif not strategy.runs_on_cpu and device == "cpu":
        consequence = "accelerate has no FSDP on a CPU: each process would train alone."
    else:
        return
    raise Refused(Problem(key=STRATEGY, value=asked, consequence=consequence, fix=""), ways)


def freest(hardware: Hardware, count: int) -> tuple[Device, ...]:
    """Return as many GPUs of a machine as there are processes on it: those with the most memory free, in order."""
    each = max(1, count // hardware.num_machines)  # one process is on one machine
    by_memory = sorted(hardware.devices, key=free_gib, reverse=True)[:each]
    return tuple(device for device in hardware.devices if device in by_memory)
