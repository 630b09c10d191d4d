"""Trials with signals: to a rank, to the launcher, to what it was started from."""

from __future__ import annotations

from dataclasses import replace
from signal import Signals

from . import actions
from .trial import SAVE, STEPS, Strike, Trial, one, some_step

KILL, TERM, STOP, SEGV, ABRT = (Signals[f"SIG{name}"] for name in ("KILL", "TERM", "STOP", "SEGV", "ABRT"))
INT, HUP, QUIT = (Signals[f"SIG{name}"] for name in ("INT", "HUP", "QUIT"))
ORPHANED = r"\bend of its launcher|launcher\b.*\b(gone|ended|killed|died)"
HANGS = r"rank {} (may hang|hangs)"
OF_RANKS = (
    *((KILL, rank, "step", "") for rank in (0, 1)),
    *((TERM, rank, "step", "") for rank in (0, 1)),
    *((STOP, rank, "step", "") for rank in (0, 1)),
    *((SEGV, 1, "step", ""), (ABRT, 0, "step", ""), (KILL, 1, "step", "-first-step")),
    *((KILL, 0, "loading", "-loading"), (KILL, 1, "tokenising", "-tokenising")),
    *((KILL, 0, "half of optimizer.pt", "-in-checkpoint"), (KILL, 1, "half of rng_state_1.pth", "-in-checkpoint")),
    *((KILL, 0, "record", "-before-record"), (STOP, 1, "checkpoint", "-in-checkpoint")),
    *((KILL, 1, "evaluating", "-evaluating"), (STOP, 1, "evaluating", "-evaluating")),
    *((KILL, 0, "adapter", "-saving"), (STOP, 1, "adapter", "-saving")),
)
OF_LAUNCHERS = (
    *((number, "step", "") for number in (KILL, TERM, INT, HUP, QUIT)),
    *((number, "loading", "-loading") for number in (KILL, TERM)),
    *((number, "half of optimizer.pt", "-in-checkpoint") for number in (KILL, TERM)),
)


def ranks(seed: int) -> list[Trial]:
    """One rank gets a signal."""
    found = []
    for number, rank, at, suffix in OF_RANKS:
        name = f"rank{rank}-{number.name.lower()}{suffix}"
        step = None if at in ("loading", "tokenising", "adapter") else 2 * SAVE
        if at == "step":
            step = 1 if suffix else some_step(seed, name)
        says = HANGS.format(rank) if number == STOP else rf"rank {rank}\b.*{number.name}|{number.name}.*rank {rank}\b"
        strike = Strike(at=at, rank=rank, step=step, do=actions.rank(number))
        statuses = () if number == STOP else (128 + number,)
        facts = {"fault": number.name, "who": f"rank {rank}", "says": says, "statuses": statuses}
        found.append(one(name, strike, saves=number == TERM, **facts))
    first, then = some_step(seed, "rank-twice", 5, 7), some_step(seed, "rank-twice", 9, 13)
    strikes = [Strike(at="step", rank=rank, step=step, do=actions.rank(KILL)) for rank, step in ((0, first), (1, then))]
    return [*found, _twice(next(trial for trial in found if trial.fault == "SIGKILL"), "rank-sigkill-twice", strikes)]


def launchers(seed: int) -> list[Trial]:
    """The launcher gets a signal, or loses its terminal or its shell."""
    found = []
    for number, at, suffix in OF_LAUNCHERS:
        name = f"launcher-{number.name.lower()}{suffix}"
        step = some_step(seed, name) if at == "step" else 2 * SAVE if suffix == "-in-checkpoint" else None
        strike = Strike(at=at, step=step, do=actions.launcher(number))
        found.append(
            one(
                name,
                strike,
                fault=number.name,
                who="launcher",
                says=ORPHANED if number == KILL else number.name,
                statuses=(-KILL,) if number == KILL else (128 + number,),
                saves=at == "step",
            )
        )
    by_name = {trial.name: trial for trial in found}
    for name in ("launcher-sigkill", "launcher-sigterm"):
        number = Signals[name.removeprefix("launcher-").upper()]
        steps = (some_step(seed, name, 5, 7), some_step(seed, name, 9, STEPS - 3))
        strikes = [Strike(at="step", step=step, do=actions.launcher(number)) for step in steps]
        found.append(_twice(by_name[name], f"{name}-twice", strikes))
    return found + outside(seed)


def outside(seed: int) -> list[Trial]:
    """What the launch was started from goes."""
    at = Strike(at="step", step=some_step(seed, "outside"))
    closed, hangup, killed = (replace(at, do=do) for do in (actions.terminal, actions.everybody(HUP), actions.parent))
    told = {"says": "SIGHUP|launcher.*gone", "statuses": (128 + HUP, -HUP), "saves": True}
    term = {"says": "SIGTERM", "statuses": (128 + TERM,), "saves": True}
    interrupt = {"says": "SIGINT", "statuses": (128 + INT,)}
    every, again = (replace(at, do=do) for do in (actions.everybody(TERM), actions.impatient(INT)))
    return [
        one("everybody-sigterm", every, fault="SIGTERM", who="launcher and ranks", **term),
        one("launcher-sigint-again", again, fault="SIGINT, and again at once", who="launcher", **interrupt),
        one("terminal-closed", closed, fault="terminal closed", who="launch", start="terminal", **told),
        one("nohup-sighup", hangup, fault="SIGHUP under nohup", who="launch", start="nohup", goes_on=True),
        # Nobody is left to ask for the launcher's exit status; bash's own is the signal's.
        one("parent-killed", killed, fault="SIGKILL", who="shell", start="shell", goes_on=True, statuses=(-KILL,)),
    ]


def _twice(trial: Trial, name: str, strikes: list[Strike]) -> Trial:
    says = r"rank \d\b.*SIGKILL" if trial.who.startswith("rank") else trial.says
    who = "ranks 0, 1" if trial.who.startswith("rank") else trial.who
    launches = tuple((strike,) for strike in strikes)
    return replace(trial, name=name, fault=f"{trial.fault}, twice", who=who, launches=launches, says=says)
