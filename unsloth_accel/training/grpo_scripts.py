"""What a script's trainer that writes completions has done to it before it trains, where GRPO support is on."""

from __future__ import annotations

from typing import Any

from ..adapters.generating import ends_and_pads
from ..artifacts.run_directory import RunDirectory
from ..callbacks.completions import Completions
from ..callbacks.rank_log import RankLog
from ..data.generation_server import server_problems_of
from ..errors import raise_errors


def support_grpo(trainer: Any) -> None:
    """Check TRL's `GRPOTrainer` or `RLOOTrainer` and watch its completions: they are timed, and some are kept in
    output_dir/logs/completions.jsonl (`callbacks.completions`). Call it before `adapt`.

    A token that both ends and pads completions is warned of. Raises `ConfigError`, on every rank, for a generation
    server that can't be used.
    """
    raise_errors(server_problems_of(vars(trainer.args), trainer.model.config.name_or_path))
    rank = trainer.args.process_index
    if rank == 0 and (told := ends_and_pads(trainer.processing_class)):
        print(f"unsloth_accel: warning: {told}", flush=True)
    if not any(isinstance(callback, Completions) for callback in trainer.callback_handler.callbacks):
        files = RunDirectory(str(trainer.args.output_dir))
        trainer.add_callback(Completions(trainer, RankLog(None, rank), files.completions))
