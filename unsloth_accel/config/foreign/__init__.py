"""Files of other tools: one record per tool, and how they are known and translated into a run.yaml.

`recognise` says whose a file's keys are; `translate.translate` makes a run of it.
"""

from __future__ import annotations

from collections.abc import Iterable

from .accelerate import ACCELERATE
from .axolotl import AXOLOTL
from .keys import Tool
from .llama_factory import LLAMA_FACTORY
from .trl import TRL

TOOLS: tuple[Tool, ...] = (ACCELERATE, AXOLOTL, LLAMA_FACTORY, TRL)
"""In the order in which a file is held against them: TRL's keys are those that LLaMA-Factory has, too."""
_OURS = frozenset({"model", "lora", "data", "batch", "training", "logging", "evaluation", "distributed"})
"""Sections of a run.yaml: a file that has one is no other tool's."""


def recognise(keys: Iterable[object]) -> Tool | None:
    """Return the tool whose file has these top-level keys; None for a run.yaml, and for what is no known tool's."""
    names = {str(key) for key in keys}
    if names & _OURS:
        return None
    return next((tool for tool in TOOLS if tool.recognises(names)), None)
