"""Datasets of the Hub, through the `datasets` library, which downloads each once and keeps it."""

from __future__ import annotations

import glob
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, Problem, first_line
from ..files import FULL
from ..models.hub_access import HUB, hub_is_off, refusal
from .sources import cache_directory

if TYPE_CHECKING:
    from ..config.run_config import DataConfig


def access_problems(name: str, key: str, data: DataConfig | None) -> list[Problem]:
    """Return why the data set `name`, which `key` names, can't be had; nothing is asked where it is in the cache."""
    if has_rows(name, data.subset if data else None):
        return []
    if hub_is_off():
        consequence = "is not in the cache of datasets, and the hub is switched off (HF_HUB_OFFLINE)."
        fix = "unset HF_HUB_OFFLINE TRANSFORMERS_OFFLINE, or name a file"
        return [Problem(key=key, value=name, consequence=consequence, fix=fix, rule=HUB)]
    problem = refusal(name, "dataset", key)
    return [problem] if problem else []


def has_rows(name: str, subset: str | None) -> bool:
    """Return whether rows of the data set were made here before (OWNER___NAME/SUBSET/VERSION/FINGERPRINT)."""
    owner, _, last = name.partition("/")
    places = (place for place in cache_directory().parent.glob(f"{glob.escape(owner)}___*") if place.is_dir())
    same = [place for place in places if _letters(place.name.partition("___")[2]) == _letters(last)]
    return any(
        True for place in same for _ in place.glob(f"{glob.escape(subset) if subset else '*'}/*/*/dataset_info.json")
    )


def _letters(name: str) -> str:
    """Return a name without what `datasets` changes in it: capitals become _ and small letters."""
    return name.lower().replace("_", "")


def load(name: str, key: str, data: DataConfig | None, *, streaming: bool = False) -> Any:
    """Load one split of a dataset: `data.split` to train on, `data.eval_split` to evaluate; raises `ConfigError`."""
    from datasets import load_dataset

    split = "train" if data is None else data.eval_split if key == "data.eval_path" else data.split
    subset = data.subset if data else None
    how = {"split": split, "streaming": streaming}
    try:
        try:
            return load_dataset(name, subset, **how)
        except Exception as error:
            if not type(error).__module__.startswith("pyarrow"):
                raise
            # What was kept is damaged, as a full disk leaves it. Made anew, from what was downloaded.
            print(f"data: {name} is damaged in the cache of datasets ({first_line(error)}): made anew", flush=True)
            return load_dataset(name, subset, download_mode="reuse_cache_if_exists", **how)
    except Exception as error:  # whatever the network, the hub or a loader raises: all of it stops the run
        consequence = f"can't be loaded: {type(error).__name__}: {first_line(error)[:300]}."
        part = "data.eval_split" if "eval" in key else "data.split"
        fix = f"check the path, or the hub id with {part} and data.subset"
        place = cache_directory().parent
        if isinstance(error, OSError) and (error.errno in FULL or "disk space" in str(error)):
            fix = f"make room in {place}, or set HF_DATASETS_CACHE to a directory on another disk"
        raise ConfigError(Problem(key=key, value=name, consequence=consequence, fix=fix)) from None
