"""Rows for the trainer: tokenised once per machine, by the first of its processes to get there; the others read them.

They lie in the cache of `datasets`, under a name made of everything that decides what they are, so that other runs of
the same rows find them too. A lock on a file keeps the others waiting, and not a barrier: it has no timeout that a
large data set could outlast, and a process that fails releases it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import warnings
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..capabilities.probe import available
from ..config.data_mix import weights_of
from ..errors import ConfigError, Problem, counted
from ..files import why_unwritten
from ..methods import METHODS
from .mix import HELD_OUT, TRAIN, all_sources, run_rows
from .preference_rows import as_row, columns_of, unpaired
from .rows import Rows, no_step
from .sources import cache_directory, fingerprint, locate
from .stored_rows import stored
from .tokenise import Recipe, Tokenise, fingerprint_of, notes_on

if TYPE_CHECKING:
    from datasets import Dataset

    from ..config.run_config import RunConfig

VERSION = 6
"""Version of the prepared rows; rows that were cached under another version are not read."""
ROW = "row"
"""Column of rows as text, before they are tokenised."""
LARGE = 5_000
"""Rows from which on several processes are quicker than one; Unsloth's own number."""


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """What became of the rows of one split."""

    rows: int
    """Number of rows read."""
    cut: int = 0
    dropped: int = 0
    """Number of rows dropped: longer than the limit, or with nothing left to learn."""
    trained: int = 0
    """Number of rows that are trained, before they are packed."""
    tokens: int = 0
    trained_tokens: int | None = 0
    """None where the model writes what is trained."""
    sources: dict[str, int] = field(default_factory=dict)
    """Number of rows from each source of a mix."""
    notes: tuple[str, ...] = ()
    """Sentences on the figures, with row numbers."""

    def figures(self) -> dict[str, Any]:
        """Return the figures without the sentences, and without those that there are not."""
        return {name: value for name, value in asdict(self).items() if name != "notes" and value not in ({}, None)}


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What the trainer gets: `train` and `held_out`, both with `input_ids` and, where tokens are left out, `labels`; of
    answers that are compared the text or messages, which TRL's trainers tokenise."""

    train: Any
    train_directory: Path | None = None
    """Directory of the prepared rows; None for a stream."""
    held_out: Any = None
    held_out_directory: Path | None = None
    report: dict[str, Any]
    """Figures for results.json."""
    notes: tuple[str, ...] = ()
    """Sentences to print once."""


def prepare(run: RunConfig, tokenizer: Any) -> Prepared:
    """The rows of `run`, ready for the trainer; every process calls it, and one per machine does the work.

    `tokenizer` has the run's chat template already (`choose_template`).

    Raises `ConfigError`, the same on every process, for bad rows and where nothing is left to learn.
    """
    held_out = _split(run, tokenizer, HELD_OUT) if run.data.holds_out else None
    if run.data.streaming:
        from .streaming import streamed

        rows, notes = streamed(run, tokenizer)
        made = Prepared(train=rows, report={"streaming": True}, notes=notes)
    else:
        train, found, directory = _split(run, tokenizer, TRAIN)
        notes = (*found.notes, *_batch_notes(run, len(train)))
        made = Prepared(train=train, train_directory=directory, report=found.figures(), notes=notes)
    if held_out is None:
        return made
    rows, found, directory = held_out
    notes = (*made.notes, *(f"held out: {note}" for note in found.notes))
    report = made.report | {"eval": found.figures()}
    return replace(made, held_out=rows, held_out_directory=directory, report=report, notes=notes)


def _batch_notes(run: RunConfig, count: int) -> tuple[str, ...]:
    """What a set smaller than one global batch means; raises `ConfigError` where there would be no step at all."""
    size = run.batch.rows(run.model.max_seq_length)
    if not size or count >= size or METHODS[run.method].generates:  # whose batch is of completions (training.grpo)
        return ()
    if run.training.get("dataloader_drop_last"):
        raise ConfigError(no_step(count, size))
    few = f"{counted(count, 'row')} to train {'is' if count == 1 else 'are'} fewer than batch.global_size={size}"
    return (f"{few}: every step is an epoch of {counted(count, 'row')}.",)


def _split(run: RunConfig, tokenizer: Any, key: str) -> tuple[Dataset, DataReport, Path]:
    """Return the prepared rows of a part of `run`, the one of `key`."""
    path = run.data.eval_path if key == HELD_OUT and run.data.eval_path else run.data.names
    name, told = _name(run, tokenizer, key), []
    make = functools.cache(partial(_make, run, tokenizer, path, key, name))
    # The cache of `datasets`, or the run's own directory where that can't be written.
    for cache in (cache_directory(), Path(run.output_dir, "data")):
        try:
            dataset, values = stored(cache / name, make)
            break
        except OSError as error:
            reason, fix = why_unwritten(error, cache)
            print(f"data: tokenised rows can't be kept in {cache}: {reason}", flush=True)
            told.append(f"in {cache}: {reason} ({fix})")
    else:
        consequence = f"tokenised rows can't be kept {'; '.join(told)}."
        fix = "do that, or set HF_DATASETS_CACHE to a directory with room that you may write"
        raise ConfigError(Problem(key=key, value=path, consequence=consequence, fix=fix))
    report = DataReport(**values | {"notes": tuple(values["notes"])})
    if (
        "input_ids" in dataset.column_names
        and not run.training.get("packing")
        and available("rows that Unsloth need not cut")
    ):
        # Says to Unsloth that no row is longer, without which it would turn padding-free batches off
        # (unsloth/models/rl.py, `_unsloth_attests`).
        dataset._unsloth_truncated_to = run.model.max_seq_length
    return dataset, report, cache / name


def _name(run: RunConfig, tokenizer: Any, key: str) -> str:
    """Return the name of the prepared rows: a digest of everything that decides what they are."""
    packages = [distributions(name=package) for package in ("trl", "transformers", "tokenizers", "unsloth_zoo")]
    versions = [next((one.version for one in installed), "") for installed in packages]
    data, own = run.data, key == HELD_OUT and bool(run.data.eval_path)  # otherwise a part of the same rows
    drawn = [key, weights_of(data.mix), data.stopping_strategy, data.max_rows, data.eval_fraction]
    sources = {one: found for one, found in all_sources(data).items() if (one == HELD_OUT) == own}
    said: list[Any] = [VERSION, versions, drawn]
    for place, source in sources.items():
        hub = ""
        if locate(source.path, place).hub:
            from .hub import load

            available("what the Hub's rows are known by")
            hub = load(source.path, place, source)._fingerprint  # the files', where the name may have got new ones
        said += [fingerprint(source.path), hub, source.format, dict(source.columns), source.subset, source.split]
        said += [source.eval_split, source.max_rows]
    said += [dict(data.chat_template_kwargs), data.train_on, data.too_long]
    said += [fingerprint_of(tokenizer, Recipe.of(run, "messages"))]
    said += [run.training.get("shuffle_dataset"), run.training.get("seed"), run.method]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]


def _make(run: RunConfig, tokenizer: Any, path: str, key: str, name: str) -> tuple[Dataset, dict[str, Any]]:
    """Return the prepared rows, which get this `name`, and their report."""
    from datasets import Dataset, Features, Value

    rows = run_rows(run, key)
    recipe = Recipe.of(run, rows.kind, weighted=bool(rows.weighted))
    tokenise = Tokenise(tokenizer, recipe)
    print(f"tokenising {counted(len(rows), 'row')} of {path}", flush=True)
    raw = Dataset.from_dict({ROW: rows.texts}, features=Features({ROW: Value("large_string")}))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*couldn't be hashed properly.*")
        tokens = raw.map(
            tokenise,
            batched=True,
            input_columns=ROW,
            remove_columns=ROW,
            num_proc=_processes(run, len(raw)),
            # What can't be pickled alike has a name of chance in each process; this one is never looked up.
            new_fingerprint=name,
            load_from_cache_file=False,
            cache_file_name=None,
            desc="Tokenising",
        )
    kept, report = _examine(tokens, rows, recipe, key)
    report = replace(report, notes=(*notes_on(rows, tokenizer), *report.notes))
    if recipe.by_trl:
        made = _compared(run, rows, kept)
    else:
        made = tokens if len(kept) == len(tokens) else tokens.select(kept)
        made = made.remove_columns(["length", "tokens", "trained"])
    if run.training.get("shuffle_dataset"):
        made = made.shuffle(seed=run.training.get("seed", 42))
    return made, asdict(report) | {"trained": len(made)}


def _compared(run: RunConfig, rows: Rows, kept: list[int]) -> Any:
    """Return those of the rows that are kept, for a trainer that tokenises them."""
    from datasets import Dataset

    columns = columns_of(rows.widest())
    made = [as_row(rows.texts[index], columns) for index in kept]
    given = Dataset.from_dict({name: [row[name] for row in made] for name in columns}, features=columns)
    return unpaired(given, METHODS[run.method], run.training.get("seed", 42))


def _processes(run: RunConfig, count: int) -> int | None:
    """Processes to tokenise with: Unsloth's own rule, by cores and free memory."""
    asked = run.training.get("dataset_num_proc")
    if (asked is None and count < LARGE) or not available("processes to tokenise with"):
        return asked
    from unsloth_zoo.dataset_num_proc import get_dataset_num_proc

    found: int | None = get_dataset_num_proc(asked)
    return found


def _examine(tokens: Dataset, rows: Rows, recipe: Recipe, key: str) -> tuple[list[int], DataReport]:
    """The rows that stay, by index, and the report. Raises `ConfigError` where none stays."""
    lengths, computed, trained = (list(tokens[name]) for name in ("length", "tokens", "trained"))
    long = [index for index, length in enumerate(lengths) if length > recipe.limit]
    gone = set(long) if recipe.drop else set()
    empty = [index for index, count in enumerate(trained) if not count and index not in gone]
    kept = [index for index in range(len(lengths)) if index not in gone and trained[index]]
    cut = [index for index in long if trained[index]] if recipe.cut else []
    notes = []
    if recipe.drop and long:
        notes.append(f"{_count(long)} longer than {recipe.limit} tokens dropped: {rows.places(long)}.")
    if cut:
        end = "beginning" if recipe.keep == "keep_end" else "end"
        notes.append(f"{_count(cut)} longer than {recipe.limit} tokens cut at the {end}: {rows.places(cut)}.")
    if empty:
        late = sum(lengths[index] > recipe.limit for index in empty)
        why = f" ({late} cut before the response begins)" if late else ""
        notes.append(f"{_count(empty)} with nothing to learn dropped{why}: {rows.places(empty)}.")
    if not kept:
        raise ConfigError(_nothing_left(lengths, recipe, len(empty), key))
    return kept, DataReport(
        rows=len(lengths),
        cut=len(cut),
        dropped=len(lengths) - len(kept),
        tokens=sum(computed[index] for index in kept),
        trained_tokens=None if recipe.prompts else sum(trained[index] for index in kept),
        sources=rows.sources,
        notes=tuple(notes),
    )


def _count(indices: list[int]) -> str:
    return counted(len(indices), "row")


def _nothing_left(lengths: list[int], recipe: Recipe, empty: int, key: str) -> Problem:
    longer = sum(length > recipe.limit for length in lengths)
    if longer * 2 >= len(lengths):
        consequence = (
            f"no row is left to train on: {longer:,} of {len(lengths):,} are longer than model.max_seq_length="
            f"{recipe.limit} (the median has {sorted(lengths)[len(lengths) // 2]:,} tokens)"
            + (", and what is kept of them holds no response." if empty else ".")
        )
        return Problem(key=key, consequence=consequence, fix=f"model.max_seq_length={max(lengths)}, or shorter rows")
    why = "in none of them the markers of a response were found" if recipe.responses else "none has more than one token"
    consequence = f"no row is left to train on: {why}."
    return Problem(key=key, consequence=consequence, fix="look at `unsloth-accel preview RUN.yaml`; data.train_on=all")


def check_collator(trainer: Any) -> None:
    """Raise `ConfigError` where the trainer's collator would train tokens that the rows' labels leave out."""
    row = next(iter(trainer.train_dataset))
    labels = row.get("labels")
    if labels is None:
        return
    made = trainer.data_collator([row])["labels"].flatten().tolist()[: len(labels)]
    if [label != -100 for label in made[1:]] == [label != -100 for label in labels[1:]]:
        return
    consequence = "the installed TRL does not heed labels that rows bring along: it would train on every token."
    raise ConfigError(Problem(key="data.train_on", consequence=consequence, fix="pip install --upgrade trl unsloth"))
