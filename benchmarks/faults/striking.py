"""One launch, and all that strikes it."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

from .actions import Scene
from .trial import Strike, Trial
from .watched import Watched
from .workplace import PATIENCE, Workplace, variables_of

ENDING = 3
"""Lines of a launch's end that are kept."""
PACE = 1.0
"""Seconds of a step, once a fault has struck."""
LONGEST = 110.0
"""Seconds from a fault to the end of all processes; whoever lives then is left over."""


def struck_launch(
    trial: Trial,
    strikes: tuple[Strike, ...],
    scene: Scene,
    points: Path,
    place: Workplace,
    directory: Path,
    overrides: tuple[str, ...],
    variables: dict[str, str],
) -> dict[str, Any]:
    """Start the trial's launch, have `strikes` strike it in turn, and return what was seen until its end."""
    points.mkdir()
    told = [{"rank": one.rank, "at": one.at, "step": one.step, "inside": one.inside} for one in strikes]
    for number, strike in enumerate(strikes):
        if strike.at == "start":
            strike.do(scene)
            (points / f"go-{number}").touch()
    given = variables_of(told, points, PACE) | variables
    running = scene.running = place.launch(trial, directory, scene.output_dir, overrides, variables=given)
    since: float | None = None
    struck = True
    step = 0
    for number, strike in enumerate(strikes):
        reached = points / f"reached-{number}"
        if strike.at == "start":
            since = running.began
            continue
        running.wait(lambda reached=reached: reached.exists() or running.ended(), PATIENCE)  # type: ignore[misc]
        if not reached.exists():
            struck = False
            break
        scene.pid, step = map(int, reached.read_text(encoding="utf-8").split())
        since = since or time.monotonic()
        strike.do(scene)
        (points / f"go-{number}").touch()
    since = since or running.began
    word: tuple[float, str] | None = None

    def done() -> bool:
        nonlocal word
        word = word or (running.word(trial.says, since) if trial.says else None)
        return running.ended()

    running.wait(done, LONGEST if struck else 0)
    ended = time.monotonic() - since
    left = running.end()
    done()
    said = "\n".join(line for _, line in running.lines)
    elsewhere = re.search(r"([^\s\"]*\bunsloth-accel-[^/\s]+/adapter)\b", said)
    others = [(one.process.returncode, one.last_line) for one in scene.others]
    return {
        "struck": struck,
        "step": step,
        "status": running.process.returncode,
        "seconds_to_first_word": round(word[0] - since, 1) if word else None,
        "first_word": _in_words(trial.says, running, word[1])[:300] if word else None,
        "seconds_to_end": round(ended, 1),
        "processes_left": left,
        "last_lines": " | ".join(line for _, line in running.lines[-ENDING:]),
        **({"other_launch": others} if others else {}),
        "elsewhere": str(directory / elsewhere[1]) if elsewhere else None,
    }


def _in_words(says: str, running: Watched, first: str) -> str:
    """Return the line of the console where there is one: a file may have had the word before it."""
    found = (line for _, line in running.lines if re.search(says, line, re.IGNORECASE))
    return next(found, first)
