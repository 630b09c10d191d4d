"""What the ranks' loaders draw and make of it, compared: each rank takes its part of one order of one data set.

A rank that was seeded otherwise (`set_seed(rank)` after the Trainer was made), or whose sampler, batches or collator
are others, looks healthy: gradients are averaged all the same. But some rows are trained several times and others
never, or on other labels. The order is compared as it is drawn, so no row is drawn ahead and no generator is touched.
Labels are compared by what each rank's collator makes of the same few rows.

Left alone, since ranks may differ there by right: streams, whose rows can't be read twice; loaders of which rank 0
reads for all (`dispatch_batches`); and those that a script shares out itself.
"""

from __future__ import annotations

import copy
import hashlib
import random
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from ..capabilities.probe import available
from ..hardware.ranks import of_every_rank
from .random_numbers import random_numbers_kept
from .rank_agreement import UNKNOWN
from .rank_checks import GuardError

PROBED = 4
"""Rows of a data set that are collated to be compared."""
_PROBE = "what the collator makes of rows"


class Drawn:
    """A sampler that notes what is drawn from it, in place of `source`, which has all other attributes."""

    def __init__(self, source: Any) -> None:
        self.source = source
        self.begun = 0
        """Passes over the data that were begun."""
        self.marks: list[str] = []
        """Digest of the pass before at its end, or nothing if it was broken off; then those of this pass after 1, 2,
        4, … draws, and at its end. So those of two ranks begin alike, if one has drawn further."""
        self._ended = False

    def __iter__(self) -> Iterator[Any]:
        self.begun += 1
        self.marks = marks = [self.marks[-1] if self._ended else ""]
        self._ended = False
        digest, count = hashlib.sha256(), 0
        for count, drawn in enumerate(self.source, 1):
            digest.update(_described(drawn).encode())
            if count & (count - 1) == 0:
                marks.append(digest.hexdigest()[:16])
            yield drawn
        marks.append(f"{count} draws {digest.hexdigest()[:16]}")
        self._ended = True

    def __len__(self) -> int:
        return len(self.source)

    def __getattr__(self, name: str) -> Any:
        if name == "source":  # while it is being copied
            raise AttributeError(name)
        return getattr(self.source, name)


def watch(loader: Any) -> Drawn | None:
    """Note what the prepared `loader` draws from now on, before it is shared out; None where nothing is to be compared.

    Once is enough; it returns the same again.
    """
    place = _shared_out(loader)
    if place is None:
        return None
    share, name = place
    source = getattr(share, name)
    if not isinstance(source, Drawn):
        source = Drawn(source)
        setattr(share, name, source)
    return source


def check_drawn(drawn: Mapping[int, Drawn]) -> None:
    """Raise `GuardError` on every rank unless all have drawn the same from each of `drawn`, as far as they have got.

    Every rank must call it.
    """
    everyone: list[dict[int, tuple[int, list[str]]]] = of_every_rank(
        {number: (one.begun, one.marks) for number, one in drawn.items()}
    )
    wrong = [str(rank) for rank, other in enumerate(everyone) if _differ(everyone[0], other)]
    if wrong:
        ranks = f"rank {wrong[0]} draws" if len(wrong) == 1 else f"ranks {', '.join(wrong)} draw"
        raise GuardError(
            f"{ranks} the rows of this epoch in another order than rank 0: each rank takes its part of one order, so "
            "some rows would be trained several times and others never. Fix: seed every rank alike until training "
            "starts (no set_seed(rank)), or give the order a seed of its own (data_seed in the training arguments, or "
            "in accelerate's DataLoaderConfiguration with use_seedable_sampler); a sampler that this misses must "
            "draw the same on every rank by itself (your own; group_by_length, which dropout on a CPU puts out of "
            "step: leave one of the two out).",
            on_every_rank=True,
        )


def facts_of(loader: Any) -> dict[str, Any]:
    """Return what `loader` must have in common with those of the other ranks; nothing where they may differ.

    Its rows are read and collated here, a few of them twice; random generators are as they were afterwards.
    """
    place = _shared_out(loader)
    if place is None:
        return {}
    share, name = place
    source = getattr(share, name)
    facts: dict[str, Any] = {"rows per batch": getattr(share, "batch_size", None)}
    if hasattr(source, "__len__"):
        facts["length of the order"] = _or_kind_of_error(lambda: len(source))
    return facts | _probe(loader)


def _shared_out(loader: Any) -> tuple[Any, str] | None:
    """Return what gives this rank its part of an order that all ranks draw, and the name of that order in it."""
    from accelerate.data_loader import BatchSamplerShard

    from .token_balance import TokenBatches

    for share in (getattr(loader, "batch_sampler", None), getattr(loader, "sampler", None)):
        # Told of one process where what is inside shares out itself (transformers' batch_rebalance).
        if isinstance(share, BatchSamplerShard | TokenBatches) and share.num_processes > 1:
            if isinstance(share, TokenBatches):
                return share, "sampler"
            return (share, "batch_sampler") if _accelerate_is_known() else None
    return None


@cache
def _accelerate_is_known() -> bool:
    return available("the order that ranks draw")


def _differ(first: Mapping[int, tuple[int, list[str]]], other: Mapping[int, tuple[int, list[str]]]) -> bool:
    return any(
        first[number][0] == other[number][0]
        and any(a and b and a != b for a, b in zip(first[number][1], other[number][1], strict=False))
        for number in first.keys() & other.keys()
    )


def _probe(loader: Any) -> dict[str, Any]:
    """Return what the collator makes of a few rows, by the names in its batch; `UNKNOWN` where it draws at random."""
    dataset, count = loader.dataset, _or_kind_of_error(lambda: len(loader.dataset))
    # A data set that opens its file with its first row must do so in each worker, not before they are forked.
    in_workers = loader.num_workers > 0 and not hasattr(getattr(dataset, "rows", dataset), "with_format")
    if in_workers or not isinstance(count, int) or not count:
        return {_PROBE: UNKNOWN}
    rows = sorted({place * (count - 1) // (PROBED - 1) for place in range(PROBED)})
    what = f"{_PROBE} {', '.join(map(str, rows))}"
    twice = [_or_kind_of_error(lambda: _collated(loader, rows)) for _ in range(2)]
    first, second = ({what: made} if isinstance(made, str) else made for made in twice)
    return {
        what if name == what else f"{what}: {name}": first[name] if first[name] == second.get(name) else UNKNOWN
        for name in first
    }


def collated(loader: Any, rows: list[int]) -> Any:
    """Return the batch that `loader` would make of `rows`, on the CPU."""
    dataset = loader.dataset
    several = getattr(dataset, "__getitems__", None)
    if loader.batch_sampler is None:
        found = dataset[rows]
    else:
        found = several(rows) if several is not None else [dataset[row] for row in rows]
    return loader.collate_fn(copy.deepcopy(found))  # some take out of a row what they use


def _collated(loader: Any, rows: list[int]) -> dict[str, str]:
    """Return the batch that `loader` would make of `rows`, described by its names, with the same random numbers on
    every rank."""
    import numpy
    import torch

    with random_numbers_kept():  # of the CPU, on which a collator works
        random.seed(0)
        numpy.random.seed(0)
        torch.default_generator.manual_seed(0)
        batch = collated(loader, rows)
    named = batch if isinstance(batch, Mapping) else {"batch": batch}
    return {str(name): _kind(value) for name, value in named.items()}


def _kind(value: Any) -> str:
    """Return type and shape of a part of a batch, and its fingerprint."""
    kind = f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}" if hasattr(value, "shape") else ""
    digest = hashlib.sha256(_described(value).encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{kind or type(value).__name__}, fingerprint {digest}"


def _described(value: Any) -> str:
    """Return `value` as text that is the same in every process that has the same.

    Of arrays of floats it is their shape, since processors differ in how they round; of other objects their type.
    """
    if isinstance(value, bool | int | str | bytes | None):
        return repr(value)
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {_described(one)}' for name, one in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_described, value))}]"
    if hasattr(value, "shape") and hasattr(value, "dtype"):  # of torch and of numpy
        exact = any(word in str(value.dtype) for word in ("int", "bool"))
        return f"{value.dtype} {tuple(value.shape)} {_digest(value) if exact else ''}"
    return f"{value:.6g}" if isinstance(value, float) else type(value).__name__


def _digest(array: Any) -> str:
    import numpy

    numbers = numpy.ascontiguousarray(array.cpu() if hasattr(array, "cpu") else array)
    return hashlib.sha256(numbers.tobytes()).hexdigest()


def _or_kind_of_error(make: Any) -> Any:
    """Return what `make` returns, or the kind of its error: whatever fails here will fail, and be told, in training."""
    try:
        return make()
    except Exception as error:
        return type(error).__name__
