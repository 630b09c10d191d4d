"""Watchdog: a rank that hangs is named, the stacks of all are written down, and all ranks end.

Each rank looks at the others' heartbeats as soon as it has made no progress for a while, from its heartbeat's thread:
it needs neither the training thread nor the process group. All come to the same verdict (`hang_verdict`); the first of
those that live says it, and the others follow, or take its place.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ..artifacts.run_directory import RunDirectory
from ..errors import UnslothAccelError
from ..files import read_json, write_atomically
from ..launch.rank_errors import report_error
from .hang_stacks import Stacks
from .hang_verdict import Process, Seen, Verdict, limit_of, named, verdict
from .heartbeat import BEAT, QUIET, Beat, flight_record, process_state, read_beat
from .rank_log import RankLog
from .signs_of_work import WORKING, cpu_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

AFTER = 5.0
"""Seconds after which the next rank acts where the one before it does not."""
LEAVING = 4.0
"""Seconds that ranks get to write down what they know."""
AT_LAST = 20.0
"""Seconds after which a rank leaves, whatever keeps it: a disk that is gone, a pipe that nobody reads."""
OLD = 60.0
"""Seconds by which a file must be older than this process to be of an earlier launch."""


class HangError(UnslothAccelError):
    """A rank hangs; the message names it."""

    on_every_rank = True  # it is told once, as the one that it names


class Watchdog:
    """Looks at the heartbeats in `files`, those of `world` ranks, for `heartbeat.Heartbeat`.

    `log` gets the warnings and the end. `advice` is called at the end and says what is left and how to go on, as text
    behind the message. `hang_after` is `logging.hang_after`; `stacks` are this rank's. `aloud`
    says that nobody else tells the end.
    """

    def __init__(
        self,
        files: RunDirectory,
        log: RankLog,
        world: int,
        hang_after: float | None,
        advice: Callable[[], str],
        stacks: Stacks,
        aloud: bool,
    ) -> None:
        self.files = files
        self._log = log
        self._stacks = stacks
        self._aloud = aloud
        self._world = world
        self.hang_after = hang_after
        self.advice = advice
        self._since: float | None = None
        """When this process began, by the clock of the disk that the files are on."""
        self._seen: dict[int, Seen] = {}
        self._cpu: dict[int, tuple[float, float, bool]] = {}
        """Of silent ranks: when it was looked at, seconds of processors, whether they had grown."""
        self._told: list[tuple[int, ...]] = []
        """Whom there was a word about since this rank came further, in turn."""
        self._ending = 0.0
        self._told_end = False

    def look(self, own: Beat, passed: float) -> None:
        """Look at the other ranks, `passed` seconds after the last look, where `own` makes no progress."""
        if self._since is None:
            mine = self.files.heartbeat(own.rank)
            self._since = mine.stat().st_mtime if mine.exists() else time.time()
        notice = read_json(self.files.hang) if self._is_new(self.files.hang) else {}
        # Another rank has told the verdict; not of a process before this one, after which torchrun began anew.
        if notice and notice.get("pids", {}).get(str(own.rank), own.pid) == own.pid:
            self._leave_at_last(own)
            self._write_down(own, str(notice["message"]))
            self._wait_for(set(range(self._world)) - {*notice["silent"]})
            self._exit()
        if own.idle < min(QUIET, limit_of([Seen(beat=own)], self.hang_after) / 2):
            self._seen.clear()
            if self._told:
                last = self._told[-1]
                self._say(own, f"{named(last)} {'go' if len(last) > 1 else 'goes'} on", last)
            self._told, self._ending = [], 0.0
            return
        self._seen[own.rank] = Seen(beat=own)
        for rank in {*range(self._world)} - {own.rank}:
            self._see(rank, own, passed)
        seen = list(self._seen.values())
        found = verdict(seen, self._world, self.hang_after)
        alive = [one.beat.rank for one in seen if one.silent < AFTER]
        turn = sorted(alive).index(own.rank) if own.rank in alive else len(alive)
        self._ending = self._ending + passed if found.action == "end" else 0.0
        if found.action == "end" and self._ending > turn * AFTER:
            self._end(own, found)
        elif found.action == "word" and turn == 0 and found.ranks not in self._told:
            self._told.append(found.ranks)
            self._say(own, found.message, found.ranks)

    def _see(self, rank: int, own: Beat, passed: float) -> None:
        path, before = self.files.heartbeat(rank), self._seen.get(rank)
        beat = read_beat(path) if self._is_new(path) else None
        if beat is None:
            if before is None or not path.exists():
                self._seen.pop(rank, None)
                return
            beat = before.beat  # half of one was read
        if before is None:
            silent = self._late(own, path)
        else:
            moved = beat.beats != before.beat.beats or beat.pid != before.beat.pid
            silent = 0.0 if moved else before.silent + passed
        process: Process = ""
        if silent >= 3 * BEAT:
            process = self._process(beat, silent) if beat.host == own.host else "elsewhere"
        gone = before is not None and before.process == process == "gone"
        ended = before.ended + passed if before and gone else 0.0
        self._seen[rank] = Seen(beat=beat, silent=silent, process=process, ended=ended)

    def _late(self, own: Beat, path: Path) -> float:
        """Return how long a heartbeat has been silent that is looked at for the first time: no longer than this rank
        has waited, by whose clock a machine that slept makes nobody late."""
        try:
            since = self.files.heartbeat(own.rank).stat().st_mtime - path.stat().st_mtime
        except OSError:
            return 0.0
        return max(0.0, min(own.idle, since))

    def _is_new(self, path: Path) -> bool:
        """Whether a file is of this launch."""
        try:
            return path.stat().st_mtime > (self._since or 0.0) - OLD
        except OSError:
            return False

    def _process(self, beat: Beat, silent: float) -> Process:
        """Return what is to be said of the process of a silent rank of this machine."""
        state = process_state(beat)
        if state is None:
            return "gone"
        if state == "T":
            return "stopped"
        if state == "t":
            return "traced"
        at, seconds, busy = self._cpu.get(beat.rank, (silent, cpu_seconds(beat.pid), True))
        if silent - at >= QUIET or silent < at:
            now = cpu_seconds(beat.pid)
            at, seconds, busy = silent, now, now - seconds >= WORKING * (silent - at)
        self._cpu[beat.rank] = (at, seconds, busy)
        return "busy" if busy else "quiet"

    def _say(self, own: Beat, message: str, ranks: tuple[int, ...]) -> None:
        print(f"unsloth_accel: warning: {message}.", file=sys.stderr, flush=True)
        with suppress(OSError):
            line = self._log.write("warning", source="hang", step=own.step, message=message, ranks=list(ranks))
            self._log.warnings.append(line)

    def _end(self, own: Beat, found: Verdict) -> None:
        """Tell the verdict, write down what is known, and end with the others."""
        self._leave_at_last(own, found)
        message = found.message + ". "
        with suppress(Exception):
            message += self.advice()
        self._tell(found, message)
        for one in self._deaf():
            with suppress(OSError):
                self._stacks.ask(one)
        self._write_down(own, message)
        silent = {rank for rank, one in self._seen.items() if one.silent >= 3 * BEAT}
        with suppress(OSError):
            pids = {rank: one.beat.pid for rank, one in self._seen.items()}
            write_atomically(self.files.hang, json.dumps({"message": message, "silent": [*silent], "pids": pids}))
        self._wait_for(self._seen.keys() - silent)
        self._kill_deaf()
        self._exit()

    def _tell(self, found: Verdict, message: str) -> None:
        if self._told_end:
            return
        self._told_end = True
        if self._aloud:
            print(f"unsloth_accel: {message}", file=sys.stderr, flush=True)
        with suppress(OSError):
            report_error(self.files.path, found.ranks[0], HangError(message))

    def _deaf(self) -> list[Seen]:
        """Return the silent ranks of this machine, which end only where they are killed."""
        return [one for one in self._seen.values() if one.process not in ("", "gone", "elsewhere")]

    def _kill_deaf(self) -> None:
        """End them before torchrun tries to, which waits half a minute for each."""
        for one in self._deaf():
            with suppress(OSError):
                os.kill(one.beat.pid, signal.SIGKILL)
                self.files.heartbeat(one.beat.rank).unlink()

    def _wait_for(self, ranks: Collection[int]) -> None:
        """Wait until `ranks` have written down what they know: with the first that ends torchrun ends the others."""
        until = time.monotonic() + LEAVING
        while time.monotonic() < until and any(self.files.heartbeat(rank).exists() for rank in ranks):
            time.sleep(0.02)

    def _exit(self) -> None:
        """Leave at once: the training thread may never come back from where it is."""
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(HangError.exit_status)

    def _write_down(self, own: Beat, message: str) -> None:
        with suppress(Exception):
            self._log.write("hang", step=own.step, message=message, phase=own.phase, place=own.place)
            self._log.failed(HangError(message))
        with suppress(Exception):
            self._stacks.write(own)
        with suppress(Exception):
            if own.collectives is not None and (record := flight_record()):
                self.files.flight_record(f"{own.rank}.json").write_text(record, encoding="utf-8")
        with suppress(OSError):
            self.files.heartbeat(own.rank).unlink()  # which says that all is written

    def _leave_at_last(self, own: Beat, found: Verdict | None = None) -> None:
        """Leave in `AT_LAST` seconds, whatever keeps the thread that should have; with the verdict `found`, if it could
        not be told, and with those that it is about."""

        def leave() -> None:
            time.sleep(AT_LAST)
            with suppress(Exception):
                self._stacks.write(own)  # which says what kept it
            if found is not None:
                telling = threading.Thread(target=self._tell, args=(found, f"{found.message}."), daemon=True)
                telling.start()
                telling.join(BEAT)
                self._kill_deaf()
            os._exit(HangError.exit_status)

        threading.Thread(target=leave, daemon=True).start()
