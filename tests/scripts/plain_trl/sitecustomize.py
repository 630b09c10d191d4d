"""Leaves TRL's trainers as they are: put this directory on PYTHONPATH.

Sharding imports `unsloth.models`, which rewrites all of them, for ten seconds in every process. On a CPU none of it is
used for SFT: there Unsloth has put a trainer of its own in the place before (adapters/environment.py). Everything else
that `unsloth.models.rl` mends stays.
"""

import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

RL = "unsloth.models.rl"


class WithoutRewriting:
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        found = PathFinder.find_spec(name, path) if name == RL else None
        if found is None or found.loader is None:
            return None
        run = found.loader.exec_module

        def run_and_leave(module: ModuleType) -> None:
            run(module)
            assert callable(module.patch_trl_rl_trainers)
            module.patch_trl_rl_trainers = lambda: None  # type: ignore[attr-defined]

        found.loader.exec_module = run_and_leave  # type: ignore[method-assign]
        return found


sys.meta_path.insert(0, WithoutRewriting())  # type: ignore[arg-type]
