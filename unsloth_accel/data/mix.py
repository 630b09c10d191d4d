"""A run's rows to train on and to evaluate with: of one path or mixed of several, the first of them, a share held out.

The same rows come out on every rank and when a run is resumed: what is drawn is drawn by training.seed.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ..config.data_mix import MIX, UNTIL, WEIGHT, weights_of
from ..errors import ConfigError, Problem, counted, raise_errors
from .formats import form_in_words
from .rows import Rows, read_checked_rows, stream
from .sources import fingerprint

if TYPE_CHECKING:
    from ..config.run_config import DataConfig, RunConfig

TRAIN, HELD_OUT = "data.path", "data.eval_path"
"""The two parts of a run's rows, by the keys that name their paths."""
_MOST_REPEATED = 100
"""Most times that a mix may be as long as all its sources together."""


def all_sources(data: DataConfig) -> dict[str, DataConfig]:
    """Return the sources of all rows, by the keys that name their paths."""
    sources = {key: one for key, one in data.sources.items() if one.path}
    held_out = replace(data, path=data.eval_path or "", mix=[], max_rows=None, eval_fraction=None)
    return sources | ({HELD_OUT: held_out} if data.eval_path else {})


def run_rows(run: RunConfig, part: str = TRAIN, most: int | None = None, *, streaming: bool = False) -> Rows:
    """Return the rows of one part of a run (`most`: the first); raises `ConfigError` as `parts_of` does."""
    if part == HELD_OUT and run.data.eval_path:
        return _held_out_rows(run)
    return parts_of(run, most, streaming=streaming)[part]


def parts_of(run: RunConfig, most: int | None = None, *, streaming: bool = False) -> dict[str, Rows]:
    """Return the rows of `run`, checked, by their part; `most`: only the first to train on.

    Raises `ConfigError` as `read_checked_rows` does, for every source of a mix; and where sources can't be trained
    together, or a share of the rows leaves none on one side.
    """
    data, given = run.data, dict[str, Rows]()
    if data.eval_path:
        given[HELD_OUT] = _held_out_rows(run)
    # Which rows are held out depends on all of them; the first of a mix are among the first of its sources.
    limit = _least(data.max_rows, None if data.eval_fraction else most)
    if not data.mix and not data.eval_fraction:
        return given | {TRAIN: read_checked_rows(data.path, TRAIN, data, limit, streaming=streaming, method=run.method)}
    read = _read_sources(run, limit, streaming=streaming)
    order = _order(list(map(len, read.values())), data, _seed(run))[: data.max_rows]
    rows = Rows.joined(read.values())
    notes = [_shares_in_words(rows, order, data, whole=limit is None)] if data.mix else []
    if data.eval_fraction:
        held = _drawn([rows.texts[index] for index in order], data.eval_fraction, run)
        once = dict(zip(map(rows.texts.__getitem__, order), order, strict=True))
        given[HELD_OUT] = rows.selected([index for text, index in once.items() if text in held])
        order = [index for index in order if rows.texts[index] not in held]
        notes.append(f"{counted(len(held), 'row')} held out (data.eval_fraction={data.eval_fraction:g}).")
    found = Counter(map(rows.source, order[:most]))
    counts = {name: found[number] for number, name in enumerate(_labels(data))} if data.mix else {}
    return given | {TRAIN: rows.selected(order[:most], notes, counts)}


def run_stream(run: RunConfig) -> Iterator[str]:
    """Yield the training rows of `run` once, as text, none kept; raises `ConfigError` at the first bad one."""
    data, each = run.data, []
    for key, source in data.sources.items():
        rows = partial(stream, source.path, key, source, run.method)
        each.append(partial(_first, rows, source.max_rows))
    return itertools.islice(each[0]() if len(each) == 1 else _drawn_together(each, data, _seed(run)), data.max_rows)


def _by_their_rows(path: str) -> str:
    return f"rows with fingerprint {fingerprint(path)}"


def mix_facts(mix: Sequence[Mapping[str, Any]], named: Callable[[str], str] = _by_their_rows) -> list[dict[str, Any]]:
    """Return the sources of a mix, each with what `named` makes of its path, the fingerprint of its rows, and its share
    of all in the place of its weight: 7 and 3 draw what 0.7 and 0.3 do."""
    shares = [{WEIGHT: round(share, 12)} for share in weights_of(mix)] or [{}] * len(mix)
    return [{**one, "path": named(one["path"])} | share for one, share in zip(mix, shares, strict=True)]


def _held_out_rows(run: RunConfig) -> Rows:
    return read_checked_rows(run.data.eval_path or "", HELD_OUT, run.data, method=run.method)


def _least(*numbers: int | None) -> int | None:
    return min((one for one in numbers if one is not None), default=None)


def _seed(run: RunConfig) -> int:
    return int(run.training.get("seed", 42))


def _read_sources(run: RunConfig, limit: int | None, *, streaming: bool) -> dict[str, Rows]:
    """Return the first `limit` rows of each source, by its key; raises `ConfigError` where they don't fit together."""
    read: dict[str, Rows] = {}
    problems: list[Problem] = []
    for key, source in run.data.sources.items():
        most = _least(limit, source.max_rows)
        try:
            read[key] = read_checked_rows(source.path, key, source, most, streaming=streaming, method=run.method)
        except ConfigError as error:
            problems += error.problems
    forms = {key: form_in_words(next(iter(rows))) for key, rows in read.items()}
    first = next(iter(forms.items()), None)
    for key, form in forms.items():
        if first and form != first[1]:
            consequence = f"holds rows of {form}, and {first[0]} rows of {first[1]}: they can't be trained together."
            fix = f"rows of one form in all sources; {key.removesuffix('path')}format and columns say how they are read"
            problems.append(Problem(key=key, value=run.data.sources[key].path, consequence=consequence, fix=fix))
    raise_errors(problems)
    return read


def _order(counts: list[int], data: DataConfig, seed: int) -> list[int]:
    """Return which rows a mix has, as indices into its sources' rows one after another."""
    shares = weights_of(data.mix)
    if not shares:
        return list(range(sum(counts)))
    expected = max(count / share for count, share in zip(counts, shares, strict=True))
    if data.stopping_strategy == "all_exhausted" and expected > _MOST_REPEATED * sum(counts):
        consequence = f"would draw about {expected:,.0f} rows of {sum(counts):,} until every one has come."
        fix = "more even weights, or data.stopping_strategy=first_exhausted"
        raise ConfigError(Problem(key=MIX, consequence=consequence, fix=fix))
    from datasets import Dataset, interleave_datasets

    starts = itertools.accumulate(counts, initial=0)
    sets = [
        Dataset.from_dict({"row": range(start, start + count)}) for start, count in zip(starts, counts, strict=False)
    ]
    how: Any = data.stopping_strategy
    return list(interleave_datasets(sets, probabilities=shares, seed=seed, stopping_strategy=how)["row"])


def _labels(data: DataConfig) -> list[str]:
    """Return the path of each source, with its place in the mix where another one has the same."""
    paths = {key: source.path for key, source in data.sources.items()}
    several = Counter(paths.values())
    return [path if several[path] == 1 else f"{path} ({key.removesuffix('.path')})" for key, path in paths.items()]


def _shares_in_words(rows: Rows, order: Sequence[int], data: DataConfig, *, whole: bool) -> str:
    """Return how many rows of each source the mix has, and what share that is, as a sentence; where the sources were
    read `whole`, also how many there are."""
    found = Counter(map(rows.source, order))
    parts = []
    for number, (name, end) in enumerate(zip(_labels(data), [*rows.starts[1:], len(rows)], strict=True)):
        there = end - rows.starts[number]
        of = "" if found[number] == there or not whole else f" out of its {there:,}"
        parts.append(f"{name} {found[number] / len(order):.1%} ({counted(found[number], 'row')}{of})")
    return f"mixed of {', '.join(parts)}."


def _drawn(texts: list[str], fraction: float, run: RunConfig) -> set[str]:
    """Return a share of the rows, by their text: equal rows are never on both sides."""
    distinct = list(dict.fromkeys(texts))
    count = round(len(distinct) * fraction)
    if 0 < count < len(distinct):
        return set(random.Random(f"held out {_seed(run)}").sample(distinct, count))
    side = "no row to train on" if count else "none to evaluate on"
    consequence = f"of {counted(len(distinct), 'different row')} leaves {side}."
    least = 1 / len(distinct)
    most = f"{1 - least:.{len(str(len(distinct)))}f}".rstrip("0")  # which rounds to no more than all but one
    fix = f"from {least:.2g} to {most}, or more rows" if len(distinct) > 1 else "more rows"
    raise ConfigError(Problem(key="data.eval_fraction", value=fraction, consequence=consequence, fix=fix))


def _drawn_together(each: list[partial[Iterator[str]]], data: DataConfig, seed: int) -> Iterator[str]:
    """Yield the rows of streams in a mix's shares."""
    from datasets import IterableDataset, interleave_datasets

    shares: Any = weights_of(data.mix) or None
    sets = [IterableDataset.from_generator(_as_columns, gen_kwargs={"rows": rows}) for rows in each]
    how: Any = data.stopping_strategy
    for one in interleave_datasets(sets, probabilities=shares, seed=seed, stopping_strategy=how):
        yield str(one["row"])


def _as_columns(rows: partial[Iterator[str]]) -> Iterator[dict[str, str]]:
    return ({"row": text} for text in rows())


def _first(rows: partial[Iterator[str]], most: int | None) -> Iterator[str]:
    return itertools.islice(rows(), most)


def mix_warnings(data: DataConfig) -> list[Problem]:
    """Return a warning where weights look like shares of one and add up to something else, and where a mix without
    weights is told where to end."""
    weights = [one[WEIGHT] for one in data.mix if one.get(WEIGHT)]
    if not weights and data.stopping_strategy != UNTIL[0]:
        key, consequence = "data.stopping_strategy", "acts on a mix with weights only: every row is trained once."
        fix = f"remove it, or a weight for each source of {MIX}"
        return [Problem(key=key, value=data.stopping_strategy, consequence=consequence, fix=fix, severity="warning")]
    total = sum(weights)
    if not weights or max(weights) >= 1 or abs(total - 1) < 0.005:
        return []
    said = ", ".join(f"{share:.1%}" for share in weights_of(data.mix))
    consequence = f"weights add up to {total:g}, not to 1: they are taken as ratios, {said}."
    return [Problem(key=MIX, consequence=consequence, fix="nothing, if that is meant", severity="warning")]
