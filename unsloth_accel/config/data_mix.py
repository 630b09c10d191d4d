"""data.mix: several sources of training rows, with the share of each."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from ..errors import nearest
from .rewards_config import Wrong
from .row_formats import FORMATS

MIX, WEIGHT = "data.mix", "weight"
OWN = ("path", "split", "subset", "format", "columns", "max_rows")
"""Keys of a source that say of its rows what the same keys of `data` say of all."""
UNTIL = ("first_exhausted", "all_exhausted")
"""Where a mix with weights ends, by the names of `datasets.interleave_datasets`."""
LEAST_SHARE = 1e-12
"""Share of a source below which none of its rows would come, and with which facts of a mix are told."""
_TEXTS = ("path", "split", "subset", "format")


def read_mix(given: Any) -> tuple[list[dict[str, Any]], list[Wrong]]:
    """Return the sources that `given`, the value of data.mix, describes, or what is wrong with them."""
    if OmegaConf.is_config(given):
        given = OmegaConf.to_container(given, resolve=True)
    if given is None:
        return [], []
    if not isinstance(given, Sequence) or isinstance(given, str):
        fix = "data.mix: [{path: a.jsonl, weight: 0.7}, {path: owner/name, weight: 0.3}]"
        return [], [(MIX, given, "wrong type: a list of sources is needed.", fix)]
    sources = [{"path": one} if isinstance(one, str) else one for one in given]
    wrong = [found for place, one in enumerate(sources) for found in _wrong(f"{MIX}.{place}", one)]
    if not wrong:
        wrong = [*_without_weight(sources)] or [*_without_share(sources)]
    if wrong:
        return [], wrong
    return [{**one, "path": os.path.expanduser(one["path"])} for one in sources], []


def weights_of(mix: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return the share of each source, which add up to 1; empty where none has a weight."""
    weights = [float(one.get(WEIGHT) or 0) for one in mix]
    _, exponent = math.frexp(max(weights, default=0.0))  # by which no sum is beyond a float, and no digit another
    weights = [math.ldexp(weight, -exponent) for weight in weights]
    total = sum(weights)
    return [weight / total for weight in weights] if total else []


def _wrong(key: str, source: Any) -> Iterator[Wrong]:
    form = "write a path, or {path: …, weight: …}"
    if not isinstance(source, Mapping):
        yield key, source, "wrong type: a source is a path, or a mapping.", form
        return
    known = (*OWN, WEIGHT)
    for name in source:
        if name not in known:
            yield f"{key}.{name}", None, "unknown key.", nearest(str(name), known, f"{key}."), "run-unknown-key"
    for name in _TEXTS:
        value = source.get(name)
        if name == "path" and not value:
            yield f"{key}.path", value, "is missing: which rows are meant?", form
        elif value is not None and not isinstance(value, str):
            yield f"{key}.{name}", value, "wrong type: text is needed.", "give text"
        elif name == "format" and value is not None and value not in FORMATS:
            yield f"{key}.{name}", value, "unknown value.", f"use one of: {', '.join(FORMATS)}."
    columns, rows, weight = source.get("columns"), source.get("max_rows"), source.get(WEIGHT)
    if columns is not None and not (isinstance(columns, Mapping) and all(isinstance(v, str) for v in columns.values())):
        yield f"{key}.columns", columns, "wrong type: a mapping of names is needed.", "such as {messages: my_column}"
    if rows is not None and (type(rows) is not int or rows < 1):
        yield f"{key}.max_rows", rows, "must be a whole number of at least 1.", "remove it, or give 1 or more"
    if weight is None:
        return
    if isinstance(weight, bool) or not isinstance(weight, int | float) or weight != weight:
        yield f"{key}.{WEIGHT}", weight, "wrong type: a finite number is needed.", "such as 0.7"
    elif weight <= 0:
        consequence = "must be more than 0: no row of this source would be trained."
        yield f"{key}.{WEIGHT}", weight, consequence, "remove the source, or give more than 0"
    elif weight > sys.float_info.max:
        yield f"{key}.{WEIGHT}", weight, "is beyond what could be weighed against others.", "such as 0.7"


def _without_share(sources: Sequence[Mapping[str, Any]]) -> Iterator[Wrong]:
    """Yield each source whose weight is nothing beside the others'."""
    for place, share in enumerate(weights_of(sources)):
        if share < LEAST_SHARE:
            consequence = f"is a share of {share:.0e}: no row of this source would be trained."
            yield f"{MIX}.{place}.{WEIGHT}", sources[place][WEIGHT], consequence, "remove the source, or give more"


def _without_weight(sources: Sequence[Mapping[str, Any]]) -> Iterator[Wrong]:
    """Yield each source that has no weight while others have one."""
    if any(one.get(WEIGHT) is not None for one in sources):
        for place, one in enumerate(sources):
            if one.get(WEIGHT) is None:
                consequence = "has no weight, and other sources have one: nobody knows its share."
                yield f"{MIX}.{place}", one["path"], consequence, "a weight for each source, or for none"
