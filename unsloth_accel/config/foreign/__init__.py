"""Files of other tools: one record per tool, and how they are known and translated into a run.yaml.

`recognise` says whose a file's keys are; `translate.translate` makes a run of it.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..run_config import SECTIONS
from .accelerate import ACCELERATE
from .axolotl import AXOLOTL
from .keys import Tool
from .llama_factory import LLAMA_FACTORY
from .trl import TRL

TOOLS: tuple[Tool, ...] = (ACCELERATE, AXOLOTL, LLAMA_FACTORY, TRL)
"""In the order in which a file is held against them: TRL's keys are those that LLaMA-Factory has, too."""


def recognise(keys: Iterable[object]) -> Tool | None:
    """Return the tool whose file has these top-level keys; None for what has a run.yaml's, or no known tool's."""
    names = {str(key) for key in keys}
    if names & SECTIONS:
        return None
    return next((tool for tool in TOOLS if tool.recognises(names)), None)
