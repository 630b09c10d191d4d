"""Promise: what the launched processes must find; made by the launcher, checked inside each process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

PLANNED = "the plan"
Strategy = Literal["single", "ddp", "fsdp2", "fsdp2_native", "fsdp1"]


@dataclass(frozen=True, kw_only=True)
class Promise:
    num_processes: int
    """All processes, over all machines."""
    strategy: Strategy | None = None
    """None: not said."""
    device: Literal["cuda", "cpu"] | None = None
    """None: not said."""
    made_by: str = PLANNED
    """Who promised it: the plan, a config file's path, or WORLD_SIZE."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that each process needs before Unsloth is imported, where a config file says them."""
