"""Registry: the records of one kind by name, to which code outside the package can add its own."""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, Generic, Protocol, TypeVar

from .errors import ConfigError, Problem, first_line, nearest

PLUGINS = "UNSLOTH_ACCEL_PLUGINS"
"""Environment variable: modules, separated by commas, that add records; imported when one is first looked for, where
Python finds modules, and last in the working directory. Launched processes inherit it."""


class Named(Protocol):
    @property
    def name(self) -> str: ...


Record = TypeVar("Record", bound=Named)


class Registry(Generic[Record]):
    """Records by name, in the order in which they were added."""

    def __init__(self, key: str, records: Iterable[Record]) -> None:
        """Hold `records`; `key` is the config key that takes a name of this kind, for errors."""
        self.key = key
        self.added: list[str] = []
        """The names of records from outside."""
        self._records = {record.name: record for record in records}

    def add(self, record: Record) -> None:
        """Add `record`, in the place of one of the same name."""
        self._records[record.name] = record
        self.added.append(record.name)

    def get(self, name: object) -> Record | None:
        """Return the record of that name; None where there is none, or `name` is not a name."""
        return self._all().get(name) if isinstance(name, str) else None

    def __getitem__(self, name: str) -> Record:
        """Raises `ConfigError` with the names that there are."""
        found = self.get(name)
        if found is None:
            fix = nearest(str(name), self._all())
            raise ConfigError(Problem(key=self.key, value=name, consequence="unknown value.", fix=fix))
        return found

    def __contains__(self, name: object) -> bool:
        return self.get(name) is not None

    def __iter__(self) -> Iterator[Record]:
        return iter(tuple(self._all().values()))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._all())

    def _all(self) -> dict[str, Record]:
        _import_plugins()
        return self._records


_imported: set[str] = set()


def _import_plugins() -> None:
    names = [part.strip() for part in os.environ.get(PLUGINS, "").split(",") if part.strip()]
    if names and "" not in sys.path:  # last, so that nothing there takes another module's place
        sys.path.append("")
    for name in names:
        if name in _imported:
            continue
        _imported.add(name)  # before it is imported, since it asks for the registry itself
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a module of the user's does wrong
            _imported.discard(name)
            consequence = f"{type(error).__name__}: {first_line(error)}: what it would add is unknown."
            fix = f"fix it, put it where Python finds it (PYTHONPATH), or take it out of {PLUGINS}"
            raise ConfigError(Problem(key=PLUGINS, value=name, consequence=consequence, fix=fix)) from None


@functools.cache
def imported(path: str) -> Any:
    """Import and return the object that a record names as `package.module.name`, as it is when it is first asked for:
    on a CPU some of Unsloth's modules put its trainers in the place of TRL's when they are imported, late."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)
