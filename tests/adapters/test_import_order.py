import json
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import fork_server
import pytest
from conftest import ROOT

from unsloth_accel.adapters import import_order
from unsloth_accel.adapters.import_order import ImportOrderError
from unsloth_accel.config.promise import PROMISE, Promise


def test_an_accelerator_before_the_word_that_it_is_on_a_cpu() -> None:
    program = "from accelerate import PartialState; PartialState(); import unsloth_accel"
    promised = Promise(num_processes=2, device="cpu", strategy="ddp")
    environ = {**os.environ, PROMISE: json.dumps(vars(promised)), "WORLD_SIZE": "2"}
    for order, status in ((program, 1), (program.replace("PartialState(); ", ""), 0)):
        done = subprocess.run([sys.executable, "-c", order], cwd=ROOT, capture_output=True, text=True, env=environ)
        assert done.returncode == status
        assert ("an Accelerator was built before unsloth_accel was imported" in done.stderr) is bool(status)


def test_an_fsdp2_accelerator_before_unsloth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unsloth marks the plugins whose policy it has seen made (unsloth/models/fsdp2.py); the module needs triton."""
    from accelerate.utils import FullyShardedDataParallelPlugin

    monkeypatch.setitem(sys.modules, "unsloth.models.fsdp2", SimpleNamespace(_POLICY_SEEN="_seen"))
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    accelerator: Any = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin))
    import_order.check_accelerator(accelerator)  # without mixed precision there is no policy to be wrong
    plugin.set_mixed_precision("bf16")
    with pytest.raises(ImportOrderError, match="before the Accelerator is built"):
        import_order.check_accelerator(accelerator)
    plugin._seen = True
    import_order.check_accelerator(accelerator)


@pytest.mark.slow
def test_a_trainer_that_was_imported_before_unsloth() -> None:
    """The real Unsloth puts its own SFTTrainer into trl; who has taken it before holds TRL's."""
    trl, unsloth = "from trl import SFTTrainer", "import unsloth"
    for first, second, status in ((trl, unsloth, 1), (unsloth, trl, 0)):
        program = (
            f"import unsloth_accel; {first}; {second}\n"
            "class Mine(SFTTrainer): pass\n"
            "from unsloth_accel.adapters.import_order import check_trainer\n"
            "unsloth_accel.adapters.environment.show_own_errors_plainly()\n"
            "check_trainer(Mine.__new__(Mine))"
        )
        done = fork_server.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        assert ("SFTTrainer was imported from trl before unsloth" in done.stderr) is bool(status)


def test_what_comes_too_late_is_told_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A variable without which other training goes on alike, set after unsloth has read the environment."""
    monkeypatch.setitem(sys.modules, "unsloth", SimpleNamespace(DEVICE_TYPE="cpu"))
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        import_order.check_import_order({"UNSLOTH_GRPO_SEQ_PACKING", "UNSLOTH_FORCE_CPU"})
    told = capsys.readouterr().err
    assert told.count("UNSLOTH_GRPO_SEQ_PACKING can't be set any more") == 1
    assert "Fix: `import unsloth_accel` before `import unsloth`." in told
    monkeypatch.delitem(sys.modules, "unsloth")
    import_order.check_import_order({"UNSLOTH_GRPO_SEQ_PACKING"})
    assert capsys.readouterr().err == ""
