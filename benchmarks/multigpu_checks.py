"""Checks of the interface of unsloth-multigpu: its examples as a new user runs them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from benchmarks.checks import CLI, LAUNCH, LOSS, ROOT, Place, adapter, apart, expect, relative
from unsloth_accel.hardware.hardware import Hardware

IN_STEP = re.compile(
    r"ranks in step after the first step: (\d+) trained tensors and their gradients are the same on all 2"
)
STEPS = 4


def printed_commands(said: str, place: Place) -> list[list[str]]:
    """The words of the commands that a script printed by plain python, with their file in the check's own directory."""
    lines = [line.strip() for line in said.splitlines() if re.match(r"\s+(unsloth-accel|accelerate) ", line)]
    expect(len(lines) == 3, f"three commands were to be printed: {lines}")
    file = re.search(r"--out (\S+)", lines[0])
    assert file is not None
    programs = {"unsloth-accel": CLI, "accelerate": LAUNCH}
    found = []
    for line in lines:
        program, *words = shlex.split(line)
        words = words[1:] if program == "accelerate" else words
        own = [str(place.directory / word) if word == file[1] else word for word in words]
        found.append([*programs[program], *own])
    return found


def quick_start(place: Place) -> dict[str, Any]:
    """examples/quick_start.py by plain python, which prints the commands; by each of them; and on one GPU."""
    script, words = ROOT / "examples" / "quick_start.py", _words(place, "--accumulation", "1")
    said = place.run("printed", script, *words, "--output", place.directory / "out", status=_plain_status(place))
    config, *launches = printed_commands(said, place)
    place.run("config", *config)
    figures: dict[str, Any] = {}
    adapters: list[dict[str, Any]] = []
    alone = place.directory / "alone"
    one = _words(place, "--accumulation", "2", "--gpus", "1", "--output", str(alone))
    losses = {"one GPU": _losses(place.run("alone", script, *one, variables=_one_gpu(place)))}
    for label, command in zip(("unsloth-accel launch", "accelerate launch"), launches, strict=True):
        told = place.run(label.replace(" ", "-"), *command)
        found = IN_STEP.search(told)
        expect(found is not None, f"{label}: the ranks were not said to be in step")
        assert found is not None
        losses[label] = _losses(told)
        adapters.append(adapter(place.directory / "out" / "adapter"))
        figures[label] = {"tensors in step": int(found[1]), "loss": relative(losses["one GPU"], losses[label])}
        expect(figures[label]["loss"] <= LOSS, f"losses differ: {losses}")
    figures["adapter"] = [apart(adapter(alone / "adapter"), one) for one in adapters]
    expect(max(figures["adapter"]) <= 0.1, f"adapters end apart: {figures['adapter']}")
    return figures


def grpo_multi_gpu(place: Place) -> dict[str, Any]:
    """examples/grpo_multi_gpu.py by plain python, and by the command that it printed."""
    out = place.directory / "out"
    words = ["--model", str(_model(place)), "--output", str(out), "--max-steps", str(STEPS), "--max-new-tokens", "24"]
    script = ROOT / "examples" / "grpo_multi_gpu.py"
    said = place.run("printed", script, *words, status=_plain_status(place))
    config, launch, _ = printed_commands(said, place)
    place.run("config", *config)
    told = place.run("launched", *launch)
    found = IN_STEP.search(told)
    expect(found is not None, "the ranks were not said to be in step")
    assert found is not None
    norms = [float(norm) for norm in re.findall(r"'grad_norm': '?([0-9.e+-]+)", told)]
    expect(len(norms) == STEPS and all(0 <= norm < 100 for norm in norms) and any(norms), f"gradient norms {norms}")
    return {"tensors in step": int(found[1]), "tensors": len(adapter(out / "adapter")), "grad_norm": norms}


def _model(place: Place) -> Path:
    return place.work / ("tiny" if place.device == "cpu" else "llama")


def _words(place: Place, *more: str) -> list[str]:
    return ["--model", str(_model(place)), "--max-steps", str(STEPS), *more]


def _plain_status(place: Place) -> int:
    """The status of a plain python with two GPUs, and with none."""
    return 0 if place.device == "cpu" else 2


def _one_gpu(place: Place) -> dict[str, str]:
    return {} if place.device == "cpu" else {"CUDA_VISIBLE_DEVICES": Hardware.detect().devices[0].uuid}


def _losses(said: str) -> list[float]:
    found = [float(loss) for loss in re.findall(r"'loss': '?([0-9.]+)", said)]
    expect(len(found) == STEPS, f"losses {found}")
    return found
