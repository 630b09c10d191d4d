"""What strikes: signals, full and read-only disks, a closed terminal, a second launch; all real, all from outside."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from unsloth_accel.artifacts.checkpoints import checkpoints

from .places import Disk
from .watched import Watched


@dataclass
class Scene:
    """Where a fault strikes."""

    output_dir: Path
    disk: Disk
    chance: random.Random
    launch_again: Callable[[], Watched]
    """Starts the same command once more."""
    running: Watched | None = None
    """None before the launch."""
    pid: int = 0
    """Process of the rank that has come to the place."""
    others: list[Watched] = field(default_factory=list)
    """Launches beside it that have ended."""

    @property
    def launch(self) -> Watched:
        assert self.running is not None
        return self.running


Action = Callable[[Scene], None]


def nothing(scene: Scene) -> None:
    """The rank itself goes wrong."""


def rank(number: signal.Signals) -> Action:
    return lambda scene: os.kill(scene.pid, number)


def launcher(number: signal.Signals) -> Action:
    return lambda scene: os.kill(scene.launch.launcher(), number)


def impatient(number: signal.Signals) -> Action:
    """As somebody does who can't wait."""

    def send(scene: Scene) -> None:
        launcher(number)(scene)
        time.sleep(0.3)
        with suppress(ProcessLookupError):
            launcher(number)(scene)

    return send


def everybody(number: signal.Signals) -> Action:
    """As a scheduler does, and a terminal that is closed, to all that they have started."""

    def send(scene: Scene) -> None:
        for process in scene.launch.processes():
            process.send_signal(number)

    return send


def parent(scene: Scene) -> None:
    """Kill the shell that the launch was started from."""
    os.kill(scene.launch.process.pid, signal.SIGKILL)


def terminal(scene: Scene) -> None:
    scene.launch.close_terminal()


def fill(leaving: int = 0) -> Action:
    return lambda scene: scene.disk.fill(leaving)


def free(scene: Scene) -> None:
    scene.disk.free()


def read_only(scene: Scene) -> None:
    scene.disk.make_read_only(scene.output_dir)


def second(scene: Scene) -> None:
    """Launch into the same directory, and wait for that launch's end, which the first one mustn't notice."""
    other = scene.launch_again()
    other.wait(other.ended, 50)
    other.end()
    scene.others.append(other)


def truncate(name: str) -> Action:
    """Cut a file of the newest checkpoint somewhere."""

    def cut(scene: Scene) -> None:
        file = checkpoints(scene.output_dir)[-1] / name
        os.truncate(file, scene.chance.randrange(file.stat().st_size))

    return cut
