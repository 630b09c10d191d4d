"""Logging for scripts that run on every rank: lines of rank 0, or of each with its number."""

from __future__ import annotations

import logging
from typing import Any

from ..adapters import environment

_ONCE: set[str] = set()


class DDPLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger of which rank 0 alone is heard; `all_ranks=True` in a call lets each say it, with its number."""

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        return msg, kwargs

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        everyone = kwargs.pop("all_ranks", False)
        if not everyone and environment.rank() != 0:
            return
        said = f"[rank {environment.rank()}] {msg}" if everyone else msg
        kwargs.setdefault("stacklevel", 2)
        super().log(level, said, *args, **kwargs)


def get_ddp_logger(name: str = "unsloth_accel") -> DDPLogger:
    """Return the logger `name` as one of which rank 0 alone is heard."""
    return DDPLogger(logging.getLogger(name), {})


def get_rank() -> int:
    """Return this process's rank among all; 0 outside a launch."""
    return environment.rank()


def get_local_rank() -> int:
    """Return this process's rank on its machine; 0 outside a launch."""
    return environment.local_rank()


def is_main_process() -> bool:
    """Return whether this is rank 0."""
    return environment.rank() == 0


def info_rank0(logger: logging.Logger, message: str, *values: Any) -> None:
    """Log at INFO, on rank 0."""
    DDPLogger(logger, {}).info(message, *values)


def warning_rank0(logger: logging.Logger, message: str, *values: Any) -> None:
    """Log at WARNING, on rank 0."""
    DDPLogger(logger, {}).warning(message, *values)


def warning_rank0_once(logger: logging.Logger, message: str, *values: Any) -> None:
    """Log at WARNING, on rank 0, and the same message not again."""
    if message not in _ONCE:
        _ONCE.add(message)
        DDPLogger(logger, {}).warning(message, *values)


def error_rank0(logger: logging.Logger, message: str, *values: Any) -> None:
    """Log at ERROR, on rank 0."""
    DDPLogger(logger, {}).error(message, *values)


def debug_rank0(logger: logging.Logger, message: str, *values: Any) -> None:
    """Log at DEBUG, on rank 0."""
    DDPLogger(logger, {}).debug(message, *values)


def info_all_ranks(logger: logging.Logger, message: str, *values: Any) -> None:
    """Log at INFO, on every rank, with its number."""
    DDPLogger(logger, {}).info(message, *values, all_ranks=True)
