"""Hugging Face's caches on this machine, found and read without its library."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ..files import is_directory


def hugging_face_home(environ: Mapping[str, str] = os.environ) -> Path:
    """The directory of Hugging Face's caches, from the environment (huggingface_hub/constants.py)."""
    home = environ.get("HF_HOME") or os.path.join(environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.path.expandvars(home)).expanduser()


def hub_cache(environ: Mapping[str, str] = os.environ) -> Path:
    """The hub's cache directory, from the environment (huggingface_hub/constants.py)."""
    cache = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE")
    if cache:
        return Path(cache).expanduser()
    return hugging_face_home(environ) / "hub"


def hub_snapshot(name: str, revision: str | None = None) -> Path | None:
    """The directory of a hub id's files in the cache (models--owner--name/{refs,snapshots}); None where there is none.

    Some files may be missing: each is downloaded when it is asked for.
    """
    repository = hub_cache() / f"models--{name.replace('/', '--')}"
    reference = repository / "refs" / (revision or "main")
    try:
        commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
        snapshot = repository / "snapshots" / commit if commit else None
        return snapshot if snapshot is not None and snapshot.is_dir() else None
    except (OSError, ValueError):
        return None


def directory_of(name: str) -> Path | None:
    """Return the directory that a model's `name` is, or that has the files of a hub id; None where neither is here."""
    return Path(name) if is_directory(name) else hub_snapshot(name)
