"""The files in an output_dir that a run made, which another one may replace and remove; a user's own it never touches.

A directory is a run's where run.planned.yaml or accelerate.yaml begins with a plan's words. There a file is the run's
where it bears a name of `RunDirectory`: before a first run starts, none of them may be taken. A directory that is
filled (the adapter, a checkpoint, a merged model) holds a record of its files; what that doesn't name is a user's.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path

from ..errors import Problem
from ..files import bring, is_directory, read_bytes, replacing_directory, unfinished, write_atomically
from .checkpoints import RECORD, Checkpoint, files_of
from .run_directory import ACCELERATE_YAML, MARK, RunDirectory, first_line_of

_UNRECORDED = (
    *("adapter_*", "README.md", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*"),
    *("vocab*", "merges.txt", "spiece.model", "*processor_config.json", "run.yaml", "versions.json", ACCELERATE_YAML),
    *("trainer_state.json", "training_args.bin", "optimizer*", "scheduler.pt", "scaler.pt", "rng_state*.pth"),
    *("pytorch_model*", "model*.safetensors*", "config.json", "generation_config.json"),
)
"""Names in an adapter or a checkpoint without a record: from before there was one, or cut short."""


def is_planned(file: Path) -> bool:
    """Return whether a plan wrote this run.planned.yaml or accelerate.yaml."""
    return f"{MARK} with " in first_line_of(file)


def in_the_way(file: str | Path, ours: Callable[[str], bool], key: str = "--out") -> list[Problem]:
    """Return a problem where `file`, which `key` names to be written, holds a text that is not `ours`."""
    if os.path.islink(file):  # also /dev/stdout, which would be a file from then on
        consequence = f"is a link to {os.path.realpath(file)}, and would be a file in its place."
        return [Problem(key=key, value=str(file), consequence=consequence, fix="name the file that it leads to")]
    try:
        text = read_bytes(file).decode("utf-8", errors="replace")
        if not text.strip() or ours(text):
            return []
        consequence = "is there, and no file of ours: it would be replaced."
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        consequence = f"{getattr(error, 'strerror', None) or error}."
    fix = f"another name; or move it away, mv {shlex.quote(str(file))} {shlex.quote(f'{file}.old')}"
    return [Problem(key=key, value=str(file), consequence=consequence, fix=fix)]


def is_of_a_run(directory: str | Path) -> bool:
    """Return whether a run was planned into `directory`."""
    files = RunDirectory(directory)
    return is_planned(files.planned_yaml) or is_planned(files.accelerate_yaml)


def made_in(directory: Path) -> list[Path]:
    """Return the files that a run put into its adapter's, a checkpoint's or a merged model's directory."""
    if directory.is_symlink() or not directory.is_dir():
        return []
    record = recorded(directory)
    names = [name for name in files_of(directory) if record is None or name in record]
    if record is None:
        names = [name for name in names if any(fnmatch(name.split("/")[0], known) for known in _UNRECORDED)]
    return [directory / name for name in (*names, RECORD) if (directory / name).is_file()]


def recorded(directory: Path) -> set[str] | None:
    """Return the names in a filled directory's record; None where it has none."""
    files = Checkpoint(directory).record.get("files")
    return {*files} if isinstance(files, dict) else None


def products(directory: str | Path) -> list[Path]:
    """Return the files that a run made in `directory` and another one would make anew."""
    files = RunDirectory(directory)
    if not is_of_a_run(directory):
        return []
    filled = [made for one in (files.adapter, *files.checkpoints()) for made in made_in(one)]
    return [file for file in (files.results, *_logs(files)) if file.is_file()] + filled


def describing(directory: str | Path) -> list[Path]:
    """Return the files about a run, which go aside with what it made."""
    files = RunDirectory(directory)
    about = (files.planned_yaml, files.accelerate_yaml, files.plan, files.report)
    return [path for path in about if path.is_file()] if is_of_a_run(directory) else []


def errors_of(directory: str | Path) -> list[Path]:
    """Return what failing processes of a run left, but for logs and stacks."""
    files = RunDirectory(directory)
    # By the heartbeat of one that was killed the next launch's ranks would think theirs to have ended.
    left = [*_errors(files), *files.logs.glob("heartbeat-*.json")]
    return [file for file in left if file.is_file()] if is_of_a_run(directory) else []


def taken(
    directory: str | Path,
    more: Iterable[Path] = (),
    *,
    only: Iterable[Path] = (),
    checkpoints: bool = True,
    per_rank: bool = True,
) -> list[Problem]:
    """Return a problem where a user's own stands in the place of what a run writes into `directory`, `more` included,
    and one for each link that leads nowhere.

    With `only`, these alone. Without `checkpoints` they may be there: the run goes on from them. Without `per_rank`
    files of single ranks may be there: they have started.
    """
    files = RunDirectory(directory)
    found = [path for path in (files.planned_yaml, files.accelerate_yaml) if path.exists() and not is_planned(path)]
    nowhere = [path for path in files.places() if not path.exists()]
    found += [path for path in files.places() if path.exists() and not path.is_dir()]
    # What they lead to would be written into, or removed; an adapter's and the logs' place may be on another disk.
    followed = [files.previous, files.lock, *(files.checkpoints() if checkpoints else [])]
    found += [path for path in followed if path.is_symlink()]
    if not is_of_a_run(directory):
        told = [files.plan, files.results, files.report, files.previous, *more]
        told += [] if is_directory(files.adapter) and not any(files.adapter.glob("*")) else [files.adapter]
        told += files.checkpoints() if checkpoints else []
        told += [*_logs(files), *_errors(files)] if per_rank else [files.step_log, files.completions, files.summary]
        found += [path for path in told if os.path.lexists(path)]
    found = [path for path in found if (path in only if only else path not in nowhere)]
    problems = [] if only else [*(link_problem(path, files.path) for path in nowhere), *_fixed_place(files)]
    if not found:
        return problems
    names = [path.relative_to(files.path).as_posix() for path in dict.fromkeys(found)]
    listed = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
    consequence = f"holds {listed}, which no run of unsloth-accel made and this one would replace."
    fix = f"move {'it' if len(names) == 1 else 'them'} elsewhere, or choose another output_dir"
    return [Problem(key="output_dir", value=str(directory), consequence=consequence, fix=fix), *problems]


def _fixed_place(files: RunDirectory) -> list[Problem]:
    """Return a problem where the adapter's place leads to a directory that can't be renamed."""
    if not is_directory(files.adapter):
        return []
    place, is_link = files.adapter.resolve(), files.adapter.is_symlink()
    if not os.path.ismount(place) and (not is_link or os.access(place.parent, os.W_OK)):
        return []
    below, link = (shlex.quote(str(path)) for path in (place / "adapter", files.adapter))
    consequence = f"{files.adapter} leads to {place}, whose place the new adapter can't take (it is a disk's own, or "
    consequence += f"{place.parent} can't be written), which would show when training is done."
    fix = f"mkdir -p {below}; ln -sfn {below} {link}" if is_link else f"mount it on {files.path}, or elsewhere"
    return [Problem(key="output_dir", value=str(files.path), consequence=consequence, fix=fix)]


def link_problem(link: Path, directory: Path) -> Problem:
    """Return the problem of a link that leads nowhere, in the run's `directory` or on the way to it."""
    target = Path(os.path.abspath(link.parent / os.readlink(link)))
    held = f"holds {link.name}," if link.parent == directory else f"{link} is"
    consequence = f"{held} a link to {target}, which isn't there, so nothing could be saved in it."
    fix = f"mkdir -p {shlex.quote(str(target))} (or mount its disk), or remove the link"
    return Problem(key="output_dir", value=str(directory), consequence=consequence, fix=fix)


def remove(files: Iterable[Path], below: Path) -> None:
    """Remove `files`, and the directories below `below` that are empty then."""
    for file in files:
        with suppress(OSError):
            file.unlink()
            _prune(file.parent, below)


def move(files: Iterable[Path], source: Path, target: Path) -> None:
    """Move `files` from below `source` to the same names below `target`, and remove directories that are empty then."""
    for file in files:
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(file, place)
        _prune(file.parent, source)


@contextmanager
def filling(directory: str | Path) -> Iterator[Path]:
    """Yield a temporary directory that takes the place of `directory`, with a record of its files, when the block ends
    well; a user's own files there stay."""
    directory = Path(directory)
    directory = directory.resolve() if directory.is_symlink() else directory
    clear_unfinished(directory.parent, directory.name)
    with replacing_directory(directory, kept=_kept) as temporary:
        yield temporary
        write_record(temporary)


def write_record(directory: Path, lacking: Iterable[str] = (), theirs: Iterable[str] = (), **more: object) -> None:
    """Write the record of a filled directory: its files with their sizes in bytes, also those that it is `lacking`, but
    for a user's (`theirs`), and `more`."""
    files = {name: size for name, size in files_of(directory).items() if name not in theirs}
    files |= dict.fromkeys(lacking, 0)
    write_atomically(directory / RECORD, json.dumps({**more, "files": files}, indent=2) + "\n")


def clear_run(directory: str | Path) -> list[Path]:
    """`clear_unfinished` in all directories of a run."""
    files = RunDirectory(directory)
    places = [files.path, files.logs, files.errors, files.adapter, *files.checkpoints()]
    return [path for place in places for path in clear_unfinished(place)]


def clear_unfinished(directory: Path, name: str | None = None) -> list[Path]:
    """Remove what writers that were killed left in `directory`; returns what was the only one of its name, and whole,
    and now stands in its place. With `name`, only what was for that name.

    Weights of an adapter that were on their way to a place where nothing stands are left: there may be no others.
    """
    back = []
    found = unfinished(directory, name)
    for path, place, stood_there in found:
        newer = path.with_name(path.name.removesuffix(".old"))
        with suppress(OSError):
            if stood_there:  # so the newer one was whole
                if not os.path.lexists(place):
                    os.rename(newer if newer.is_dir() else path, place)
                    back.append(place)
                if path.is_dir():
                    bring(_kept(path), path, place)
                    shutil.rmtree(path)
            elif path.is_dir() and not os.path.lexists(place) and Checkpoint(path).is_recorded_whole:
                os.rename(path, place)
                back.append(place)
    for path, place, stood_there in found:
        if not stood_there and path.is_dir() and (os.path.lexists(place) or not Checkpoint(path).has_adapter):
            shutil.rmtree(path, ignore_errors=True)
        elif path.is_file():
            path.unlink(missing_ok=True)
    return back


def remove_filled(directory: Path) -> None:
    """Remove an adapter's, a checkpoint's or a merged model's directory, but for a user's own files."""
    remove(made_in(directory), directory.parent)


def _kept(directory: Path) -> list[Path]:
    """Return a user's own files in a filled directory."""
    ours = {*made_in(directory)}
    return [file for file in directory.rglob("*") if (file.is_symlink() or not file.is_dir()) and file not in ours]


def _logs(files: RunDirectory) -> list[Path]:
    return [
        files.step_log,
        files.completions,
        files.summary,
        *files.rank_logs(),
        *files.rank_outputs(),
        *files.of_hangs(),
    ]


def _errors(files: RunDirectory) -> list[Path]:
    return [files.launch_error, files.failed_report, files.hang, *files.rank_errors()]


def _prune(directory: Path, below: Path) -> None:
    """Remove `directory`, and those between it and `below`, as long as they are empty."""
    with suppress(OSError):
        while directory != below:
            directory.rmdir()
            directory = directory.parent
