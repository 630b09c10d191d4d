"""unsloth-accel validate: what it prints, and what it leaves alone."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from checked_configs import DDP, FILES, rules_of
from conftest import ROOT, Run

from unsloth_accel.cli.validate import run


def test_every_problem_of_every_file_in_one_go(cli: Run) -> None:
    files = [FILES / "fsdp-unknown-key" / "bad.yaml", FILES / "tab" / "bad.yaml", ROOT / "accelerate_configs/ddp.yaml"]
    done = cli("validate", *files)
    assert done.returncode == 1
    first, one, second, other, third = done.stdout.splitlines()
    assert first.endswith("fsdp-unknown-key/bad.yaml: 1 error")
    assert "15 error    fsdp_config.fsdp_reshard_after_foward=True: unknown key;" in one
    assert one.endswith("Fix: did you mean fsdp_reshard_after_forward? [fsdp-unknown-key]")
    assert second.endswith("tab/bad.yaml: 1 error")
    assert "10 error" in other
    assert third.endswith("ddp.yaml: nothing to correct")
    assert done.stderr == ""


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    path = FILES / "fsdp-wrap-policy-unknown" / "bad.yaml"
    assert run(["--json", str(path), str(ROOT / "accelerate_configs" / "fsdp1.yaml")]) == 1
    first, second = json.loads(capsys.readouterr().out)
    assert first == {
        "file": str(path),
        "line": 11,
        "severity": "error",
        "key": "fsdp_config.fsdp_auto_wrap_policy",
        "value": "TRANSFORMER_WRAP",
        "consequence": "every process fails: no such policy.",
        "fix": "did you mean TRANSFORMER_BASED_WRAP?",
        "rule": "fsdp-wrap-policy-unknown",
    }
    assert (second["severity"], second["rule"]) == ("warning", "fsdp1")


def test_exit_status(cli: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([str(ROOT / "accelerate_configs" / "ddp.yaml")]) == 0
    assert run([str(ROOT / "accelerate_configs" / "fsdp1.yaml")]) == 0  # a warning
    assert run(["nowhere.yaml"]) == 1
    assert "no such file" in capsys.readouterr().out
    assert cli("validate").returncode == 2
    changed = "unsloth-accel launch RUN.yaml 'rewards.functions=[a]' --dry-run, which checks a run with changed keys"
    assert f"no such file. Fix: {changed}" in cli("validate", "rewards.functions=[a]").stdout
    assert "examples:" in cli("validate", "--help").stdout


def test_it_is_fast_because_it_imports_no_torch() -> None:
    code = (
        "import sys; from unsloth_accel.cli.validate import run; "
        "run(['tests/rules/pair-optimizer/bad', 'accelerate_configs']); "
        "print([name for name in ('torch', 'accelerate', 'transformers', 'trl', 'unsloth') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_hardware_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    ddp = str(ROOT / "accelerate_configs" / "ddp.yaml")
    assert run(["--hardware", "8xH100-80GB", ddp]) == 0
    assert run(["--hardware", "1xT4", ddp]) == 1
    assert "2 processes need 2 GPUs and 1 are visible" in capsys.readouterr().out


def test_fix_overwrites_nothing(
    config: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(DDP.replace("2", "2.0"))
    mine = tmp_path / "config.fixed.yaml"
    mine.write_text("mine", encoding="utf-8")
    assert run(["--fix", str(path)]) == 1
    assert "is there already; nothing was written" in capsys.readouterr().out
    assert mine.read_text(encoding="utf-8") == "mine"


def test_fix_leaves_what_is_a_choice(
    tmp_path: Path, config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(DDP + "fsdp_config: {fsdp_version: 2}\n")
    assert run(["--fix", str(path)]) == 1
    assert "nothing to repair without a choice" in capsys.readouterr().out
    lines = "fsdp_transformer_layer_cls_to_wrap:\n    - LlamaDecoderLayer  # text\n    - Qwen3DecoderLayer\n"
    good = FILES.joinpath("fsdp-layer-class-list", "good.yaml").read_text(encoding="utf-8")
    path = config(good.replace("fsdp_transformer_layer_cls_to_wrap: LlamaDecoderLayer\n", lines))
    assert rules_of(path) == {"fsdp-layer-class-list"}
    assert run(["--fix", str(path)]) == 1
    assert "nothing that can be repaired line by line" in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]


USUAL = """distributed_type: FSDP
num_processes: 8
mixed_precision: bf16
fsdp_config:
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_sharding_strategy: FULL_SHARD
  fsdp_state_dict_type: SHARDED_STATE_DICT
  fsdp_use_orig_params: false
"""


def test_what_most_files_have_is_one_line(config: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = config(USUAL + "  fsdp_backward_prefetch_policy: BACKWARD_PRE\n")
    assert run([str(path)]) == 0
    first, one, other = capsys.readouterr().out.splitlines()
    assert first.endswith("2 warnings")
    assert "fsdp_config: trains, and is not made for Unsloth: version 1 is three times slower" in one
    assert one.endswith("fsdp-cpu-ram-efficient-loading, fsdp-sharded-state-dict, fsdp1-use-orig-params]")
    assert "did you mean fsdp_backward_prefetch?" in other
    run(["--json", str(path)])
    assert len(json.loads(capsys.readouterr().out)) == 6
