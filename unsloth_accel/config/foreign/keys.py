"""What becomes of one key of another tool's file: the kinds of entries that the records of tools are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ...errors import as_word
from ...methods import USUAL_METHOD, method_or_usual
from ..trainer_fields import accepts, training_fields, type_name

_T = TypeVar("_T")


@dataclass(frozen=True)
class Outcome:
    """What became of a key. With no settings and translated, there is nothing to write: it is so here anyway."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """Values for run.yaml by dotted key; None takes a key back."""
    note: str = ""
    """Difference, assumption, or, where it isn't translated, the reason and what to do."""
    translated: bool = True


@dataclass(frozen=True, kw_only=True)
class Theirs:
    """All of another tool's file, for entries that need more than their own key."""

    values: Mapping[str, Any]
    """Its keys, with the tool's defaults for those that it leaves out."""
    gpus: int | None = None
    """Number of GPUs that it was run on; None where nothing says it."""
    place: Path = Path()
    """Directory of the file."""
    method: str = USUAL_METHOD
    """Training method that it asks for, by the name that it has here."""

    @property
    def fields(self) -> Mapping[str, Any]:
        """The fields of that method's config, with their types; SFT's for a method that is not known here."""
        return training_fields(method_or_usual(self.method).config_sources)

    def number(self, key: str, default: float) -> float:
        """Return a key's value if it is a number, and `default` otherwise."""
        value = self.values.get(key)
        return default if isinstance(value, bool) or not isinstance(value, int | float) else value

    def has(self, *keys: str) -> bool:
        """Return whether the file gives one of `keys` a value."""
        return any(self.values.get(key) not in (None, "", False, [], {}) for key in keys)


class Entry(Protocol):
    """What a record says of one key."""

    def read(self, value: Any, theirs: Theirs) -> Outcome:
        """Return what becomes of the key with this value."""

    @property
    def here(self) -> str:
        """What it is here, in Markdown, for the table of docs/migrating.md."""


@dataclass(frozen=True)
class Becomes:
    """A key that has a counterpart here, and takes the same values."""

    key: str
    note: str = ""
    how: Callable[[Any], Any] | None = None
    """What its value becomes; raises `ValueError` where it becomes nothing."""
    otherwise: str = "has a value that is unknown here."
    """Reason where `how` raises."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Values that there is nothing for here, with the reason."""

    def read(self, value: Any, theirs: Theirs) -> Outcome:
        if isinstance(value, str) and value in self.refused:
            return Outcome(note=self.refused[value], translated=False)
        try:
            made = self.how(value) if self.how else value
        except ValueError:
            return Outcome(note=self.otherwise, translated=False)
        section, _, name = self.key.partition(".")
        kind = theirs.fields.get(name) if section == "training" else None
        if not accepts(kind, made) and not str(made).startswith("${"):
            return Outcome(note=f"is {type(made).__name__}, where {type_name(kind)} is needed.", translated=False)
        return Outcome({self.key: made}, self.note)

    @property
    def here(self) -> str:
        refused = f" not {', '.join(f'`{value}`' for value in self.refused)}" if self.refused else ""
        return "; ".join(part for part in (f"`{self.key}`", self.note, refused.strip()) if part)


@dataclass(frozen=True)
class Field:
    """A field of the trainer's config that releases of transformers name differently, the newest name last."""

    names: tuple[str, ...]
    note: str = ""
    how: Callable[[Any], Any] | None = None
    otherwise: str = "has a value that is unknown here."

    def read(self, value: Any, theirs: Theirs) -> Outcome:
        name = next((name for name in self.names if name in theirs.fields), self.names[-1])
        return Becomes(f"training.{name}", self.note, self.how, self.otherwise).read(value, theirs)

    @property
    def here(self) -> str:
        names = " or ".join(f"`training.{name}`" for name in self.names)
        return f"{names}{self.note and '; '}{self.note}"


@dataclass(frozen=True)
class Chooses:
    """A key whose every value means something else here."""

    values: Mapping[Any, Mapping[str, Any]]
    """Settings by value; empty where there is nothing to write."""
    otherwise: str
    """Reason why any other value isn't translated."""
    note: str = ""

    def read(self, value: Any, theirs: Theirs) -> Outcome:
        for known, settings in self.values.items():
            if known == value and isinstance(known, bool) == isinstance(value, bool):
                return Outcome(settings, self.note)
        return Outcome(note=self.otherwise, translated=False)

    @property
    def here(self) -> str:
        words: dict[str, list[str]] = {}
        for value, settings in self.values.items():
            made = ", ".join(f"`{key}: {as_word(one)}`" for key, one in settings.items()) or "nothing to write"
            words.setdefault(made, []).append(f"`{as_word(value)}`")
        parts = [f"{', '.join(values)}: {made}" for made, values in words.items()]
        return "; ".join([*parts, *([self.note] if self.note else []), f"otherwise: {self.otherwise}"])


@dataclass(frozen=True)
class Covered:
    """A key that needs no counterpart: what it asks for is so here, or it changes nothing that is trained."""

    note: str
    said: str = ""
    """What it is here, where that is another key's."""

    def read(self, value: Any, theirs: Theirs) -> Outcome:
        return Outcome(note=self.note)

    @property
    def here(self) -> str:
        return self.said or f"nothing to write: {self.note}"


@dataclass(frozen=True)
class Untranslated:
    """A key that there is nothing for, with the reason; `off` are the values with which it asks for nothing."""

    reason: str
    off: tuple[Any, ...] = (False,)

    def read(self, value: Any, theirs: Theirs) -> Outcome:
        if any(value == off and isinstance(value, bool) == isinstance(off, bool) for off in self.off):
            return Outcome(note="off, as here")
        return Outcome(note=self.reason, translated=False)

    @property
    def here(self) -> str:
        return f"not translated: {self.reason}"


@dataclass(frozen=True)
class Computed:
    """A key whose meaning depends on others of the file."""

    of: Callable[[Any, Theirs], Outcome]
    here: str

    def read(self, value: Any, theirs: Theirs) -> Outcome:
        return self.of(value, theirs)


def alike(keys: str, entry: _T) -> dict[str, _T]:
    """Return the one entry of several keys, which stand in `keys` with spaces between."""
    return dict.fromkeys(keys.split(), entry)


@dataclass(frozen=True, kw_only=True)
class Tool:
    """One tool's record: how its files are known, and what each of their keys becomes."""

    name: str
    link: str
    """Its page, for docs/migrating.md."""
    needs: frozenset[str]
    """Keys of which a file of this tool has at least one …"""
    marks: frozenset[str]
    """… and at least one of these."""
    keys: Mapping[str, Entry]
    families: Mapping[str, Entry] = field(default_factory=dict)
    """Entries of keys that begin alike, by their beginning, for those that have none of their own."""
    fields: bool = False
    """Whether it also takes every field of transformers' TrainingArguments, which have the same names in `training`."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Values that it takes for keys that a file leaves out, where they differ from those here."""
    method: Callable[[Mapping[str, Any]], str] = lambda values: USUAL_METHOD
    """Returns the method that a file of its asks for, by the name that it has here."""
    trains: bool = True
    """Whether its files describe a training; an accelerate config only says how one is launched."""

    def entry(self, key: str) -> Entry | None:
        """Return the entry of a key, its own or its family's."""
        family = next((entry for start, entry in self.families.items() if key.startswith(start)), None)
        return self.keys.get(key, family)

    def recognises(self, keys: set[str]) -> bool:
        return bool(self.needs & keys and self.marks & keys)
