"""Checks of the interface of unsloth-multigpu: its examples as a new user runs them.

Each starts its example by plain python, and then by the commands that this printed. Most of a launch is the import of
unsloth, so that what doesn't wait for another runs at once: the models are small, and share the GPUs.
"""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import Any

from benchmarks.checks import CLI, LAUNCH, LOSS, ROOT, Place, adapter, apart, at_once, expect, relative
from unsloth_accel.hardware.hardware import Hardware

IN_STEP = re.compile(
    r"ranks in step after the first step: (\d+) trained tensors and their gradients are the same on all (\d+)"
)
STEPS = 4


def quick_start(place: Place) -> dict[str, Any]:
    """examples/quick_start.py by plain python, which prints the commands; by each of them; and on one GPU."""
    said: dict[str, str] = {}
    gpus = ("--gpus", str(place.processes))

    def plain(label: str) -> None:
        if label == "printed":
            said[label] = _printed(place, "quick_start", *gpus, "--accumulation", "1")
        else:
            words = _words(place, label, "--accumulation", str(place.processes), "--gpus", "1")
            said[label] = place.run(label, _script("quick_start"), *words, variables=_one_gpu(place))

    at_once(plain, ("printed", "one GPU"))
    commands = _commands(said["printed"], place)

    def launched(label: str) -> None:
        # A directory of its own, since both run at once; the words else are those that were printed.
        said[label] = place.run(label, *commands[label], "--output", place.directory / _directory(label))

    at_once(launched, tuple(commands))
    losses = {label: _numbers("loss", said[label]) for label in ("one GPU", *commands)}
    figures: dict[str, Any] = {"losses": losses}
    alone = adapter(place.directory / "one-gpu" / "adapter")
    for label in commands:
        found = _in_step(said[label], label, place)
        own = adapter(place.directory / _directory(label) / "adapter")
        found |= {"loss": relative(losses["one GPU"], losses[label]), "adapter": apart(alone, own)}
        expect(found["loss"] <= LOSS, f"{label}: losses differ from one GPU's: {losses}")
        expect(found["adapter"] <= 0.1, f"{label}: the adapter ends apart from one GPU's: {found['adapter']}")
        figures[label] = found
    return figures


def grpo_multi_gpu(place: Place) -> dict[str, Any]:
    """examples/grpo_multi_gpu.py by plain python, and by the command that it printed."""
    label = "unsloth-accel launch"
    commands = _commands(_printed(place, "grpo_multi_gpu", "--max-new-tokens", "24"), place)
    told = place.run(label, *commands[label])
    norms = _numbers("grad_norm", told)
    expect(all(0 <= norm < 100 for norm in norms) and any(norms), f"gradient norms {norms}")
    tensors = len(adapter(place.directory / "printed" / "adapter"))
    return {**_in_step(told, label, place), "tensors": tensors, "grad_norm": norms, "reward": _numbers("reward", told)}


def _printed(place: Place, name: str, *more: str) -> str:
    """What the example says by plain python: with several GPUs it ends with status 2, with none it trains."""
    status = 0 if place.device == "cpu" else 2
    return place.run("printed", _script(name), *_words(place, "printed", *more), status=status)


def _commands(said: str, place: Place) -> dict[str, list[str]]:
    """The words of the launches that a script printed by plain python, by their programs; the config that they name is
    written before, by the command for it that was printed, to the check's own directory."""
    lines = [line.strip() for line in said.splitlines() if re.match(r"\s+(unsloth-accel|accelerate) ", line)]
    programs = {"unsloth-accel config": CLI, "unsloth-accel launch": CLI, "accelerate launch": LAUNCH}
    expect([" ".join(line.split()[:2]) for line in lines] == [*programs], f"three commands, but it printed {lines}")
    file = re.search(r"--out (\S+)", lines[0])
    assert file is not None
    found = {}
    for (label, program), line in zip(programs.items(), lines, strict=True):
        words = shlex.split(line)[2 if program is LAUNCH else 1 :]
        found[label] = [*program, *(str(place.directory / word) if word == file[1] else word for word in words)]
    place.run("config", *found.pop("unsloth-accel config"))
    return found


def _in_step(said: str, label: str, place: Place) -> dict[str, Any]:
    """What a launch said of its ranks, and the example of what is in force: all processes, and its trainer adapted."""
    found = IN_STEP.search(said)
    expect(found is not None, f"{label}: the ranks were not said to be in step")
    assert found is not None
    expect(int(found[2]) == place.processes, f"{label}: {found[0]}")
    line = re.search(r"\{'enabled': .*\}", said)  # a progress bar may stand before it
    expect(line is not None, f"{label}: get_multi_gpu_status was not printed")
    assert line is not None
    status = ast.literal_eval(line[0])
    seen = {name: status[name] for name in ("num_processes", "strategy", "adapted_trainers")}
    expect(seen == {"num_processes": place.processes, "strategy": "ddp", "adapted_trainers": 1}, f"{label}: {status}")
    return {"tensors in step": int(found[1]), **seen}


def _numbers(name: str, said: str) -> list[float]:
    found = [float(number) for number in re.findall(rf"'{name}': '?(-?[0-9.]+(?:e[+-]?[0-9]+)?)", said)]
    expect(len(found) == STEPS, f"{name} of {STEPS} steps: {found}")
    return found


def _script(name: str) -> Path:
    return ROOT / "examples" / f"{name}.py"


def _words(place: Place, label: str, *more: str) -> list[str]:
    model = place.work / ("tiny" if place.device == "cpu" else "llama")
    out = place.directory / _directory(label)
    return ["--model", str(model), "--max-steps", str(STEPS), "--output", str(out), *more]


def _directory(label: str) -> str:
    return label.replace(" ", "-").lower()


def _one_gpu(place: Place) -> dict[str, str]:
    return {} if place.device == "cpu" else {"CUDA_VISIBLE_DEVICES": Hardware.detect().devices[0].uuid}
