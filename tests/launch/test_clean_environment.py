import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT

from unsloth_accel.launch import clean_environment


def test_the_launch_inherits_the_users_variables_and_no_librarys_state() -> None:
    users = {
        "HF_TOKEN": "t",
        "UNSLOTH_COMPILE_DISABLE": "1",
        "PYTORCH_CUDA_ALLOC_CONF": "a",
        "UNSLOTH_FSDP2_FUSED_LORA": "0",
    }
    state = {
        "WORLD_SIZE": "4",
        "RANK": "3",
        "TORCHELASTIC_RUN_ID": "x",
        "ACCELERATE_MIXED_PRECISION": "fp16",
        "FSDP_VERSION": "2",
        "UNSLOTH_ACCEL_PROMISE": "{}",
        "UNSLOTH_IS_PRESENT": "1",
        "UNSLOTH_RETURN_HIDDEN_STATES": "1",
        "UNSLOTH_FORCE_FLOAT32": "1",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    assert clean_environment.environment_for_launch({**users, **state}, {}) == users
    assert clean_environment.environment_for_launch({**users, "UNSLOTH_COMPILE_DISABLE": "partial"}, users) == users
    # What the kernel was started with is the user's, but never another launch's processes.
    asked = {"UNSLOTH_FORCE_FLOAT32": "0", "MPLBACKEND": "agg", "RANK": "0"}
    assert clean_environment.environment_for_launch(state, asked) == {"UNSLOTH_FORCE_FLOAT32": "0", "MPLBACKEND": "agg"}


def test_what_the_kernel_was_started_with() -> None:
    code = (
        "import os; from unsloth_accel.launch import clean_environment as cleaned\n"
        "os.environ['RANK'] = '1'; print(cleaned._started_with())"
    )
    environment = {"PYTHONPATH": str(ROOT), "A": "1=2"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "'A': '1=2'" in done.stdout
    assert "RANK" not in done.stdout


def test_gpu_memory_of_the_kernel_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def processes_on(index: int) -> list[SimpleNamespace]:
        ours = SimpleNamespace(pid=os.getpid(), usedGpuMemory=3 * 2**30 if index else None)
        return [ours, SimpleNamespace(pid=1, usedGpuMemory=7 * 2**30)]

    nvml = SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetComputeRunningProcesses=processes_on,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    (problem,) = clean_environment.memory_problems()
    assert str(problem).startswith("warning: 3.0 GiB on GPU 1: is held by this notebook's own process")
    cuda = SimpleNamespace(
        is_initialized=lambda: True, device_count=lambda: 2, memory_reserved=lambda index: (1 - index) * 2**31
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    nvml.nvmlDeviceGetComputeRunningProcesses = lambda index: []
    assert [problem.key for problem in clean_environment.memory_problems()] == ["2.0 GiB on GPU 0"]
    cuda.is_initialized = lambda: False
    assert clean_environment.memory_problems() == []
