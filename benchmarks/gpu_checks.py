"""What only GPUs can show and needs no clock: each strategy saves, goes on, generates, and trains like one GPU.

    python -m benchmarks.gpu_checks [--gpus 4] [--out FILE.json] [--checks 'loop,family-*'] [--old NAME=DIRECTORY ...]
    python -m benchmarks.gpu_checks [--out FILE.json] --table docs/gpu-checks.md

A check is a few launches of random models on two GPUs, or on --gpus of them, and a verdict on what they left. Checks
run side by side, since none is timed. `--old` names directories with packages of an older Unsloth, put before the
others. Logs are in --work.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.checks import (
    FEW_LORA,
    FULL_ROWS,
    ROOT,
    SEVERAL,
    Place,
    doctor,
    going_on,
    grpo,
    held_out,
    merging,
    observed,
    older,
    packed_attention,
    resuming,
    saving,
    scripts,
    verified,
)
from benchmarks.family_checks import FAMILY_CHECKS, models_of
from benchmarks.fault_checks import FAULTS
from benchmarks.grpo_checks import grpo_in_parts, grpo_rehearsed, grpo_run
from benchmarks.memory_checks import halving, limited, of_70b, packed_kept, rehearsed
from benchmarks.multigpu_checks import grpo_multi_gpu, quick_start
from unsloth_accel.adapters.fsdp2.peer_fetch.peer_reach import SWITCH as PEER_GATHER
from unsloth_accel.adapters.saving import versions
from unsloth_accel.files import write_atomically
from unsloth_accel.hardware.hardware import Hardware

OUT = "benchmarks/results/gpu-checks.json"
SIDE_BY_SIDE = 28
"""Processes of checks at once, if nothing else is said, by which a check is counted with one for each GPU. Some have
twice as many; each takes about 2 GiB of a GPU and 3 of the machine."""

BITS4 = {"model": {"load_in_4bit": True}}
FP16 = {"model": {"dtype": "float16"}, "training": {"fp16": True, "bf16": False}}
Check = Callable[[Place], dict[str, Any]]
CHECKS: dict[str, Check] = {
    "limited-fsdp2": partial(limited, "fsdp2"),
    "limited-single": partial(limited, "single"),
    "70B": of_70b,
    "halving": partial(halving, "ddp"),
    "halving-fsdp2": partial(halving, "fsdp2"),
    **{f"rehearsed-{strategy}": partial(rehearsed, strategy) for strategy in ("single", "ddp", "fsdp2")},
    **{f"packed-kept-{strategy}": partial(packed_kept, strategy) for strategy in ("single", "ddp", "fsdp2")},
    **{f"observed-{strategy}": partial(observed, strategy) for strategy in SEVERAL},
    "verify-packed": partial(verified, ",".join(SEVERAL), {"training": {"packing": True}}, {}),
    # Compiled for minutes: rows of one length, since each new one may be compiled anew, and a check for each strategy.
    **{f"family-{name}-{strategy}": partial(verified, strategy, {"model": {"name": name}, **FULL_ROWS}, {})
       for name, strategies in (("gemma3", SEVERAL), ("qwen3_moe", ("ddp",))) for strategy in strategies},
    **FAMILY_CHECKS,
    **{f"family-{name}": partial(verified, ",".join(SEVERAL), {"model": {"name": name}}, {})
       for name in ("llama", "mistral", "qwen3")},
    "verify-4bit": partial(verified, ",".join(SEVERAL), BITS4, {}),
    "verify-fp16": partial(verified, "ddp,fsdp2", FP16, {}),
    "verify-accumulation": partial(verified, ",".join(SEVERAL), {"batch": {"global_size": 16}}, {}),
    "verify-fsdp1": partial(verified, "fsdp1", {}, {}),
    "verify-8bit-adam": partial(verified, "ddp,fsdp2_native", {"training": {"optim": "adamw_8bit"}}, {}),
    "verify-without-peers": partial(verified, "fsdp2", {}, {PEER_GATHER: "0"}),
    "verify-copied": partial(verified, "fsdp2", {}, {PEER_GATHER: "copied"}),
    **{f"resuming-{strategy}": partial(resuming, strategy, {}) for strategy in (*SEVERAL, "fsdp1")},
    "resuming-fsdp2-4bit": partial(resuming, "fsdp2", BITS4),
    **{f"saving-{strategy}": partial(saving, strategy, {}, "FULL_STATE_DICT") for strategy in (*SEVERAL, "fsdp1")},
    "saving-fsdp2-4bit": partial(saving, "fsdp2", BITS4, "FULL_STATE_DICT"),
    "saving-fsdp2-sharded-state": partial(saving, "fsdp2", {}, "SHARDED_STATE_DICT"),
    # The model is so small that LoRA's default rank is more than 1 % of it, and divided by fsdp2; mostly it is whole.
    "verify-fsdp2-whole": partial(verified, "fsdp2", FEW_LORA, {}),
    "verify-fsdp2-whole-4bit": partial(verified, "fsdp2", FEW_LORA | BITS4, {}),
    "resuming-fsdp2-whole": partial(resuming, "fsdp2", FEW_LORA),
    "saving-fsdp2-whole": partial(saving, "fsdp2", FEW_LORA, "FULL_STATE_DICT"),
    **{f"grpo-{strategy}": partial(grpo, strategy) for strategy in SEVERAL},
    **{f"grpo-run-{strategy}": partial(grpo_run, strategy) for strategy in ("ddp", "fsdp2")},
    "grpo-in-parts": grpo_in_parts,
    **{f"grpo-rehearsed-{strategy}": partial(grpo_rehearsed, strategy) for strategy in ("ddp", "fsdp2")},
    "going-on": partial(going_on, ("single", *SEVERAL), {}),
    "going-on-4bit": partial(going_on, ("single", *SEVERAL), BITS4),
    "held-out": held_out,
    **{f"{fault}-{strategy}": partial(check, strategy) for fault, check in FAULTS.items() for strategy in SEVERAL},
    "packed-attention": packed_attention,
    "loop": partial(scripts, "accelerate_loop"),
    "script": partial(scripts, "sft"),
    "merging": merging,
    "doctor": doctor,
    "multigpu-quick-start": quick_start,
    "multigpu-grpo": grpo_multi_gpu,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=2, choices=(2, 4, 8), help="of a launch; default %(default)s")
    parser.add_argument("--out", help=f"JSON; default {OUT}, on more than two GPUs gpu-checks-GPUS.json")
    parser.add_argument("--checks", default="*", help="names or patterns, comma-separated; all by default")
    parser.add_argument("--old", action="append", default=[], metavar="NAME=DIRECTORY", help="an older Unsloth")
    parser.add_argument("--work", default="runs/gpu-checks", help="where models, data and runs go")
    parser.add_argument("--side-by-side", type=int, help=f"checks at once; default {SIDE_BY_SIDE} / GPUS")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu tries the checks of faults, ddp")
    parser.add_argument("--table", metavar="FILE", help="write the Markdown page of what --out holds, and run nothing")
    options = parser.parse_args()
    gpus = options.gpus
    out, work = Path(options.out or results(gpus)), Path(options.work).absolute()
    if options.table:
        Path(options.table).write_text(page(json.loads(out.read_text(encoding="utf-8"))), encoding="utf-8")
        return 0
    paths = dict(one.split("=", 1) for one in options.old)
    checks = CHECKS | {f"older-{version}": partial(older, version) for version in paths}
    patterns = [pattern.strip() for pattern in options.checks.split(",")]
    wanted = {name: check for name, check in checks.items() if any(fnmatch(name, pattern) for pattern in patterns)}
    hardware = Hardware.detect()
    on_cpu = options.device == "cpu"
    of_one = all(name.endswith("-single") for name in wanted)
    if (len(hardware.devices) < (1 if of_one else gpus) and not on_cpu) or not wanted:
        print(f"no such checks, or too few GPUs: {hardware}", file=sys.stderr)
        return 2
    started = time.perf_counter()
    out.parent.mkdir(parents=True, exist_ok=True)
    prepare(work, wanted, on_cpu)
    print(f"{time.perf_counter() - started:.0f}s models and rows written", flush=True)
    earlier = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {"checks": {}}
    report: dict[str, Any] = earlier | {
        "command": command_on(gpus),
        "versions": versions(),
        **({"gpus": gpus} if gpus != 2 else {}),
    }

    writing = threading.Lock()

    def one(name: str) -> bool:
        version = name.removeprefix("older-")
        place = Place(work, name, (paths[version],) if version in paths else (), device=options.device, processes=gpus)
        begun = time.perf_counter()
        try:
            found: dict[str, Any] = {"ok": True, "figures": wanted[name](place)}
        except Exception as error:  # a check that breaks is one that fails, and the others go on
            found = {"ok": False, "error": f"{type(error).__name__}: {error}"[:3000]}
        found |= {
            "date": time.strftime("%Y-%m-%d"),
            "gpu": hardware.devices[0].name if not on_cpu else "CPU",
            "seconds": round(time.perf_counter() - begun),
            "commands": place.commands,
        }
        with writing:
            report["checks"][name] = found
            # Errors name files; where this machine keeps them is nobody's business.
            text = json.dumps(report, indent=1).replace(f"{work}/", "").replace(f"{ROOT}/", "")
            write_atomically(out, text + "\n")
        told = json.dumps(found.get("figures", found.get("error")))[:420]
        print(f"{time.perf_counter() - started:.0f}s {name} {'ok' if found['ok'] else 'FAILED'} {told}", flush=True)
        return bool(found["ok"])

    with ThreadPoolExecutor(options.side_by_side or max(1, SIDE_BY_SIDE // gpus)) as pool:
        good = list(pool.map(one, wanted))
    print(f"{sum(good)} of {len(good)} checks passed", flush=True)
    return 0 if all(good) else 1


def command_on(gpus: int) -> str:
    return "python -m benchmarks.gpu_checks" + (f" --gpus {gpus}" if gpus != 2 else "")


def results(gpus: int) -> str:
    """Return the file of what was checked on so many GPUs."""
    return OUT if gpus == 2 else OUT.replace(".json", f"-{gpus}.json")


def prepare(work: Path, checks: Iterable[str], on_cpu: bool) -> None:
    """Write the models of `checks`, by their names, each in a process of its own, and the rows."""
    from benchmarks.strategies import write_texts

    work.mkdir(parents=True, exist_ok=True)
    names = list(checks)
    wanted = [[name, name, *(["--small"] if on_cpu else [])] for name in models_of(names)]
    if set(names) - set(FAMILY_CHECKS):
        named = ("mistral", "qwen3", "gemma3", "qwen3_moe")
        families = ["llama", *(family for family in named if any(family in name for name in names))]
        wanted += [["tiny", "tiny"]] if on_cpu else [["125M", name, "--family", name] for name in families]
    large = {"70B": "70B", "limited": "8B", "grpo-run": "1.5B"}
    shapes = {shape for check, shape in large.items() if any(name.startswith(check) for name in names)}
    wanted += [[shape, shape] for shape in sorted(shapes)] if not on_cpu else []

    def write(shape: str, directory: str, *words: str) -> None:
        if not (work / directory / "config.json").is_file():
            command = [sys.executable, "-m", "benchmarks.random_checkpoint", shape, str(work / directory), *words]
            subprocess.run(command, check=True, capture_output=True, cwd=ROOT)

    with ThreadPoolExecutor(len(wanted)) as pool:
        list(pool.map(lambda one: write(*one), wanted))
    write_texts(work / "full.jsonl", [2049] * 32)
    write_texts(work / "rows.jsonl", [60 + (97 * i) % 450 for i in range(64)])


def page(report: dict[str, Any]) -> str:
    """docs/gpu-checks.md."""
    known = ", ".join(f"{name} {report['versions'][name]}" for name in ("torch", "unsloth", "accelerate", "trl"))
    gpus = report.get("gpus", 2)
    machine = f"{'Two' if gpus == 2 else gpus} GPUs of one kind, {known}"
    lines = [
        "# What was checked on GPUs",
        "",
        f"{machine}. Random models of 125M parameters, but for *limited*; made by",
        f"`{command_on(gpus)}`. Differences are relative to one GPU, or to the straight run.",
        "",
        *([report["note"], ""] if report.get("note") else []),
        "| check | passed | on | seen |",
        "|---|---|---|---|",
    ]
    # Checks that are no more stay in the file, as what a comment or a refusal refers to.
    for name, found in sorted(report["checks"].items()):
        if name not in CHECKS and not name.startswith("older-"):
            continue
        seen = _shown(found["figures"]) if found["ok"] else " ".join(found["error"].split())[:200]
        on = f"{found['gpu'].removeprefix('NVIDIA ').split()[0]}, {found['date']}"
        lines.append(f"| {name} | {'yes' if found['ok'] else 'NO'} | {on} | {seen.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_shown(one)}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return f"{value:.2g}" if isinstance(value, float) and abs(value) < 1 else str(value)


if __name__ == "__main__":
    sys.exit(main())
