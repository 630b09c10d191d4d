"""Reading a config, or a run, as the rules look at it: `config.safe_reader` reads, and its keys tell what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...config.foreign import recognise
from ...config.foreign.accelerate import ACCELERATE
from ...config.run_config import SECTIONS
from ...config.safe_reader import Read, read_yaml, read_yaml_text
from .command_line import overlaid
from .document import Context, Document, Kind


def read_document(path: str | Path, context: Context | None = None, kind: Kind | None = None) -> Document:
    """The document in `path`; a file that can't be read gives one of the kind `unreadable`, which says why.

    `kind` says what the file is meant to be; otherwise its keys tell.
    """
    return _document(read_yaml(path), context, kind)


def read_text(text: str, file: str = "config.yaml", context: Context | None = None) -> Document:
    """The document in a text, as `read_document` gives it for a file."""
    return _document(read_yaml_text(text, file), context, None)


def _document(read: Read, context: Context | None, kind: Kind | None) -> Document:
    kind = (kind or kind_of(read.values)) if read.readable else "unreadable"
    if kind == "run" and "yaml-value" in read.found:  # a run has no dates, so that none can be wrong
        read = read_yaml_text(read.text, read.file, dates=False)
    context = context or Context()
    values, flagged = overlaid(read.values, context.flags) if kind == "accelerate" else (read.values, {})
    return Document(
        file=read.file,
        kind=kind,
        values=values,
        places=read.places,
        text=read.text,
        found=read.found,
        context=context,
        flagged=flagged,
    )


_RUN_KEYS = {*SECTIONS, "output_dir"}
_DEEPSPEED_KEYS = {"zero_optimization", "train_micro_batch_size_per_gpu", "train_batch_size"}
_HYDRA_KEYS = {"_component_", "_target_", "class_path"}


def kind_of(values: dict[str, Any]) -> Kind:
    """Return the kind of file that has these keys."""
    from .names import FSDP_KEYS, TOP_LEVEL_KEYS

    keys = set(values)
    sections = [value for value in values.values() if isinstance(value, dict)]
    if keys & ACCELERATE.needs:
        return "accelerate"
    if keys & _DEEPSPEED_KEYS:
        return "deepspeed"
    if recognise(keys) or any(_HYDRA_KEYS & set(section) for section in sections):
        return "training-script"
    if len(keys & _RUN_KEYS) > 1 or (keys & _RUN_KEYS and isinstance(values[next(iter(keys & _RUN_KEYS))], dict)):
        return "run"
    if keys & TOP_LEVEL_KEYS:
        return "accelerate"
    if {key.removeprefix("fsdp_") for key in keys} & FSDP_KEYS:
        return "transformers-fsdp"
    return "unknown"
