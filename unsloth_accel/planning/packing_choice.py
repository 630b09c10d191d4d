"""The choice to pack rows, and what rows shorter than the limit mean for a step."""

from __future__ import annotations

from dataclasses import replace

from ..config.run_config import RunConfig
from ..data.length_estimate import RowLengths
from ..methods import METHODS

SHORT = 0.5
"""Mean length over model.max_seq_length below which rows count as short: packing then at least halves the work."""


def with_packing(run: RunConfig, device: str, lengths: RowLengths | None, reasons: list[str]) -> RunConfig:
    """Return `run` with `training.packing` decided if it is unset, and add the reason to `reasons`.

    Packed, several rows fill one of `max_seq_length` (TRL's `packing`, kept apart by Unsloth's attention). A step of
    `batch.global_size` rows would then hold several times as many of the data set's: only a batch in tokens
    (`batch.global_tokens`) keeps its promise so, and better. On a CPU Unsloth packs nothing, a stream can't be
    packed, and trainers of preferences have no packing.
    """
    if device == "cpu" or not METHODS[run.method].packs or run.data.streaming or "packing" in run.training:
        return run
    limit = run.model.max_seq_length
    if lengths is None or lengths.mean >= SHORT * limit:
        return run
    share = lengths.mean / limit
    percent = f"{share:.0%}" if share >= 0.01 else "less than 1%"
    if run.batch.global_tokens:
        rows = run.batch.global_tokens // limit
        reasons.append(
            f"training.packing=true: rows have {lengths}, {percent} of model.max_seq_length. Unpacked {rows} of them "
            f"make a step of {rows * lengths.mean:,.0f} tokens; packed it has the {run.batch.global_tokens:,} of "
            f"batch.global_tokens, and an epoch about 1/{1 / share:.1f} of the steps."
        )
        return replace(run, training=run.training | {"packing": True})
    reasons.append(
        "not packed: batch.global_size promises rows, and packing would change what is in a step. Rows have "
        f"{lengths}, {percent} of model.max_seq_length; laid end to end without padding a step takes "
        f"{percent} of a full one's time. batch.global_tokens instead gives steps of full, packed rows."
    )
    return run
