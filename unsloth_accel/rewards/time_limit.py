"""A time limit for a call in the main thread, and for a coroutine."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import signal
import threading
from collections.abc import Callable, Coroutine
from typing import Any

AGAIN = 0.2
"""Seconds from one interruption to the next, where a call goes on after it."""


class TooSlow(BaseException):
    """A call took longer than it may. No `Exception`, so that a function that catches all of them ends as well."""


def at_most(seconds: float, call: Callable[[], Any]) -> Any:
    """Return what `call` gives; raises `TooSlow` in it once it has taken so many seconds, also while it sleeps or waits
    for a server.

    It works by SIGALRM, as math-verify's own limits do, inside which each interruption takes effect as theirs: what
    they guard ends a fifth of a second later, one after the other. In another thread than the main one, which alone
    gets signals, there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        return call()
    over, late, thread = threading.Event(), threading.Event(), threading.main_thread().ident or 0

    def interrupt(number: int, frame: Any) -> None:
        if not over.is_set():
            raise TooSlow

    def ring() -> None:
        wait = seconds
        while not over.wait(wait):
            late.set()
            signal.pthread_kill(thread, signal.SIGALRM)
            wait = AGAIN

    clock = threading.Thread(target=ring, name="reward time limit", daemon=True)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        try:
            clock.start()
            found = call()
        finally:
            over.set()
    finally:  # again, where the interruption came between the end of the call and the line above
        over.set()
        clock.join()
        signal.signal(signal.SIGALRM, before or signal.SIG_DFL)
    if late.is_set():  # the interruptions were caught inside
        raise TooSlow
    return found


def awaited(coroutine: Coroutine[Any, Any, Any], seconds: float) -> Any:
    """Return what `coroutine` gives, run in a loop of its own thread, in which what it opens stays open for the next
    one; raises `TooSlow`, and cancels it, after so many seconds."""
    future = asyncio.run_coroutine_threadsafe(coroutine, _loop())
    try:
        return future.result(seconds)
    except concurrent.futures.TimeoutError:
        if future.done():  # its own
            raise
        future.cancel()
        raise TooSlow from None


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="rewards", daemon=True).start()
    return loop
