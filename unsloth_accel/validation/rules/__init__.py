"""The rules of `unsloth-accel validate`: every one a function with an id, a consequence and its reference.

`validate(paths)` reads files and directories and says what is wrong with them, without torch and without GPUs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ...artifacts.run_directory import RunDirectory
from ...files import is_directory
from . import (  # noqa: F401  (each registers its rules)
    file,
    fsdp_section,
    fsdp_units,
    fsdp_versions,
    fsdp_weights,
    machines,
    other_systems,
    pair,
    process_count,
    run_evaluation,
    run_file,
    run_generation,
    run_method,
    run_numbers,
    run_reporters,
    run_rewards,
    run_words,
    sections,
    top_level,
)
from .check import check_document, folded, named
from .command_line import of_flags
from .document import Context, Document, Finding, Repair
from .fixing import repaired
from .rule_registry import RULES, Rule
from .yaml_reader import read_document, read_text

__all__ = [
    "RULES",
    "Context",
    "Document",
    "Finding",
    "Repair",
    "Report",
    "Rule",
    "check_document",
    "folded",
    "named",
    "of_flags",
    "read_document",
    "read_text",
    "repaired",
    "validate",
]
SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True, kw_only=True)
class Report:
    """One file and what is wrong with it, by line."""

    document: Document
    problems: tuple[Finding, ...]


def validate(paths: Iterable[str | Path], context: Context | None = None) -> list[Report]:
    """A report for every file; a directory stands for the configs in it, which must also agree with each other."""
    reports = []
    for path in map(Path, paths):
        reports += _directory(path, context) if is_directory(path) else [_report(read_document(path, context))]
    return reports


def _report(document: Document, *more: Finding) -> Report:
    found = sorted([*check_document(document), *more], key=lambda finding: finding.line or 0)
    return Report(document=document, problems=tuple(found))


def _directory(directory: Path, context: Context | None) -> list[Report]:
    """Report on run.planned.yaml and accelerate.yaml where a plan wrote both; otherwise on all."""
    run = RunDirectory(directory)
    files = [run.description, run.accelerate_yaml]
    if not all(path.is_file() for path in files):
        files = sorted(path for path in directory.iterdir() if path.suffix in SUFFIXES and path.is_file())
    if not files:
        found = Finding(
            key="(directory)",
            consequence="holds no .yaml, .yml or .json file.",
            fix="name the config, or the directory of a run",
            file=str(directory),
        )
        return [_report(Document(file=str(directory), kind="unreadable", found={"nothing-to-read": (found,)}))]
    documents = [read_document(path, context) for path in files]
    by_kind = {kind: [document for document in documents if document.kind == kind] for kind in ("run", "accelerate")}
    together: list[Finding] = []
    if all(len(found) == 1 for found in by_kind.values()):
        others = {kind: found[0] for kind, found in by_kind.items()}
        together = check_document(Document(file=str(directory), kind="pair", others=others))
    return [_report(document, *(one for one in together if one.file == document.file)) for document in documents]
