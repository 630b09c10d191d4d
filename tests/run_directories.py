"""Run directories as runs leave them, of several kinds and sizes, without training anything.

    python tests/run_directories.py DIRECTORY    writes one of each kind there, and their reports

Plans and their YAML are real ones, made for hardware elsewhere; what the ranks logged is drawn from a fixed seed.
"""

from __future__ import annotations

import json
import math
import random
import sys
import time
from pathlib import Path
from typing import Any

from unsloth_accel.config.read_run import load
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.planning.plan import Plan
from unsloth_accel.planning.planner import plan

START = 1_790_000_000.0
MODEL = "unsloth/Llama-3.2-1B-Instruct"
VERSIONS = {"python": "3.12.4", "unsloth_accel": "0.1.0", "unsloth": "2026.10.9", "torch": "2.11.0+cu128"}
ANSWERS = (
    ("Write this as a record: An atom of Boron (B) has 5 protons. The element belongs to period 2.", "Boron"),
    ("Write this as a record: Period 4 holds Zinc (Zn), whose atoms have 30 protons.", "Zinc"),
)


def planned(directory: Path, hardware: str, *overrides: str, model: str = MODEL) -> Plan:
    """A real plan for this output directory."""
    words = (f"output_dir={directory}", "data.path=data/train.jsonl", "batch.global_size=64", *overrides)
    return plan(load(None, [f"model.name={model}", *words]), Hardware.parse(hardware))


def two_gpus(directory: Path, *, steps: int = 240, seed: int = 1, speed: float = 1.0, rate: float = 2e-4) -> Path:
    """A finished run on two GPUs: rank 1 is slow for a while, memory is short, held-out rows were answered."""
    decided = planned(directory, "2xH100-80GB", f"training.learning_rate={rate}", "data.eval_path=data/eval.jsonl")
    _write(directory, decided, steps, seed=seed, speed=speed, slow=1, rate=rate)
    rank = directory / "logs" / "rank-1.jsonl"
    straggler = {"source": "straggler", "step": 120, "cause": "gpu clock", "slower_by": 0.18}
    text = (
        "rank 1 (node-1, GPU 1) takes 18 % longer than the others: its clock is 1,410 MHz of 1,980, throttled for heat."
    )
    _append(
        rank,
        {"event": "warning", "rank": 1, "time": START + 60, **straggler, "message": f"{text} Fix: look at its cooling"},
    )
    for step in (150, 151, 152, 170):
        memory = {"source": "memory", "step": step, "free_gib": 3.1}
        message = (
            "4 % of the GPU's memory is free. Fix: training.per_device_train_batch_size=16, the global batch stays"
        )
        _append(rank, {"event": "warning", "rank": 1, "time": START + 70 + step, **memory, "message": message})
    told = _summary(directory, 2, steps)
    told["stragglers"] = [{"rank": 1, "cause": "gpu clock", "slower_by": 0.18, "steps": 50}]
    _dump(directory / "logs" / "summary.json", told)
    results = _results(decided, steps, told)
    before = [{"question": q, "answer": f"{a} is an element.", "reference": "x", "right": False} for q, a in ANSWERS]
    record = '{{"name": "{0}", "symbol": "{0[0]}"}}'
    after = [
        {"question": q, "answer": record.format(a), "reference": record.format(a) if i == 0 else "{}", "right": i == 0}
        for i, (q, a) in enumerate(ANSWERS)
    ]
    results["before"] = {"loss": 1.3651, "accuracy": 0.0, "rows": 44, "answers": before}
    results["after"] = {"loss": 0.4107, "accuracy": 0.886, "rows": 44, "answers": after}
    _dump(directory / "results.json", results)
    return directory


def eight_gpus(directory: Path, *, steps: int = 10_000) -> Path:
    """A long run on eight GPUs."""
    decided = planned(directory, "8xH100-80GB", model="unsloth/Llama-3.1-8B-Instruct")
    _write(directory, decided, steps, seed=2)
    told = _summary(directory, 8, steps)
    _dump(directory / "logs" / "summary.json", told)
    _dump(directory / "results.json", _results(decided, steps, told))
    return directory


def on_a_cpu(directory: Path, *, steps: int = 90) -> Path:
    """Two processes on a CPU: no GPU memory, no MFU; losses that end near nothing."""
    decided = planned(directory, "cpu")
    _write(directory, decided, steps, seed=3, gpus=False, floor=0.0098)
    told = _summary(directory, 2, steps) | {"mfu": None, "mfu_why": "a CPU has no peak rate to compare with."}
    _dump(directory / "logs" / "summary.json", told)
    results = _results(decided, steps, told)
    results |= {"before": {"loss": 1.3624, "accuracy": 0.0}, "after": {"loss": 0.0199, "accuracy": 1.0, "rows": 44}}
    _dump(directory / "results.json", results)
    return directory


def of_old(directory: Path, *, steps: int = 30) -> Path:
    """A run from before there were ranks' logs and plan.json."""
    decided = planned(directory, "2xH100-80GB")
    _write(directory, decided, steps, seed=4)
    for path in (directory / "plan.json", *(directory / "logs").glob("rank-*.jsonl")):
        path.unlink()
    told = {"steps": steps, "seconds": 12.0, "tokens": 99_000}
    results = _results(decided, steps, told)
    results["memory_gib"] = {"loading": 2.4, "training": 9.1, "reserved": 10.2, "context": 2.3}
    _dump(directory / "results.json", results)
    return directory


def crashed(directory: Path, *, steps: int = 60) -> Path:
    """Rank 1 ran out of memory while it wrote a line; rank 0 was ended."""
    decided = planned(directory, "2xH100-80GB")
    _write(directory, decided, steps, seed=5, ended=False)
    for path in (directory / "logs").glob("rank-*.jsonl"):
        with path.open("a", encoding="utf-8") as file:
            file.write('{"event": "step", "step": 61, "secon')
    message = "error: training.per_device_train_batch_size=32: rank 1 has no memory left at step 61. Fix: 16, or fsdp2"
    frames = "".join(
        f'  File "{"/a/long/way" * 9}/trainer.py", line {n}, in step\n    loss.backward()\n' for n in range(9)
    )
    traceback = f"Traceback (most recent call last):\n{frames}torch.OutOfMemoryError: CUDA out of memory."
    error = {"rank": 1, "message": message, "exit_status": 1, "every_rank": False, "time": START + 99}
    error["traceback"] = traceback
    _dump(directory / "errors" / "rank-1.json", error)
    return directory


def resumed(directory: Path, *, steps: int = 80, at: int = 40) -> Path:
    """A run that was ended at step 50 and went on from the checkpoint of step 40: ten steps were trained twice."""
    decided = planned(directory, "2xH100-80GB")
    _write(directory, decided, at + 10, seed=6, ended=False)
    _write(directory, decided, steps, seed=7, first=at + 1, later=3600.0, appended=True)
    told = _summary(directory, 2, steps - at, since=START + 3600)
    _dump(directory / "logs" / "summary.json", told)
    _dump(directory / "results.json", _results(decided, steps - at, told))
    return directory


def hostile(directory: Path, word: str) -> Path:
    """A run in which everything that somebody else wrote is `word`."""
    two_gpus(directory, steps=12)
    logs = directory / "logs"
    line = {"event": "warning", "rank": 1, "source": word, "step": 3, "message": f"{word} Fix: {word}", word: word}
    _append(logs / "rank-1.jsonl", {**line, "host": word})
    _append(logs / "rank-0.jsonl", {"event": "phase", "name": word, "seconds": 1})
    _append(
        logs / "rank-0.jsonl", {"event": "start", "rank": 0, "host": word, "device": word, "versions": {word: word}}
    )
    told = json.loads((logs / "summary.json").read_text(encoding="utf-8"))
    told |= {"mfu_why": word, "stragglers": [{"rank": word, "cause": word, "slower_by": word, "steps": word}]}
    _dump(logs / "summary.json", told)
    results = json.loads((directory / "results.json").read_text(encoding="utf-8"))
    results["after"]["answers"] = [{"question": word, "answer": word, "reference": word, "right": False}]
    results["before"]["answers"] = [{"question": word, "answer": word, "reference": word, "right": False}]
    results["versions"] = {word: word}
    results["hub"] = {"repository": word, "url": word}
    _dump(directory / "results.json", results)
    decided = json.loads((directory / "plan.json").read_text(encoding="utf-8"))
    decided |= {"reasons": [word], "rejected": [{"strategy": word, "reason": word}], "strategy": word}
    decided |= {"mixed_precision": word, "environment": {word: word}, "memory_gib": {word: 3.0, "total": 3.0}}
    decided["hardware"] |= {"reason": word, "link": word}
    _dump(directory / "plan.json", decided)
    run = f"model: {{name: {json.dumps(word)}}}\n"
    (directory / "run.planned.yaml").write_text(run, encoding="utf-8")
    (directory / "accelerate.yaml").write_text(f"# {word}\n", encoding="utf-8")
    error = {"rank": 0, "message": f"{word} Fix: {word}", "traceback": word, "time": time.time() + 9}
    _dump(directory / "errors" / "rank-0.json", error)
    return directory


KINDS = {
    "two-gpus": two_gpus,
    "eight-gpus": eight_gpus,
    "cpu": on_a_cpu,
    "old": of_old,
    "crashed": crashed,
    "resumed": resumed,
}


def _write(
    directory: Path,
    decided: Plan,
    steps: int,
    *,
    seed: int,
    first: int = 1,
    gpus: bool = True,
    slow: int | None = None,
    speed: float = 1.0,
    rate: float = 2e-4,
    floor: float = 0.42,
    ended: bool = True,
    later: float = 0.0,
    appended: bool = False,
) -> None:
    """Plan, steps.jsonl and each rank's log, from step `first` to `steps`."""
    decided.write(directory)
    _dump(directory / "plan.json", decided.to_dict())
    draw = random.Random(seed)
    logs = directory / "logs"
    logs.mkdir(exist_ok=True)
    mode = "a" if appended else "w"
    ranks = [(logs / f"rank-{n}.jsonl").open(mode, encoding="utf-8") for n in range(decided.num_processes)]
    now = START + later
    device = "NVIDIA H100 80GB HBM3" if gpus else "cpu"
    for n, file in enumerate(ranks):
        start = {"host": "node-1", "device": device, "versions": VERSIONS, "world_size": len(ranks)}
        _line(file, {"time": now, "rank": n, "event": "start", "strategy": decided.strategy, **start})
        for name, seconds in (("loading", 14.2 + n), ("tokenising", 3.1)):
            _line(file, {"time": now, "rank": n, "event": "phase", "name": name, "seconds": seconds})
    seen, seconds, rows = 0, 0.0, []
    for step in range(first, steps + 1):
        own = [
            draw.gauss(0.30, 0.012) * (1.18 if n == slow and 100 < step < 150 else 1) / speed for n in range(len(ranks))
        ]
        data = [abs(draw.gauss(0.008, 0.003)) for _ in ranks]
        whole = max(a + b for a, b in zip(own, data, strict=True)) + 0.01
        now += whole
        seconds += whole
        for n, file in enumerate(ranks):
            tokens = int(draw.gauss(27_000, 1_800))
            seen += tokens
            row = {"time": round(now, 3), "rank": n, "event": "step", "step": step, "seconds": round(whole, 4)}
            row |= {"data_seconds": round(data[n], 4), "compute_seconds": round(own[n], 4)}
            row |= {"wait_seconds": round(whole - own[n] - data[n], 4), "tokens": tokens, "padded_tokens": tokens + 900}
            row |= {"allocated_gib": 11.2 + 0.3 * n, "reserved_gib": 12.9 + 0.3 * n, "free_gib": 61.0} if gpus else {}
            _line(file, {**row, "host_gib": 6.4})
        loss = floor + 1.35 * math.exp(-step / (0.16 * max(steps, 40))) + draw.gauss(0, floor / 12)
        warm = min(1.0, step / max(1, steps * 0.05))
        row = {"step": step, "loss": loss, "grad_norm": abs(draw.gauss(0.6, 0.12)) + 1.4 * math.exp(-step / 30)}
        row |= {"learning_rate": rate * warm * (1 - step / (steps + 1)), "epoch": step / 120}
        rows.append({**row, "num_input_tokens_seen": seen, "seconds": round(seconds, 4), "peak_gib": 11.5})
        if gpus and step % 40 == 0 and steps <= 1000:
            rows.append({"step": step, "eval_loss": loss + 0.04, "epoch": step / 120})
    for n, file in enumerate(ranks):
        if ended:
            _line(file, {"time": now, "rank": n, "event": "phase", "name": "training", "seconds": round(seconds, 1)})
            end = {"event": "end", "steps": steps, "seconds": round(seconds, 1), "status": "finished"}
            _line(file, {"time": now + 2, "rank": n, **end})
        file.close()
    with (logs / "steps.jsonl").open(mode, encoding="utf-8") as file:
        for row in rows:
            _line(file, row)
    if ended:
        _dump(directory / "adapter" / "adapter_config.json", {})


def _summary(directory: Path, ranks: int, steps: int, since: float = START) -> dict[str, Any]:
    """What rank 0 writes at the end, from what the ranks logged since then."""
    told = []
    for n in range(ranks):
        lines = (directory / "logs" / f"rank-{n}.jsonl").read_text(encoding="utf-8").splitlines()
        own = [line for line in map(json.loads, lines) if line["event"] == "step" and line["time"] >= since]
        whole = sum(line["seconds"] for line in own)
        parts = {f"{p}_share": sum(line[f"{p}_seconds"] for line in own) / whole for p in ("data", "compute", "wait")}
        memory = {"peak_gib": 11.2 + 0.3 * n, "reserved_gib": 12.9 + 0.3 * n} if "allocated_gib" in own[0] else {}
        tokens = sum(line["tokens"] for line in own)
        told.append(
            {"rank": n, "host": "node-1", "seconds_median": own[0]["seconds"], "tokens": tokens, **parts, **memory}
        )
        told[-1] |= {"host_gib": 6.4, "seconds": whole}
    seconds, tokens = told[0]["seconds"], sum(rank["tokens"] for rank in told)
    speed = tokens / seconds
    figures = {"tokens_per_second": speed, "tokens_per_second_per_gpu": speed / ranks, "step_seconds_median": 0.33}
    mfu = {"mfu": 0.412, "mfu_why": "4N per token for frozen weights, 989 TFLOP/s per GPU."}
    told_all = {"steps": steps, "seconds": round(seconds, 1), "tokens": tokens, **figures, **mfu, "ranks": told}
    return {**told_all, "stragglers": [], "warnings": []}


def _results(decided: Plan, steps: int, told: dict[str, Any]) -> dict[str, Any]:
    training = {"strategy": decided.strategy, "processes": decided.num_processes, "device": decided.device}
    training |= {"global_batch_size": 64, "steps": steps, "loss": 0.7}
    return {"training": {**training, "seconds": told["seconds"], "tokens": told["tokens"]}, "versions": VERSIONS}


def _line(file: Any, values: dict[str, Any]) -> None:
    file.write(json.dumps(values) + "\n")


def _append(path: Path, values: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        _line(file, values)


def _dump(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2), encoding="utf-8")


if __name__ == "__main__":
    from unsloth_accel import report

    for kind, make in KINDS.items():
        print(report.write(make(Path(sys.argv[1], kind))))
    other = two_gpus(Path(sys.argv[1], "two-gpus-other"), seed=9, speed=1.35, rate=3e-4)
    print(report.write_comparison(Path(sys.argv[1], "two-gpus"), other))
