"""Hangs of real ranks: who hangs is named, all end, and what is only slow is left alone."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
from pathlib import Path

import fork_server
import psutil
import pytest
from conftest import CPU_DDP, ROOT, SCRIPTS, accelerate_launch, cli_command, variable_rows, write_yaml

from unsloth_accel.report.run_record import read_lines

pytestmark = pytest.mark.slow


def test_a_stopped_rank_is_named_and_a_slow_one_is_not(tiny: Path, tmp_path: Path) -> None:
    """A limit of 5 s: rank 1 takes 7 in its loader and 7 in an evaluation, and later stops."""
    rows, out = variable_rows(tmp_path / "rows.jsonl", [40] * 64), tmp_path / "run"
    training = {"max_steps": 50, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 4}
    run = {
        "model": {"name": str(tiny), "max_seq_length": 96, "dtype": "float32"},
        "data": {"path": str(rows), "eval_path": str(rows)},
        "batch": {"global_size": 8},
        "training": {**training, "bf16": False, "per_device_train_batch_size": 4},
        "distributed": {"num_processes": 2, "device": "cpu", "strategy": "ddp"},
        "evaluation": {"loss": False},
        "logging": {"hang_after": 5},
        "output_dir": str(out),
    }
    command = cli_command("launch", write_yaml(tmp_path / "run.yaml", run))
    faults = os.pathsep.join([str(SCRIPTS / "faults"), str(ROOT)])
    variables = {**os.environ, "TRAINING_FAULT": "stopped", "PYTHONPATH": faults}
    done = fork_server.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, env=variables)
    assert done.returncode == 1, done.stdout + done.stderr
    last = done.stderr.splitlines()[-1]
    assert re.match(r"unsloth-accel: rank 1 hangs: stopped \(SIGSTOP\) for \d+ s, after step \d+, last seen in ", last)
    assert "; rank 0 is in " in last
    newest = re.search(r"; (checkpoint-\d+) is whole: go on with training\.resume=true\.$", last)
    assert newest is not None
    assert (out / newest[1] / "unsloth_accel.json").is_file()
    assert "Traceback" not in done.stderr

    stacks = {rank: (out / "logs" / f"rank-{rank}.stacks").read_text(encoding="utf-8") for rank in (0, 1)}
    assert "_inner_training_loop" in stacks[0]
    assert "is stopped and can't be asked for its stacks" in stacks[1]
    logged = read_lines(out / "logs" / "rank-0.jsonl")
    assert [line["step"] for line in logged if line["event"] == "hang"]
    assert logged[-1]["event"] == "end"
    assert max(line["step"] for line in logged if line["event"] == "step") > 4
    times = [line["time"] for line in read_lines(out / "logs" / "rank-1.jsonl") if line["event"] == "step"]
    assert max(after - before for before, after in itertools.pairwise(times[:3])) > 6.5, "the loader was slow"
    assert max(after - before for before, after in itertools.pairwise(times[3:])) > 6.5, "the evaluation was slow"
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "rank 1 hangs: stopped (SIGSTOP)" in page
    assert not list((out / "logs").glob("heartbeat-*"))
    assert not left(str(out))


@pytest.mark.parametrize(
    ("kind", "told", "stack"),
    [
        ("asleep", r"rank 1 hangs: no progress for \d+ s, after step 2, in the forward and backward passes; rank 0 is",
         "in hang"),
        ("held", r"rank 1 hangs: no heartbeat, and its process does nothing, for \d+ s, after step 2, last seen in the "
         "forward and backward passes; rank 0 is in", "in hang"),
    ],
)  # fmt: skip
def test_a_rank_that_hangs_in_a_users_script(kind: str, told: str, stack: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = accelerate_launch("--config_file", CPU_DDP, SCRIPTS / "hang_in_a_script.py", out, kind, forked=True)
    assert done.returncode == 1, done.stdout + done.stderr
    ends = [line for line in done.stderr.splitlines() if " is whole: go on with resume_from_checkpoint=True." in line]
    assert len(ends) == 1, done.stderr
    assert re.search(told, ends[0]), ends[0]
    assert {path.name.partition("-")[0] for path in out.iterdir()} == {"checkpoint"}, "nothing of ours beside them"
    (place,) = re.findall(r"The stacks of all ranks are in (\S+)/rank-\*.stacks", ends[0])
    written = {path.name: path.read_text(encoding="utf-8") for path in Path(place).glob("rank-*.stacks")}
    assert written.keys() == {"rank-0.stacks", "rank-1.stacks"}
    assert f" {stack}\n" in written["rank-1.stacks"]
    record = json.loads((Path(place) / "flight-record-0.json").read_text(encoding="utf-8"))
    assert record["entries"]
    shutil.rmtree(Path(place).parent)
    assert not left(str(out))


def left(words: str) -> list[str]:
    """The living processes with these words in their command line."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or ())
        if words in line and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(line)
    return found
