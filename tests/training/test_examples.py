"""The scripts to copy, as their first lines say."""

import json
import sys
from pathlib import Path

import fork_server
import pytest
from conftest import ROOT, SMOLLM2, Run, accelerate_launch, steps

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("processes", [1, 2])
def test_pairs_of_answers_by_a_plain_script(processes: int, tiny: Path, tmp_path: Path) -> None:
    options = ["--model", str(tiny), "--output", str(tmp_path), "--max-steps", "2"]
    if processes == 1:
        command = [sys.executable, "examples/dpo.py", *options, "--accumulation", "2"]
        done = fork_server.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    else:
        config = "accelerate_configs/cpu_ddp.yaml"
        done = accelerate_launch("--config_file", config, "examples/dpo.py", *options, forked=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"8 rows per step = 4 × {3 - processes} × {processes} " in done.stdout + done.stderr
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "adapter" / "ref").exists(), "TRL's copy is loaded in the place of the trained one"


def test_completions_by_a_run_yaml(cli: Run, tmp_path: Path) -> None:
    """Few steps of examples/configs/grpo.yaml, few of its held-out rows; that it learns is in
    benchmarks/results/grpo-cpu.json."""
    held_out = (ROOT / "examples" / "data" / "counts-eval.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "eval.jsonl").write_text("".join(held_out[:4]), encoding="utf-8")
    words = [f"model.name={SMOLLM2}", f"output_dir={tmp_path}", "training.max_steps=2", "batch.global_size=4"]
    words += ["training.num_generations=2", "distributed.device=cpu", "distributed.num_processes=2"]
    words += [f"data.eval_path={tmp_path / 'eval.jsonl'}"]
    done = cli("launch", "examples/configs/grpo.yaml", *words, forked=True)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert 0 <= results["before"]["reward"] <= 0.4, "there is something to learn"
    assert {"reward", "rewards/count_rewards:right/mean", "rewards/count_rewards:ends/mean"} <= steps(tmp_path)[
        0
    ].keys()
    scored = results["rewards"]["count_rewards:right"]
    assert scored["faults"] == {}
    assert scored["completions"] >= 2 * 4, "the two steps' of both processes"
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_a_reward_that_fails_ends_both_processes_with_its_name(cli: Run, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def fails(completions):\n    raise ValueError('not today')\n")
    words = [f"model.name={tiny}", f"output_dir={tmp_path / 'run'}", "training.max_steps=2", "batch.global_size=8"]
    words += ["training.num_generations=4", "distributed.device=cpu", "distributed.num_processes=2"]
    functions = f"rewards.functions=['{tmp_path}/mine.py:fails']"
    done = cli("launch", "examples/configs/grpo.yaml", functions, "data.eval_path=null", *words, forked=True)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "reward mine:fails raised ValueError: not today" in done.stderr
    assert "Traceback" not in done.stderr
    # Another task is three other lines of the file: its data, its held-out data and its rewards.
    for name, count in (("train", 8), ("eval", 4)):
        row = json.dumps({"prompt": "Say yes.", "expected": "yes"})
        (tmp_path / f"{name}.jsonl").write_text(f"{row}\n" * count, encoding="utf-8")
    mine = {
        "  path: ": f"  path: {tmp_path}/train.jsonl",
        "  eval_path: ": f"  eval_path: {tmp_path}/eval.jsonl",
        "  functions: ": f"  functions: ['{tmp_path}/mine.py:fails', '{tmp_path}/mine.py:said', repetition_penalty]",
    }
    with (tmp_path / "mine.py").open("a", encoding="utf-8") as file:
        file.write(
            "def said(completions, expected):\n    return [float(a in b) for a, b in zip(expected, completions)]\n"
        )
    lines = (ROOT / "examples/configs/grpo.yaml").read_text(encoding="utf-8").splitlines()
    own = [next((new for old, new in mine.items() if line.startswith(old)), line) for line in lines]
    assert sum(a != b for a, b in zip(lines, own, strict=True)) == len(mine) == 3
    (tmp_path / "own.yaml").write_text("\n".join(own), encoding="utf-8")
    skipped = cli(
        *("launch", str(tmp_path / "own.yaml"), "evaluation.loss=false"),
        *("rewards.on_error=skip", "training.overwrite=true", *words),
        forked=True,
    )
    assert skipped.returncode == 0, skipped.stdout + skipped.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    assert results["rewards"]["mine:fails"]["faults"]["raised"]["calls"] == 4
    assert results["rewards"]["mine:said"]["faults"] == results["rewards"]["repetition_penalty"]["faults"] == {}
    assert skipped.stderr.count("reward mine:fails raised ValueError: not today") == 1
