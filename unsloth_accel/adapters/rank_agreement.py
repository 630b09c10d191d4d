"""All ranks train the same thing: compared before the first step, since ranks that differ hang, or train in silence.

A rank with other rows or another learning rate looks healthy: DDP averages whatever it gets. One with another number of
steps, or another model, waits for ever in a collective that its peers never reach.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..errors import counted, shortened
from ..hardware.ranks import of_every_rank
from .rank_checks import GuardError

if TYPE_CHECKING:
    from transformers import Trainer

SAMPLED = 4096
"""Rows of a data set that are compared, evenly spread; each costs about 20 µs."""
COMPUTED = ("ref_chosen_logps", "ref_rejected_logps", "ref_logps", "ref_KL_logps")
"""Columns that the reference computed beforehand (trl/trainer/dpo_trainer.py and kto_trainer.py:
`_precompute_ref_logps`): anew at each launch, so that another number of processes rounds them otherwise."""
_OWN = {
    *("output_dir", "logging_dir", "run_name", "report_to", "hub_model_id", "hub_token", "push_to_hub"),
    *("local_rank", "disable_tqdm", "log_level", "log_level_replica", "dataloader_num_workers", "dataset_num_proc"),
    *("logging_first_step", "trackio_space_id", "project", "resume_from_checkpoint"),
}
"""Training arguments that may differ between ranks: where and how each reports, and how it reads its rows."""


class _Unknown:
    def __repr__(self) -> str:
        return "unknown"


UNKNOWN = _Unknown()
"""A fact that a rank can't tell: neither it nor those whose names begin with its name are compared."""


def check_same(facts: Mapping[str, Any], what: str = "") -> None:
    """Raise `GuardError` on every rank unless `facts` are the same on all; `what` names where they come from.

    Every rank must call it.
    """
    everyone: list[dict[str, str]] = of_every_rank({key: repr(value) for key, value in facts.items()})
    first = everyone[0]
    untold = tuple(key for other in everyone for key, text in other.items() if text == repr(UNKNOWN))
    wrong = [
        f"{key} is {shortened(theirs, 100)} on rank {rank} and {shortened(ours, 100)} on rank 0"
        for rank, other in enumerate(everyone)
        for key in sorted(first.keys() | other.keys())
        if not key.startswith(untold)
        if (ours := first.get(key, "nothing")) != (theirs := other.get(key, "nothing"))
    ]
    if not wrong:
        return
    more = f", and {len(wrong) - 5} more" if len(wrong) > 5 else ""
    raise GuardError(
        f"the ranks would not train the same run: {'; '.join(wrong[:5])}{more}. Fix: give every rank the same "
        f"{what or 'data and configuration'}, and on several machines the same files.",
        on_every_rank=True,
    )


def facts_of(trainer: Trainer) -> dict[str, Any]:
    """Return what every rank of `trainer` must share: its rows, its training arguments, its model's parameters."""
    facts = {f"training argument {key}": value for key, value in _plain(trainer.args.to_dict()).items()}
    rows = {"train_dataset": rows_of(trainer.train_dataset), "eval_dataset": rows_of(trainer.eval_dataset)}
    facts |= {name: known for name, known in rows.items() if known is not None}
    named = [(name, tuple(p.shape), p.requires_grad) for name, p in trainer.model.named_parameters()]
    facts["number of trainable parameters"] = sum(1 for *_, trains in named if trains)
    facts["model (names and shapes of parameters)"] = _digest(repr(named))
    return facts


def rows_of(dataset: Any) -> str | None:
    """Return the number of rows in a data set and their fingerprint, without what was computed of them; None where
    reading would change it (streams)."""
    if dataset is None or not hasattr(dataset, "__len__"):
        return None
    count = len(dataset)
    if not hasattr(dataset, "with_format") or not count:  # another kind may draw its rows at random
        return counted(count, "row")
    chosen = sorted({index * (count - 1) // max(1, min(SAMPLED, count) - 1) for index in range(min(SAMPLED, count))})
    rows = dataset.with_format(None).select(chosen)
    if computed := [name for name in COMPUTED if name in (getattr(rows, "column_names", None) or ())]:
        rows = rows.remove_columns(computed)
    return f"{counted(count, 'row')} (fingerprint {_digest(*(repr(row) for row in rows))})"


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of `values` that can be compared between processes: numbers, texts, lists and mappings of them."""
    found = {}
    for key in values.keys() - _OWN:
        with suppress(TypeError, ValueError):
            found[key] = json.loads(json.dumps(values[key], sort_keys=True))
    return found


def _digest(*texts: str) -> str:
    return hashlib.sha256("".join(texts).encode("utf-8", "surrogatepass")).hexdigest()[:16]
