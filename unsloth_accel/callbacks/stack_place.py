"""Where a training thread stands, read from its Python stack: nothing is told on the way, which costs no step."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from types import FrameType

Call = tuple[str, str, int]
"""File, function and line of a frame."""


@dataclass(frozen=True)
class Place:
    """Part of a training that a thread is in."""

    what: str
    """Words that go behind "in"."""
    strict: bool = False
    """Whether it is a part of every step, so that the slowest step so far says how long it may take."""
    waits: bool = False
    """Whether the thread waits for other ranks there: another one is to blame."""
    paused: bool = False
    """Whether something else than a rank may hold it: a debugger, a lock that another run has."""


OUTSIDE = Place("code outside of a step")
_DATA, _SAVING = Place("the data loader"), Place("saving a checkpoint")
_EVALUATING, _COMPILING = Place("an evaluation"), Place("compiling")
_PLACES: tuple[tuple[str, tuple[str, ...], Place], ...] = (
    ("transformers/trainer.py", ("training_step",), Place("the forward and backward passes", strict=True)),
    ("transformers/trainer.py", ("get_batch_samples",), _DATA),
    ("torch/utils/data/dataloader.py", ("__next__",), _DATA),
    ("transformers/trainer.py", ("_save_checkpoint", "save_model", "_load_best_model"), _SAVING),
    ("transformers/trainer.py", ("evaluate", "evaluation_loop", "predict"), _EVALUATING),
    ("transformers/trainer_callback.py", ("call_event",), Place("a callback")),
    # Within a step of GRPO's, and as long as whoever judges or answers elsewhere takes; TRL 1.15, Unsloth's copies too.
    ("", ("_calculate_rewards",), Place("a reward function")),
    ("trl/generation/vllm_", (), Place("generation by vLLM")),
    ("accelerate/optimizer.py", ("step",), Place("the optimizer", strict=True)),
    ("torch/optim/", ("step",), Place("the optimizer", strict=True)),
    ("torch/nn/utils/clip_grad.py", (), Place("clipping gradients", strict=True)),
    ("torch/_dynamo/convert_frame.py", (), _COMPILING),
    ("torch/_inductor/graph.py", (), _COMPILING),
    ("torch/_inductor/async_compile.py", (), _COMPILING),
    ("torch/_inductor/codecache.py", (), _COMPILING),
    ("triton/compiler/", (), _COMPILING),
    ("triton/runtime/autotuner.py", (), _COMPILING),
    ("/bdb.py", (), Place("a debugger", paused=True)),
    ("/debugpy/", (), Place("a debugger", paused=True)),
)
"""End or part of a file's name, functions in it (any, where none is named), place; the innermost that fits counts."""
_WAITING = ("torch/distributed/", "accelerate/utils/operations.py", "filelock/")
_AROUND = ("torch/", "accelerate/", "transformers/trainer_pt_utils.py", "filelock/", "contextlib.py")
_OURS_AROUND = ("of_every_rank", "raise_on_every_rank", "share")
"""Files, and functions of ours, that aren't who called a collective."""


def place_of(calls: Sequence[Call]) -> Place:
    """Return the place of a stack, outermost call first. Source of the names: transformers 5.17, torch 2.13."""
    found = next((place for file, name, _ in reversed(calls) if (place := _known(file, name))), OUTSIDE)
    if not calls or not any(part in calls[-1][0] for part in _WAITING):
        return found
    waits_for = _collective(calls)
    lock = "filelock/" in calls[-1][0]
    return Place(f"{found.what}, where it waits in {waits_for}", strict=found.strict, waits=True, paused=lock)


def calls_of(frame: FrameType | None) -> list[Call]:
    """The stack that ends in `frame`, outermost call first."""
    found = [(each.f_code.co_filename, each.f_code.co_name, each.f_lineno) for each in _outwards(frame)]
    return found[::-1]


def position_of(frame: FrameType | None) -> int:
    """A number that is another one as soon as anything in the stack of `frame` has moved."""
    return hash(tuple((id(each.f_code), each.f_lasti) for each in _outwards(frame)))


def look_at(thread: int) -> tuple[Place, int]:
    """The place and the position of a thread, by its `threading.get_ident()`.

    torch runs a backward pass on GPUs in threads of its own: what these do counts while `thread` waits for them.
    """
    frames = sys._current_frames()
    # With its own frame, which holds `frames`, they were a circle: all of these stacks, and the activations that their
    # functions held, stayed on the GPU until Python looked for circles.
    frames.pop(threading.get_ident())
    frame = frames.get(thread)
    place, position = place_of(calls_of(frame)), position_of(frame)
    if frame is None or frame.f_code.co_name != "_engine_run_backward":
        return place, position
    pythons_own = {one.ident for one in threading.enumerate() if not one.name.startswith("Dummy-")}
    for inner in (inner for other, inner in frames.items() if other not in pythons_own):
        there = place_of(calls_of(inner))
        place = there if there.waits or there is _COMPILING else place
        position ^= position_of(inner)
    return place, position


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


@functools.cache
def _known(file: str, function: str) -> Place | None:
    return next((place for part, names, place in _PLACES if part in file and (not names or function in names)), None)


def _collective(calls: Sequence[Call]) -> str:
    """Name the outermost call into what waits, and who called that."""
    inner = len(calls)
    while inner and _is_around(calls[inner - 1]):
        inner -= 1
    inside = [name for file, name, _ in calls[inner:] if any(part in file for part in _WAITING)]
    names = [name for name in inside if name not in ("wrapper", "inner", "__call__", "__enter__")] or inside
    said = names[0] if names[0] == names[-1] else f"{names[0]} ({names[-1]})"
    if not inner:
        return said
    file, function, line = calls[inner - 1]
    return f"{said}, called from {function} ({PurePath(file).name}:{line})"


def _is_around(call: Call) -> bool:
    return any(part in call[0] for part in _AROUND) or call[1] in _OURS_AROUND
