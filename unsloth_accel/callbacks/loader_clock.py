"""Clock of the time that training waits for its loader."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..capabilities.probe import available


class LoaderClock:
    """Sums the seconds that this process spends in `next()` of torch's loaders, between `start` and `stop`.

    Measured at the loader itself: the Trainer fetches a step's rows in one go and then meets the other ranks to count
    their tokens, so that a rank with fast rows would take its wait for a slow one for its own loading. On a GPU, too,
    these are seconds in which it has little to do, since the Trainer looks at every loss before it goes on.
    `fetched` is called after every `next()`.
    """

    def __init__(self, fetched: Callable[[], None] | None = None) -> None:
        self.seconds = 0.0
        self._fetched = fetched
        self._plain: Any = None

    def start(self) -> None:
        if self._plain is not None or not available("the wait for the loader"):
            return
        from torch.utils.data.dataloader import _BaseDataLoaderIter

        # Of the class: a resumed run, and each epoch, makes iterators and loaders of its own.
        self._plain = plain = _BaseDataLoaderIter.__next__

        def timed(iterator: Any) -> Any:
            started = time.perf_counter()
            try:
                return plain(iterator)
            finally:
                self.seconds += time.perf_counter() - started
                if self._fetched is not None:
                    self._fetched()

        _BaseDataLoaderIter.__next__ = timed

    def stop(self) -> None:
        if self._plain is not None:
            from torch.utils.data.dataloader import _BaseDataLoaderIter

            _BaseDataLoaderIter.__next__ = self._plain
            self._plain = None

    def take(self) -> float:
        """Return the seconds since the last call."""
        taken, self.seconds = self.seconds, 0.0
        return taken
