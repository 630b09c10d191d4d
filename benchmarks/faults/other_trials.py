"""Trials with full and read-only disks, damaged checkpoints, shared directories, and ranks that go wrong themselves."""

from __future__ import annotations

from typing import Any

from unsloth_accel.artifacts.checkpoints import RECORD, STATE
from unsloth_accel.config.start_adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS

from . import actions
from .signal_trials import KILL, ORPHANED
from .trial import FULL_DISK, SAVE, Strike, Trial, one, some_step

MIB = 64
"""Size of the small disks; a run of the tiny model leaves 3 MiB."""
DAMAGED = r"(checkpoint-12|{name})\b.*(damaged|cut short|missing|bytes|broken|not whole|of step)"
RESUME, OVERWRITE = ("training.resume=true",), ("training.overwrite=true",)


def disks(seed: int) -> list[Trial]:
    """The disk is full at one kind of write, with 4096 bytes left where that lets it begin."""
    facts: dict[str, Any] = {"fault": "disk full", "says": FULL_DISK, "disk_mib": MIB}
    full, nearly = actions.fill(), actions.fill(4096)
    step = some_step(seed, "full-logs", 5, 7)
    to_the_end = {**facts, "elsewhere": True}
    found = [
        one("full-start", Strike(at="start", do=full), who="description", **facts),
        one("full-logs", Strike(at="step", step=step, do=full), who="logs, to the end", **to_the_end),
        one("full-weights", Strike(at="checkpoint", step=8, do=nearly), who="checkpoint, to the end", **to_the_end),
        one("full-adapter", Strike(at="adapter", do=nearly), who="adapter", **to_the_end),
        one("full-report", Strike(at="after saving", do=full), who="results and report", goes_on=True, **facts),
        Trial(
            name="full-token-cache",
            launches=((Strike(at="tokenising", do=full),),),
            who="token cache",
            on_disk="HF_DATASETS_CACHE",
            goes_on=True,
            **facts,
        ),
    ]
    # A file's last page has room for some lines more: 40 steps fill it, with no checkpoint among them.
    settings = {"training": {"max_steps": 48, "save_steps": 48}}
    awhile = (Strike(at="step", step=step, do=full), Strike(at="step", step=45, do=actions.free))
    name, who = "full-logs-for-a-while", "logs for a while"
    found.append(Trial(name=name, launches=(awhile,), who=who, goes_on=True, settings=settings, **facts))
    moments = {
        "full-weights-once": ("checkpoint", "after checkpoint", 8, 8, 0),
        "full-optimizer-once": ("before optimizer.pt", "after checkpoint", 8, 8, 0),
        "full-random-state-once": ("before rng_state_1.pth", "after checkpoint", 8, 8, 1),
        "full-record-once": ("record", "after checkpoint", 8, 8, 0),
    }
    for name, (begin, end, first, last, rank) in moments.items():
        strikes = (
            Strike(at=begin, step=first, rank=rank, do=full),
            Strike(at=end, step=last, rank=rank, do=actions.free),
        )
        who = name.removeprefix("full-").replace("-", " ")
        found.append(Trial(name=name, launches=(strikes,), who=who, goes_on=True, **facts))
    return found


def directories(seed: int) -> list[Trial]:
    """Something is the matter with output_dir."""
    says = {"says": r"read-only file system|can't be (made or )?written"}
    small = {"fault": "read-only", "disk_mib": MIB, **says}
    step = some_step(seed, "read-only", 5, 7)
    busy = Strike(at="step", step=step, do=actions.second)
    killed = Strike(at="step", step=some_step(seed, "overwrite"), do=actions.launcher(KILL))
    full = Strike(at="start", do=actions.fill())
    prior: dict[str, Any] = {"prior": "finished", "who": "finished run", "disk_mib": MIB, "overrides": OVERWRITE}
    prior |= {"says": f"{ORPHANED}|{FULL_DISK}"}
    return [
        one("read-only-start", Strike(at="start", do=actions.read_only), who="output_dir", **small),
        one("read-only", Strike(at="step", step=step, do=actions.read_only), who="output_dir", elsewhere=True, **small),
        one("two-launches", busy, fault="a second launch", who="output_dir", goes_on=True),
        one("overwrite-killed", killed, fault="SIGKILL while overwriting", **prior),
        one("overwrite-full", full, fault="disk full while overwriting", **prior),
        Trial(
            name="overwrite-killed-then-full",
            fault="SIGKILL, then disk full, while overwriting",
            launches=((killed,), (Strike(at="step", step=step, do=actions.fill()),)),
            **prior,
        ),
    ]


def damaged(seed: int) -> list[Trial]:
    """A file of the newest checkpoint is cut somewhere before the run goes on."""
    names = [ADAPTER_WEIGHTS, ADAPTER_CONFIG, "optimizer.pt", "scheduler.pt", STATE, RECORD]
    names += ["rng_state_0.pth", "rng_state_1.pth", "training_args.bin", "tokenizer.json"]
    return [
        one(
            f"cut-{name.partition('.')[0].replace('_', '-')}",
            Strike(at="start", do=actions.truncate(name)),
            fault="cut short",
            who=name,
            says=DAMAGED.format(name=name),
            goes_on=True,
            prior="killed",
            overrides=RESUME,
        )
        for name in names
    ]


def wrong_ranks(seed: int) -> list[Trial]:
    """Rank 1 does something else than rank 0."""
    cases = {
        "raises": ("an exception", r"rank 1\b.*injected in step"),
        "leaves": ("leaves with status 0", r"rank 1\b.*(left|ended|exit)"),
        "nan": ("NaN in a gradient", r"\bnan\b|not finite|diverg"),
        "drift": ("a weight moved", r"differ|not the same|in step"),
    }
    found = []
    for name, (fault, says) in cases.items():
        strike = Strike(at="step", rank=1, step=some_step(seed, name), inside=name)
        settings = {"logging": {"rank_sync_steps": SAVE}} if name == "drift" else {}
        found.append(one(f"rank1-{name}", strike, fault=fault, who="rank 1", says=says, settings=settings))
    for name, fault in (("rows", "other rows"), ("rate", "another learning rate")):
        strike = Strike(at="built", rank=1, inside=name)
        found.append(
            one(f"rank1-other-{name}", strike, fault=fault, who="rank 1", says=r"would not train the same|differ")
        )
    step = some_step(seed, "out-of-memory")
    strike = Strike(at="step", rank=1, step=step, inside="out of memory")
    facts: dict[str, Any] = {"who": "rank 1", "says": "out of memory", "goes_on": True, "exact": False}
    return [*found, one("rank1-out-of-memory", strike, fault="out of memory", **facts)]
