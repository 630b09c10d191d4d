"""Reading of files that may be anything, atomic writing of files and directories, what to do where they can't be
written, and tests that take any name."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

is_directory, is_file = os.path.isdir, os.path.isfile
"""Tests that are False for a name no file can have, at which `Path.is_dir` and `Path.is_file` raise."""

_UNFINISHED = re.compile(r"\.(?P<name>.+)\.unsloth-accel-(?P<host>.+)-(?P<pid>\d+)-\w{8}(?P<old>\.old)?")
_DAY = 86_400.0
"""Seconds after which what a process of another machine left untouched is taken as left for good."""
FULL = (errno.ENOSPC, errno.EDQUOT)
"""The system's errors of a disk, or a user's part of it, that is full."""
_FIXES = {
    **dict.fromkeys(FULL, "make room there"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "let the user that trains write there"),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.ESTALE), "bring the directory back, which is gone"),
    errno.EROFS: "mount it for writing",
}


def filled(text: str, marks: tuple[str, str], body: str) -> str:
    """Return the `text` of a page with what stands between its two `marks`, each a line, replaced by `body`."""
    between = f"{re.escape(marks[0])}.*?{re.escape(marks[1])}"
    return re.sub(between, lambda _: f"{marks[0]}\n{body}\n{marks[1]}", text, flags=re.DOTALL)


_MOST_DEPTH, _TOO_DEEP = 64, "it is nested too deeply"


def write_atomically(path: str | Path, text: str) -> None:
    """Write `text` to `path`, making its directory; `path` holds the old text or the new, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=_prefix(path))
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


@contextmanager
def replacing_directory(path: str | Path, kept: Callable[[Path], Iterable[Path]] = lambda old: ()) -> Iterator[Path]:
    """Yield a temporary directory beside `path` that takes its place when the block ends well.

    A directory can't be replaced in one step; the old one is moved aside first, and moved back if that fails. `kept`
    gives the files of the old one, where it then is, that move to the new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=_prefix(path)))
    old = temporary.with_name(f"{temporary.name}.old")
    try:
        yield temporary
        os.chmod(temporary, 0o755)
        for file in temporary.rglob("*"):
            if file.is_file() and not file.is_symlink():
                os.chmod(file, 0o644)  # safetensors writes files that only their owner may read
        if path.exists():
            os.rename(path, old)
        try:
            os.rename(temporary, path)
        except BaseException:
            if old.exists() and not path.exists():
                os.rename(old, path)
            raise
        bring(kept(old) if old.exists() else (), old, path)
        # Not where that failed: what has not moved is a user's, and there alone.
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def bring(files: Iterable[Path], old: Path, new: Path) -> None:
    """Move `files` from below `old` to the same names below `new`; to `NAME.kept` where a name is taken."""
    for file in files:
        place = new / file.relative_to(old)
        place.parent.mkdir(parents=True, exist_ok=True)
        while os.path.lexists(place):
            place = place.with_name(f"{place.name}.kept")
        os.rename(file, place)


def unfinished(directory: Path, name: str | None = None) -> list[tuple[Path, Path, bool]]:
    """What writers that are gone left in `directory`: each with the place that it was for, and whether it is what had
    stood there. With `name`, only what was for that name.

    A writer of this machine is gone where no process has its number. One of another machine can't be looked for: it is
    taken as gone where nothing was written for a day.
    """
    found = []
    try:
        paths = sorted(directory.iterdir())
    except OSError:
        return []
    for path in paths:
        match = _UNFINISHED.fullmatch(path.name)
        if match and name in (None, match["name"]) and _is_gone(path, match["host"], int(match["pid"])):
            found.append((path, directory / match["name"], bool(match["old"])))
    return found


def _is_gone(path: Path, host: str, pid: int) -> bool:
    if host == this_machine():
        return pid != os.getpid() and not os.path.exists(f"/proc/{pid}")
    with suppress(OSError):
        times = [file.stat().st_mtime for file in (path, *path.rglob("*"))]
        return time.time() - max(times) > _DAY
    return False


def _prefix(path: Path) -> str:
    return f".{path.name}.unsloth-accel-{this_machine()}-{os.getpid()}-"


def this_machine() -> str:
    """Return a name for where this process's number counts: containers may share a host's name, not its processes."""
    try:
        return f"{platform.node()}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return platform.node()


def why_unwritten(error: BaseException, directory: str | Path) -> tuple[str, str]:
    """Say why something in `directory` couldn't be written, without a full stop, and the fix.

    torch and safetensors don't say which of the system's errors it was: then a small file is tried.
    """
    number = getattr(error, "errno", None)
    said = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
    if number is None and (found := re.search(r"(?:os error|Errno) (\d+)", str(error))):
        number = int(found[1])
    if number is None:
        number = getattr(unwritable(existing(directory)), "errno", None)
    reason = os.strerror(number) if number else ""
    if number in (*FULL, errno.EROFS, errno.EACCES):
        said = reason
    elif reason and reason not in said:
        said = f"{said} ({reason})"
    return said, _FIXES.get(number or 0, "see that it can be written")


def existing(path: str | Path) -> Path:
    """Return the nearest directory at or above `path` that there is."""
    path = Path(path).absolute()
    return next((one for one in (path, *path.parents) if is_directory(one)), Path("/"))


def unwritable(directory: Path) -> OSError | None:
    """Return the system's error at which a small file in `directory` fails; None where it doesn't."""
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(bytes(2**16))
    except OSError as error:
        return error
    return None


class TooLarge(ValueError):
    """More bytes than were to be read."""


@contextmanager
def open_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading; raises `OSError` for anything else.

    A pipe would keep its reader waiting, and a device give bytes for ever.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "is a pipe or a device, not a file", str(path))
        yield file


def read_bytes(path: str | Path, most: int | None = None) -> bytes:
    """Return the bytes of a file; raises `OSError` as `open_file` does, and `TooLarge` for more than `most` bytes."""
    with open_file(path) as file:
        data = file.read() if most is None else file.read(most + 1)
    if most is not None and len(data) > most:
        raise TooLarge(f"is larger than {most:,} bytes")
    return data


def parsed_json(text: str) -> Any:
    """Return the values of a JSON text; raises `ValueError`, also for what is nested too deeply to be gone through."""
    try:
        values = json.loads(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    level = [values]
    for _ in range(_MOST_DEPTH):
        level = [one for one in level if isinstance(one, dict | list)]
        level = [value for one in level for value in (one.values() if isinstance(one, dict) else one)]
        if not level:
            return values
    raise ValueError(_TOO_DEEP)


def load_json(path: Path) -> Any:
    """Return the values in a JSON file; raises `OSError` or `ValueError`."""
    return parsed_json(read_bytes(path).decode("utf-8"))


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one where there is none."""
    try:
        values = load_json(path)
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def sizes_below(directory: Path) -> dict[str, int]:
    """Return every file below `directory` by its relative name, in order, with its size in bytes; without those that
    another rank removes meanwhile."""
    found: dict[str, int] = {}
    for place, _, names in os.walk(directory):
        for path in (Path(place, name) for name in names):
            with suppress(FileNotFoundError):
                if path.is_file():
                    found[path.relative_to(directory).as_posix()] = path.stat().st_size
    return dict(sorted(found.items()))
