"""Test of several processes through the real `accelerate launch`, with one all-reduce among them."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..artifacts.run_directory import RunDirectory
from ..config.accelerate_config import AccelerateConfig
from ..errors import counted
from ..strategies import usual
from .machine import Machine
from .result import Result, error

SCRIPT = Path(__file__).with_name("all_reduce.py")
TIME_LIMIT = 120.0
"""Time limit in seconds; a healthy machine needs 10 on a CPU, 30 on GPUs with a cold disk."""
TROUBLESHOOTING = "NCCL User Guide, Troubleshooting"

STAGES = ("started", "imported", "formed", "done")
"""Stages that each process reports, in this order; all_reduce.py writes them."""
HANGS = {
    "": "no process started",
    "started": "the processes started and didn't finish importing torch",
    "imported": "the processes started and found no way to each other",
    "formed": "the processes met, and their all-reduce never ended",
}
"""Meanings of a hang, by the last stage that all processes reached."""


@dataclass(frozen=True, kw_only=True)
class LaunchOutcome:
    """Outcome of a test."""

    status: int | None
    """Exit status of `accelerate launch`; None when it ran into the time limit."""
    output: str
    """End of what it printed."""
    ranks: tuple[dict[str, Any], ...]
    """Last report of each process that started."""


def all_reduce(machine: Machine, time_limit: float = TIME_LIMIT, script: Path = SCRIPT) -> Iterator[Result]:
    """Test two processes over gloo on the CPU, and one process a GPU over NCCL where several are visible."""
    yield check_processes("cpu", 2, machine.environ, time_limit, script)
    count = len(machine.hardware.devices)
    if count >= 2 and machine.torch is not None and machine.torch.cuda is not None:
        yield check_processes("cuda", count, machine.environ, time_limit, script)


def check_processes(
    device: Literal["cpu", "cuda"], processes: int, environ: Mapping[str, str], time_limit: float, script: Path = SCRIPT
) -> Result:
    """Launch `script` in `processes` processes and say how it went, within `time_limit` seconds."""
    name = "all-reduce, " + ("gloo" if device == "cpu" else "NCCL")
    outcome = _launch(device, processes, environ, time_limit, script)
    if outcome.status is None:
        reached = _reached(outcome, processes)
        detail = f"stopped after {time_limit:.0f} s: {HANGS[reached]}"
        return _error(name, detail, _unhang(device, reached))
    if outcome.status != 0:
        detail = f"`accelerate launch` ended with status {outcome.status}: {_last_error(outcome.output)}"
        return _error(name, detail, _unbreak(device))
    return _judge(name, device, processes, outcome.ranks)


def _judge(name: str, device: str, processes: int, ranks: tuple[dict[str, Any], ...]) -> Result:
    worlds = sorted({rank.get("world", 0) for rank in ranks})
    if len(ranks) != processes or worlds != [processes]:
        ran = counted(len(ranks), "process")
        detail = f"{ran} ran, in groups of {worlds}, where {processes} should be in one: each would train alone"
        fix = 'pip install "accelerate>=1.15", then launch with a config of unsloth-accel config'
        return _error(name, detail, fix)
    wrong = [rank["rank"] for rank in ranks if not rank.get("right")]
    if wrong:
        detail = f"rank {', '.join(map(str, wrong))} got a wrong sum: training would go wrong in silence"
        return _error(name, detail, _unbreak(device))
    detail = f"{counted(processes, 'process')}, exact sum"
    speed = min((rank["bus_gb_s"] for rank in ranks if rank.get("bus_gb_s")), default=None)
    return Result(name=name, detail=f"{detail}, {speed:.0f} GB/s bus bandwidth" if speed else detail)


def _launch(
    device: Literal["cpu", "cuda"], count: int, environ: Mapping[str, str], limit: float, script: Path
) -> LaunchOutcome:
    environment = {**environ, "ACCELERATE_USE_CPU": "true"} if device == "cpu" else dict(environ)
    with tempfile.TemporaryDirectory(prefix="unsloth-accel-doctor-", ignore_cleanup_errors=True) as directory:
        config = RunDirectory(directory).accelerate_yaml
        AccelerateConfig(strategy=usual(count).name, num_processes=count, device=device).write(config)
        command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", str(config)]
        printed = Path(directory, "output")
        with printed.open("w", encoding="utf-8") as output:
            process = subprocess.Popen(
                [*command, str(script.absolute()), directory, device],
                cwd=directory,  # from where `-m` imports first: not the user's, whose random.py is none of accelerate's
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                status: int | None = process.wait(limit)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                _end(process)
        ranks = tuple(_said(path) for path in sorted(Path(directory).glob("rank-*.json")))
        return LaunchOutcome(status=status, output=printed.read_text(encoding="utf-8", errors="replace"), ranks=ranks)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the launcher and its processes, which torchrun puts into sessions of their own: no signal reaches all."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        for one in [parent, *parent.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                one.kill()
    process.wait()


def _said(path: Path) -> dict[str, Any]:
    try:
        said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # ended while it wrote
        return {"stage": "started"}
    return said


def _reached(outcome: LaunchOutcome, processes: int) -> str:
    """Return the last stage that every process reached; empty when one of them said nothing."""
    if len(outcome.ranks) < processes:
        return ""
    stages = [rank.get("stage", "started") for rank in outcome.ranks]
    return min(stages, key=STAGES.index) if "done" not in stages else "formed"


def _unhang(device: str, reached: str) -> str:
    if reached in ("", "started"):
        return "a slow disk or a busy machine: try again with --timeout 600"
    if device == "cpu" or reached == "imported":
        interface = "GLOO_SOCKET_IFNAME" if device == "cpu" else "NCCL_SOCKET_IFNAME"
        return f"make this machine's hostname resolve (/etc/hosts), let it reach itself, or export {interface}=lo"
    return (
        "export NCCL_P2P_DISABLE=1 (PCIe peer access fails where the IOMMU or ACS is on); if that helps, turn them "
        "off. NCCL_DEBUG=INFO says where it waits"
    )


def _unbreak(device: str) -> str:
    if device == "cpu":
        return "run `python -c 'import torch, accelerate'`; if that fails, install them again"
    return "NCCL_DEBUG=INFO unsloth-accel doctor; NCCL_P2P_DISABLE=1 or a larger /dev/shm mends most of it"


def _last_error(output: str) -> str:
    """Return the line that says what went wrong: the last that names an error and isn't torchrun's own report."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    own = ("ChildFailedError", "CalledProcess")
    named = [line for line in lines if "Error" in line and not any(word in line for word in own)]
    said = (named or lines or ["it printed nothing"])[-1]
    # torchrun puts the rank before each line.
    return said.split("]: ", 1)[-1][:200]


def _error(name: str, detail: str, fix: str) -> Result:
    return error(name, detail, fix, TROUBLESHOOTING if "NCCL" in name else "")
