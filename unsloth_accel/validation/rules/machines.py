"""Rules about several machines: how they number themselves and find each other."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from .document import Document, Finding
from .rule_registry import rule


def _several(config: Document) -> bool:
    """Return whether each machine starts its own launcher, which has to find the others'."""
    launcher = config.get("deepspeed_config.deepspeed_multinode_launcher") or "pdsh"
    by_itself = config.type == "XLA" or (config.type == "DEEPSPEED" and launcher not in ("standard", "nossh"))
    return config.num_machines > 1 and config.local and not by_itself


@rule("machine-rank-missing", "warning")
def machine_rank_missing(config: Document) -> Iterator[Finding]:
    """Every machine takes rank 0 unless --machine_rank says otherwise: all of them wait for the others.

    Reference: accelerate/commands/config/config_args.py: ClusterConfig.machine_rank = 0; held true by a test.
    """
    if _several(config) and config.get("machine_rank") is None:
        consequence = "is missing: every machine takes itself for number 0 unless --machine_rank says otherwise."
        yield config.problem("machine_rank", consequence, "machine_rank: 0, and --machine_rank 1 on the second machine")


@rule("machine-rank-impossible")
def machine_rank_impossible(config: Document) -> Iterator[Finding]:
    """Ranks go from 0 to num_machines - 1. A higher one joins a group that has no such place: rank 0 or another is
    missing, and the machines wait until the rendezvous times out. A warning on one machine, where nothing reads it.

    Reference: torch/distributed/elastic/rendezvous/static_tcp_rendezvous.py: next_rendezvous takes the rank as given;
    held true by a test.
    """
    if config.get("machine_rank") is None or not config.local:
        return
    rank = config.whole("machine_rank")
    if rank is None or not 0 <= rank < config.num_machines:
        alone = config.num_machines <= 1
        consequence = f"{config.num_machines} machines have the ranks 0 to {config.num_machines - 1}: they never meet."
        if alone:
            consequence = "means nothing on one machine, whose rank is 0."
        fix = "machine_rank: 0" if alone else "machine_rank: 0, counted from 0 on the others"
        yield config.problem("machine_rank", consequence, fix, mild=alone)


@rule("num-machines-impossible")
def num_machines_impossible(config: Document) -> Iterator[Finding]:
    """A run has at least this machine: on a CPU accelerate divides by num_machines and ends in a ZeroDivisionError;
    with GPUs it takes 0 for one machine, which is a warning.

    Reference: accelerate/commands/launch.py: _validate_launch_command, `args.num_processes / args.num_machines`; held
    true by a test.
    """
    machines = config.whole("num_machines")
    if machines is not None and machines < 1:
        yield config.problem(
            "num_machines", "must be at least 1.", "num_machines: 1", mild=machines < 0 or not config.get("use_cpu")
        )


@rule("main-process-ip-missing")
def main_process_ip_missing(config: Document) -> Iterator[Finding]:
    """The machines look for a host called None: accelerate doesn't check the address.

    Reference: accelerate/utils/launch.py: prepare_multi_gpu_env, `f"{main_process_ip}:{main_process_port}"`; held true
    by a test.
    """
    if _several(config) and config.get("main_process_ip") is None:
        consequence = "is missing: the machines look for a host called None."
        yield config.problem("main_process_ip", consequence, "add the address of machine 0")


@rule("main-process-ip-local", "warning")
def main_process_ip_local(config: Document) -> Iterator[Finding]:
    """Every machine is its own 127.0.0.1: they never meet, and wait until the rendezvous times out. Two launchers on
    one machine do.

    Reference: accelerate/utils/launch.py: prepare_multi_gpu_env, rdzv_endpoint.
    """
    address = config.get("main_process_ip")
    if _several(config) and isinstance(address, str):
        if address.startswith("127.") or address.lower() in ("localhost", "0.0.0.0", "::1", "::"):
            consequence = "means each machine itself: two launchers on one machine meet there, two machines don't."
            yield config.problem("main_process_ip", consequence, "the address of machine 0 that the others reach")


_PLACEHOLDER = re.compile(r"[$<>{}\[\]\s]|MAIN_MACHINE|MASTER_ADDR|HEAD_NODE|YOUR|EXAMPLE|PLACEHOLDER|X\.X|^XX", re.I)


@rule("main-process-ip-placeholder", "warning")
def main_process_ip_placeholder(config: Document) -> Iterator[Finding]:
    """A word to be replaced is still there; YAML expands no $VARIABLE either. The name is looked up and not found. So
    may a name without a dot be, where a machine doesn't know it.

    Reference: accelerate/utils/launch.py: prepare_multi_gpu_env, rdzv_endpoint; held true by a test.
    """
    address = config.get("main_process_ip")
    if not _several(config) or not isinstance(address, str):
        return
    fix = "the address of machine 0, or --main_process_ip …"
    if _PLACEHOLDER.search(address):
        consequence = "stands for an address and is none; accelerate expands no variables."
        yield config.problem("main_process_ip", consequence, fix)
    elif not re.search(r"[.:]|^\d+$|^localhost$", address):
        yield config.problem("main_process_ip", "is a name without a dot: every machine must know it.", fix)


@rule("main-process-ip-impossible")
def main_process_ip_impossible(config: Document) -> Iterator[Finding]:
    """Digits that are no address: 10001, 10.0.1, 10.0.0.256, or a dot that got lost. Some are looked up in vain, others
    are taken for another machine's address, and the machines wait until the rendezvous times out.

    Reference: accelerate/utils/launch.py: prepare_multi_gpu_env, `f"{main_process_ip}:{main_process_port}"`, which
    takes any text; held true by a test.
    """
    address = str(config.get("main_process_ip"))
    if _several(config) and re.fullmatch(r"[\d.]+", address):
        try:
            ipaddress.IPv4Address(address)
        except ValueError:
            consequence = "is no address: four numbers from 0 to 255, with dots between them."
            fix = "the address of machine 0, as main_process_ip: 10.0.0.1"
            yield config.problem("main_process_ip", consequence, fix)


@rule("main-process-port-any")
def main_process_port_any(config: Document) -> Iterator[Finding]:
    """Port 0 is any free one: each machine chooses its own, and they never meet.

    Reference: accelerate/utils/launch.py: prepare_multi_gpu_env, `get_free_port()`; held true by a test.
    """
    if _several(config) and config.whole("main_process_port") == 0:
        consequence = "each machine chooses a free port of its own, so they never meet."
        yield config.problem("main_process_port", consequence, "main_process_port: 29500")


@rule("main-process-port-impossible")
def main_process_port_impossible(config: Document) -> Iterator[Finding]:
    """Ports end at 65535; beyond, the socket ends in an OverflowError. A warning for one process, which opens none.

    Reference: accelerate/utils/other.py: is_port_in_use, `s.connect_ex(("localhost", port))`; held true by a test.
    """
    port = config.whole("main_process_port")
    if port is not None and not 0 <= port <= 65535:
        fix, alone = "main_process_port: 29500, or 0 for any free one on one machine", config.type in ("NO", False)
        yield config.problem("main_process_port", "is not a port.", fix, mild=alone)
