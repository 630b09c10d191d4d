"""What a launch does otherwise after one that hung: collectives are written down, so that the next hang tells more."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ..artifacts.run_directory import RunDirectory

DEBUG = "UNSLOTH_DEBUG_DISTRIBUTED"
"""Unsloth's own: it has torch's flight recorder keep and dump collectives, and NCCL tell what it does."""
_DUMPS = ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE")
"""Beginning of the name of the file into which torch's flight recorder dumps at NCCL's time-out; the second before
torch 2.8."""


def debugging(files: RunDirectory, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return variables for the ranks of a run in `files` whose last launch ended by a hang; empty where it didn't.

    One that the user has set stays.
    """
    if not files.hang.is_file():
        return {}
    dump = str(files.flight_record().resolve())
    return {name: value for name, value in ((DEBUG, "1"), *((name, dump) for name in _DUMPS)) if name not in environ}
