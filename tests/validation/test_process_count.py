from typing import Any

import pytest
import yaml

from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.validation.rules import Context, check_document, read_text

CPU = Hardware(cpu_cores=2, host_memory_gib=8, reason="no driver")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"distributed_type": "MULTI_CPU", "num_processes": 2}, "starts one process for MULTI_CPU, not 2"),
        ({"distributed_type": "NO", "num_processes": 2}, "one process starts, not 2"),
        ({"distributed_type": "MULTI_GPU", "num_processes": 2}, "2 processes need 2 GPUs and 0 are visible"),
        ({"distributed_type": "MULTI_GPUS"}, "did you mean MULTI_GPU?"),
        ({"num_processes": 2}, "distributed_type: is missing"),
        ({"distributed_type": False, "num_processes": 1}, "YAML reads an unquoted NO as false"),
    ],
)
def test_accelerate_configs_that_would_do_something_else(config: dict[str, Any], words: str) -> None:
    given = {"num_processes": 2, **config}
    (only,) = check_document(read_text(yaml.safe_dump(given), context=Context(hardware=CPU)))
    assert words in str(only)


@pytest.mark.parametrize(
    "config",
    [
        {"distributed_type": "MULTI_CPU", "num_processes": 1},
        {"distributed_type": "MULTI_CPU", "num_processes": 2, "mpirun_config": {"mpirun_hostfile": "hosts"}},
        {"distributed_type": "NO", "num_processes": 1},
        {"distributed_type": "MULTI_GPU", "num_processes": 2, "use_cpu": True},
        {"distributed_type": "DEEPSPEED", "num_processes": 8},
        {"distributed_type": "NO", "num_processes": 8},
        {"distributed_type": False, "num_processes": 1},
        # What several machines have is not known here.
        {
            "distributed_type": "MULTI_GPU",
            "num_processes": 16,
            "num_machines": 2,
            "machine_rank": 0,
            "main_process_ip": "10.0.0.1",
            "main_process_port": 29500,
        },
    ],
)
def test_accelerate_configs_that_may_be_launched_here(config: dict[str, Any]) -> None:
    problems = check_document(read_text(yaml.safe_dump(config), context=Context(hardware=CPU, launching=True)))
    assert [problem for problem in problems if problem.severity == "error"] == []
