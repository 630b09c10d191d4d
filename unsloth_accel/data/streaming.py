"""Training rows that are read as they are needed, the same ones in the same step on any number of processes.

Each process reads all of them and Accelerate's IterableDatasetShard gives it its part of each batch. That holds for one
shard only: of several files Accelerate would give each process its own, which are other rows per step than one process
sees. So the stream is one generator. It begins again where it ends, since a last batch that is shorter on some
processes would leave the others waiting; training.max_steps ends the run.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..capabilities.probe import available
from ..errors import ConfigError, Problem
from ..methods import METHODS
from .mix import run_rows, run_stream
from .preference_rows import as_row, columns_of, unpaired
from .tokenise import Recipe, Tokenise, notes_on

if TYPE_CHECKING:
    from datasets import IterableDataset

    from ..config.run_config import RunConfig

BUFFER = 1_000
"""Rows in the shuffle buffer, the only ones held in memory."""
_BATCH = 32
"""Rows tokenised at once."""


def streamed(run: RunConfig, tokenizer: Any) -> tuple[IterableDataset, tuple[str, ...]]:
    """An endless set of tokenised rows, shuffled within a buffer by the run's seed, and notes on its first rows.

    Rows with nothing to learn are left out, and longer ones cut or left out, as the run says.
    """
    from datasets import Features, IterableDataset, Sequence, Value

    first = run_rows(run, most=BUFFER, streaming=True)
    # Whether there are messages that are not to be trained shows only at the end.
    recipe = Recipe.of(run, first.kind, weighted=first.kind == "messages")
    tokenise = Tokenise(tokenizer, recipe)
    if recipe.by_trl:
        features = columns_of(first.widest())
    else:
        columns = ["input_ids", "labels"] if recipe.labels else ["input_ids"]
        features = Features({column: Sequence(Value("int64")) for column in columns})
    dataset = IterableDataset.from_generator(partial(_rows, run, tokenise, [*features]), features=features)
    if recipe.compares:
        dataset = unpaired(dataset, METHODS[run.method], run.training.get("seed", 42))
    elif available("rows that Unsloth need not cut"):
        dataset._unsloth_truncated_to = recipe.limit
    return dataset, tuple(f"of the first {len(first):,} rows: {note}" for note in notes_on(first, tokenizer))


def _rows(run: RunConfig, tokenise: Tokenise, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of every pass over the data, one after another: their tokens, or what is tokenised by TRL."""
    training = run.training
    chance = random.Random(training.get("data_seed") or training.get("seed", 42))
    while True:
        some = False
        rows = _shuffled(run_stream(run), chance)
        while batch := list(islice(rows, _BATCH)):
            made = tokenise(batch)
            for index, length in enumerate(made["length"]):
                fits = not tokenise.recipe.drop or length <= tokenise.recipe.limit
                if fits and made["trained"][index]:
                    some = True
                    tokens = {column: made[column][index] for column in columns if column in made}
                    yield tokens or as_row(batch[index], columns)
        if not some:
            consequence = "no row is left to train on: none has a token to learn within the limit."
            fix = "look at `unsloth-accel preview RUN.yaml`; a larger model.max_seq_length, or data.train_on=all"
            raise ConfigError(Problem(key="data.path", value=run.data.names, consequence=consequence, fix=fix))


def _shuffled(rows: Iterator[str], chance: random.Random) -> Iterator[str]:
    """Yield every row once, drawn from a buffer at random."""
    held = list(islice(rows, BUFFER))
    for row in rows:
        index = chance.randrange(len(held))
        drawn, held[index] = held[index], row
        yield drawn
    chance.shuffle(held)
    yield from held
