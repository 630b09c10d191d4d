"""Where rows come from: files here, or a data set on the hub; found without reading them."""

from __future__ import annotations

import functools
import glob
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..config.hub_cache import hugging_face_home
from ..errors import ConfigError, Problem
from ..files import write_atomically
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
SMALL = 2**20
"""Bytes below which a file is read as quickly as its digest is looked up."""
_DIGITS = 16
"""Length of a file's digest."""
_NO_ROWS = ("dataset_info.json", "state.json", "dataset_dict.json")
"""What `datasets.Dataset.save_to_disk` leaves beside the rows."""
_SPLIT = re.compile(r"(train|test|validation|valid|val|dev|eval)([-_.]\d.*)?")
"""Name of a file without its end, or of its directory, by which `datasets` and the hub tell splits apart."""


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

    A path that exists is never taken for a hub id. Directories are searched to any depth, in the order of names; a glob
    may have braces, whose order stays.
    """
    text = str(path)
    try:
        os.stat(text)
    except FileNotFoundError:
        return _absent(text, key)
    except (OSError, ValueError) as error:
        raise _error(key, text, f"{getattr(error, 'strerror', error)}.", "name a readable file of rows") from None
    if not os.path.isdir(text):
        if not os.path.isfile(text):
            consequence = "is a pipe or a device, which only one process could read, and once."
            raise _error(key, text, consequence, "save it as a file")
        return Source(kind=kind_of_file(Path(text)), files=(Path(text),))
    found = [file for file in sorted(Path(text).rglob("*")) if _holds_rows(file, Path(text))]
    if not found:
        ends = ", ".join(KINDS)
        raise _error(key, text, f"holds no file of rows ({ends}).", "name a directory that does, or a file")
    _refuse_splits(found, key, text)
    return _of_one_kind(found, key, text)


def _refuse_splits(files: Sequence[Path], key: str, text: str) -> None:
    """Raise `ConfigError` for a directory of rows to train on and of others, by their names: all would be trained."""
    named: dict[str, list[Path]] = {}
    for file in files:
        parts = (file.stem, *reversed(file.relative_to(text).parts[:-1]))
        if word := next(filter(None, (_SPLIT.fullmatch(part.lower()) for part in parts)), None):
            named.setdefault(word[1], []).append(file)
    if "train" not in named or len(named) == 1:
        return
    train, end = named["train"], named["train"][0].suffix
    directory = os.path.commonpath([file.parent for file in train])
    ways = (directory, f"{directory}/*train*{end}", f"{directory}/**/train*{end}")
    one = next((way for way in ways if _files(way) == {*train}), train[0])
    consequence = f"holds several splits ({', '.join(sorted(named))}), all of which would be read as one."
    raise _error(key, text, consequence, f"name one, such as {one}; for all of them {text}/**/*{end}")


def _files(way: str) -> set[Path]:
    if os.path.isdir(way):
        return {file for file in Path(way).rglob("*") if _holds_rows(file, Path(way))}
    return {Path(name) for name in glob.glob(way, recursive=True)}


def _absent(text: str, key: str) -> Source:
    if any(sign in text for sign in "*?[{"):
        found: list[Path] = []
        for pattern in _alternatives(text):
            files = [Path(name) for name in sorted(glob.glob(pattern, recursive=True)) if Path(name).is_file()]
            if not files:
                raise _error(key, pattern, "no file matches it.", "check the pattern")
            found += [file for file in files if file not in found]
        return _of_one_kind(found, key, text)
    if may_be_hub_id(text) and Path(text).suffix.lower() not in KINDS:
        return Source(kind="hub", hub=text)
    raise _error(key, text, "no such file.", "check the path")


def _alternatives(text: str) -> list[str]:
    """Return the patterns that one with braces means, as a shell does: `a/{b,c}.json` is two."""
    braces = re.search(r"\{([^{}]*)\}", text)
    if braces is None:
        return [text]
    before, after = text[: braces.start()], text[braces.end() :]
    return [one for word in braces[1].split(",") for one in _alternatives(before + word.strip() + after)]


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
    """Return 16 hexadecimal digits of the SHA-256 of the bytes that `path` names; empty where they can't be read.

    With several files their order counts too. A hub id has no bytes here: its name stands for it. Each file is read
    once per machine: other processes, and later runs, find its digest in a cache while the file stays as it is.
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
    try:
        state = path.stat()
        # The time of change can't be set, and a file that is replaced is another inode.
        known = (str(path.resolve()), state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
        return _cached_digest(path, hashlib.sha256(repr(known).encode()).hexdigest())
    except OSError:
        return ""


@functools.cache
def _cached_digest(path: Path, known: str) -> str:
    """The digest of `path`, kept under the name `known`; raises `OSError` where `path` can't be read."""
    from filelock import FileLock

    place = cache_directory() / "digests" / known
    if path.stat().st_size < SMALL:
        return _read_digest(path)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{place}.lock"):
            kept = place.read_text(encoding="ascii") if place.is_file() else ""
            if len(kept) != _DIGITS:  # a disk that was full may have left nothing in it: other rows would have its name
                kept = _read_digest(path)
                write_atomically(place, kept)
            return kept
    except OSError:  # the cache, or the file itself
        return _read_digest(path)


def _read_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(partial(file.read, 2**20), b""):
            digest.update(block)
    return digest.hexdigest()[:_DIGITS]


def cache_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """Directory of tokenised rows and of files' digests, in the cache of `datasets` (datasets/config.py)."""
    return Path(environ.get("HF_DATASETS_CACHE") or hugging_face_home(environ) / "datasets", "unsloth_accel")
