"""enable_grpo_support: TRL's trainers that write completions are adapted as they begin to train, whoever makes them."""

from __future__ import annotations

import functools
from typing import Any

from ..adapters.generating import ends_and_pads, writes_completions
from ..artifacts.run_directory import RunDirectory
from ..callbacks.completions import Completions
from ..callbacks.rank_log import RankLog
from ..data.generation_server import server_problems_of
from ..errors import raise_errors
from .adapt import adapt

_MARK = "_unsloth_accel_grpo"


def enable_grpo_support() -> None:
    """Have every `GRPOTrainer` and `RLOOTrainer` of TRL adapted (`unsloth_accel.adapt`) and watched as it begins to
    train, in this process; call it after unsloth is imported. Once is enough.

    Completions are timed and some are kept in output_dir/logs/completions.jsonl (`callbacks.completions`). A
    generation server that can't be used raises `ConfigError` before the first step, on every rank.
    """
    import trl

    for name in ("GRPOTrainer", "RLOOTrainer"):
        trainer_class: Any = getattr(trl, name)
        if getattr(trainer_class.train, _MARK, False):
            continue
        trainer_class.train = _adapting(trainer_class.train)


def _adapting(train: Any) -> Any:
    @functools.wraps(train)
    def adapted(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not writes_completions(self) or getattr(self, _MARK, False):
            return train(self, *args, **kwargs)
        setattr(self, _MARK, True)
        raise_errors(server_problems_of(vars(self.args), self.model.config.name_or_path))
        if self.args.process_index == 0 and (told := ends_and_pads(self.processing_class)):
            print(f"unsloth_accel: warning: {told}", flush=True)
        if not any(isinstance(callback, Completions) for callback in self.callback_handler.callbacks):
            files = RunDirectory(str(self.args.output_dir))
            self.add_callback(Completions(self, RankLog(None, self.args.process_index), files.completions))
        adapt(self)
        return self.train(*args, **kwargs)  # which adapt has wrapped, around this one

    setattr(adapted, _MARK, True)
    return adapted
