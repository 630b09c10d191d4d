"""Merging in a script: its ranks wait for the one that merges."""

from __future__ import annotations

from pathlib import Path

from ..artifacts.merge import plan_merge, write_merged
from .one_writer import once


def merge(
    source: str | Path,
    target: str | Path | None = None,
    *,
    base: str | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
) -> Path | None:
    """Merge a saved adapter into its 16-bit base, on the CPU, and write model and tokenizer to `target`; returns it.

    `source` is what `unsloth_accel.save` returned, or a run's directory; the rest is as in `unsloth-accel merge`. One
    rank merges. After `adapt` the others of its machine wait for it; else, and on other machines, they go on and get
    None. Raises `ConfigError` with all that would stop it, and `MergeError` where it failed.
    """

    def write() -> str:
        planned = plan_merge(source, target, base=base, dtype=dtype, overwrite=overwrite)
        write_merged(planned)
        return str(planned.target)

    done = once("merge", target or source, write)
    return None if done is None else Path(done)
