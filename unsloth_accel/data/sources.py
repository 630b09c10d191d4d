"""Where rows come from: files here, or a data set on the hub; found without reading them."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..errors import ConfigError, Problem
from ..models.locate import may_be_hub_id

KINDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
"""How a file is read, by the end of its name; another end is taken for JSON Lines."""
_NO_ROWS = ("dataset_info.json", "state.json", "dataset_dict.json")
"""What `datasets.Dataset.save_to_disk` leaves beside the rows."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Files of one kind in reading order, or `hub`, the id of a data set there."""

    kind: str
    files: tuple[Path, ...] = ()
    hub: str = ""


def kind_of_file(path: Path) -> str:
    return KINDS.get(path.suffix.lower(), "jsonl")


def locate(path: str | Path, key: str = "data.path") -> Source:
    """What `path` names: a file, a directory of files, a glob, or a hub id; raises `ConfigError` where it is nothing.

    A path that exists is never taken for a hub id. Directories are searched to any depth, in the order of names.
    """
    text = str(path)
    try:
        os.stat(text)
    except FileNotFoundError:
        return _absent(text, key)
    except (OSError, ValueError) as error:
        raise _error(key, text, f"{getattr(error, 'strerror', error)}.", "name a readable file of rows") from None
    if not os.path.isdir(text):
        return Source(kind=kind_of_file(Path(text)), files=(Path(text),))
    found = [file for file in sorted(Path(text).rglob("*")) if _holds_rows(file, Path(text))]
    if not found:
        ends = ", ".join(KINDS)
        raise _error(key, text, f"holds no file of rows ({ends}).", "name a directory that does, or a file")
    return _of_one_kind(found, key, text)


def _absent(text: str, key: str) -> Source:
    if any(sign in text for sign in "*?["):
        found = [Path(name) for name in sorted(glob.glob(text, recursive=True)) if Path(name).is_file()]
        if not found:
            raise _error(key, text, "no file matches it.", "check the pattern")
        return _of_one_kind(found, key, text)
    if may_be_hub_id(text) and Path(text).suffix.lower() not in KINDS:
        return Source(kind="hub", hub=text)
    raise _error(key, text, "no such file.", "check the path")


def _holds_rows(file: Path, directory: Path) -> bool:
    parts = file.relative_to(directory).parts
    if any(part.startswith(".") for part in parts) or file.name in _NO_ROWS:
        return False
    if file.suffix == ".arrow" and file.name.startswith("cache-"):  # of an earlier `map` there
        return False
    return file.suffix.lower() in KINDS and file.is_file()


def _of_one_kind(files: Sequence[Path], key: str, text: str) -> Source:
    kinds = sorted({kind_of_file(file) for file in files})
    if len(kinds) > 1:
        consequence = f"holds files of several kinds ({', '.join(kinds)}): which are the rows?"
        raise _error(key, text, consequence, f"name one kind, for example {Path(text) / '*'}.{kinds[0]}")
    return Source(kind=kinds[0], files=tuple(files))


def _error(key: str, value: str, consequence: str, fix: str) -> ConfigError:
    return ConfigError(Problem(key=key, value=value, consequence=consequence, fix=fix))


def fingerprint(path: str | Path) -> str:
    """The bytes that `path` names in 16 hexadecimal digits of their SHA-256; empty where they can't be read.

    Of several files also their order counts. A hub id has no bytes here: its name stands for it.
    """
    try:
        source = locate(path)
    except ConfigError:
        return ""
    if source.hub:
        return f"hub:{source.hub}"
    digests = [_digest(file) for file in source.files]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:16] if all(digests) else ""


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            for block in iter(partial(file.read, 2**20), b""):
                digest.update(block)
    except OSError:
        return ""
    return digest.hexdigest()[:16]
