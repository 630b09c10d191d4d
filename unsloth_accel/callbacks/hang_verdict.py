"""Who hangs: what the heartbeats of all ranks say, judged without looking at anything else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .heartbeat import Beat

LEAST = 60.0
"""Least limit in seconds that is chosen where none is asked for."""
SLOWEST = 3.0
"""How many of the slowest steps so far a step may take."""
EARLY = 0.75
"""Share of the limit at which there is a word: who looks learns of it within a minute."""
LEFT = 20.0
"""Seconds after which a rank whose process has ended wasn't seen to fail: torchrun would have ended the others."""
LONG = 10.0
"""How many limits a part that isn't in every step may take, without a sign of work."""
SHOWN = 3
"""Most ranks whose places are named."""

Process = Literal["", "gone", "stopped", "traced", "busy", "quiet", "elsewhere"]
"""What this machine says of a silent rank's process: nothing was asked, it has ended, SIGSTOP, a debugger's stop, it
takes a processor's time, it takes none; or it is on another machine."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A rank as another one sees it."""

    beat: Beat
    silent: float = 0.0
    """Seconds since its last beat, by the reader's clock."""
    process: Process = ""
    ended: float = 0.0
    """Seconds since its process was first seen to have ended."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    action: Literal["nothing", "word", "end"] = "nothing"
    ranks: tuple[int, ...] = ()
    """Those that hang, or give no sign."""
    message: str = ""
    """Sentence without its full stop: which ranks, since when, where, and what the others wait in."""


NOTHING = Verdict()


def limit_of(seen: Sequence[Seen], hang_after: float | None) -> float:
    """The seconds after which a rank hangs: those asked for, or three of the slowest step, at least a minute."""
    return hang_after or max([LEAST, *(SLOWEST * one.beat.slowest for one in seen)])


def verdict(seen: Sequence[Seen], world: int, hang_after: float | None = None) -> Verdict:
    """Judge the heartbeats of those of `world` ranks that have one.

    A rank whose heart stands still hangs: at the limit where its process is stopped, or takes no processor's time in a
    part of every step. Otherwise all must be without progress. To blame are those that don't wait for others; of these
    the ones that have come least far. Where all wait, and in different places, it is a deadlock. Whatever may take long
    by itself (a first step with its compiling, loading, data, saving, evaluation, callbacks) gets ten limits, is left
    alone as long as it takes a processor's time, and isn't ended as long as it transfers anything. Where a rank isn't
    seen, on another machine or at its end, nobody knows who waits for whom: there is a word only, as there is for all
    at `EARLY` of the limit. A process that has ended is torchrun's to tell, which takes one that left with status 0 for
    finished: the others would wait for it.
    """
    limit = limit_of(seen, hang_after)
    found = _judged(seen, world, limit, early=False)
    return _judged(seen, world, EARLY * limit, early=True) if found.action == "nothing" else found


def _judged(seen: Sequence[Seen], world: int, limit: float, *, early: bool) -> Verdict:
    gone = [one for one in seen if one.process == "gone"]
    if gone:
        return _of_gone(gone, seen)
    silent = [one for one in seen if one.silent >= limit]
    if silent:
        return _of_silent(silent, seen, limit, early)
    alive = sorted((one.beat for one in seen), key=lambda beat: beat.rank)
    if not alive or any(beat.idle < limit for beat in alive):
        return NOTHING
    to_blame = _least_far([beat for beat in alive if not beat.waits])
    missing = sorted({*range(world)} - {beat.rank for beat in alive})
    if not to_blame and not missing:
        return _of_waiting(alive, limit, early)
    if any(beat.paused or (beat.working and not beat.strict) for beat in to_blame):
        return NOTHING
    since = min(beat.idle for beat in to_blame or alive)
    if missing:
        what = f"no heartbeat of {named(missing)} is to be seen, and others have made no progress for {since:.0f} s"
        return _said(False, alive, what, alive, ranks=tuple(missing))
    certain = not early and (
        all(beat.still >= limit for beat in to_blame)
        if all(beat.strict for beat in to_blame)
        else since >= LONG * limit and not any(beat.transferring for beat in to_blame)
    )
    places = {f"in {beat.place}" for beat in to_blame} if len(to_blame) == 1 else set()
    what = _sentence(certain, to_blame, f"no progress for {since:.0f} s", *places)
    others = [beat for beat in alive if beat not in to_blame or not places]
    return _said(certain, to_blame, what, others)


def _of_gone(gone: Sequence[Seen], seen: Sequence[Seen]) -> Verdict:
    # One that has trained and is in no phase has come to its end: a script's ranks needn't end together.
    left = [one.beat for one in gone if one.ended >= LEFT and (one.beat.phase or not one.beat.steps)]
    if not left:
        return NOTHING
    steps, others = f"after step {left[0].step}", [one.beat for one in seen if one.process != "gone"]
    what = f"{named([beat.rank for beat in left])} left {steps}, before the end and without an error"
    return _said(True, left, what, others)


def _of_silent(silent: Sequence[Seen], seen: Sequence[Seen], limit: float, early: bool) -> Verdict:
    sure = [one for one in silent if _is_dead(one, limit)]
    found = [one.beat for one in sure or silent]
    states = {
        "stopped": "stopped (SIGSTOP)",
        "traced": "held by a debugger",
        "busy": "no heartbeat, though its process computes,",
        "quiet": "no heartbeat, and its process does nothing,",
    }
    first = (sure or silent)[0]
    since = min(one.silent for one in sure or silent)
    state = f"{states.get(first.process, 'no heartbeat')} for {since:.0f} s"
    where = (f"last seen in {first.beat.place}",) if len(found) == 1 and first.beat.place else ()
    others = [one.beat for one in seen if one.beat not in found]
    certain = bool(sure) and not early
    made = _said(certain, found, _sentence(certain, found, state, *where), others)
    working = not sure and all(one.process == "busy" and not one.beat.strict for one in silent)
    return NOTHING if working else made


def _is_dead(one: Seen, limit: float) -> bool:
    if one.process == "stopped":
        return True
    if one.process == "quiet":
        return one.silent >= (limit if one.beat.strict else LONG * limit)
    return one.process in ("", "elsewhere") and one.silent >= LONG * limit


def _least_far(beats: Sequence[Beat]) -> list[Beat]:
    """Return those of `beats` with the least progress: by events, then by the collectives that they have begun."""
    found = [beat for beat in beats if beat.events == min(one.events for one in beats)]
    begun = [beat.collectives for beat in found if beat.collectives is not None]
    return [beat for beat in found if beat.collectives == min(begun)] if len(begun) == len(found) and found else found


def _of_waiting(alive: Sequence[Beat], limit: float, early: bool) -> Verdict:
    """Every rank waits for another."""
    since = min(beat.idle for beat in alive)
    if any(beat.still < limit for beat in alive):
        return NOTHING
    same = len({beat.place for beat in alive}) == 1 and len({beat.events for beat in alive}) == 1
    certain = not same or all(beat.strict for beat in alive) or since >= LONG * limit
    # Paused: by a lock that another run may have.
    certain = certain and not early and not any(beat.paused for beat in alive)
    kind = "the same collective doesn't end" if same else "they wait for each other (a deadlock)"
    what = _sentence(certain, alive, f"no progress for {since:.0f} s: {kind}")
    return _said(certain, alive, what, alive)


def _sentence(certain: bool, beats: Sequence[Beat], *parts: str) -> str:
    steps = sorted({beat.step for beat in beats})
    phase = f"in phase {beats[0].phase}" if beats[0].phase else "at its start"
    after = f"after step {steps[0]}" if steps[-1] else phase
    state, *more = parts
    hangs = f"hang{'s' * (len(beats) == 1)}" if certain else "may hang"
    return f"{named([beat.rank for beat in beats])} {hangs}: {', '.join([state, after, *more])}"


def _said(
    certain: bool, to_blame: Sequence[Beat], what: str, others: Sequence[Beat], *, ranks: tuple[int, ...] = ()
) -> Verdict:
    places = [f"rank {beat.rank} is in {beat.place}" for beat in others if beat.place]
    more = f" and {len(places) - SHOWN} more ranks somewhere" if len(places) > SHOWN else ""
    told = f"{what}; {', '.join(places[:SHOWN])}{more}" if places else what
    found = ranks or tuple(beat.rank for beat in to_blame)
    return Verdict(action="end" if certain else "word", ranks=found, message=told)


def named(ranks: Sequence[int]) -> str:
    """Return `rank 1`, `ranks 0, 1 and 2`, or of many the first."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if len(ranks) > 2 * SHOWN:
        return f"ranks {', '.join(map(str, ranks[:SHOWN]))} and {len(ranks) - SHOWN} more"
    return f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"
