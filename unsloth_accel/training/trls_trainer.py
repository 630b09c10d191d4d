"""TRL's trainer of a run's method, with the run's rows."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..capabilities.probe import available
from ..config.run_config import RunConfig
from ..errors import ConfigError, Problem, first_line
from ..methods import METHODS
from ..registry import imported

if TYPE_CHECKING:
    from transformers import Trainer

    from ..data.prepare import Prepared

FORCED = "_unsloth_forced_float32"
"""Attribute of a model that can't compute in float16."""
_REFUSE = ("trl", "transformers.trainer", "transformers.training_args")
"""Modules that refuse settings, and packages of such."""


def trls_trainer(run: RunConfig, model: Any, tokenizer: Any, config: Any, rows: Prepared, **others: Any) -> Trainer:
    """Make the trainer of `run`'s method around `model`, with `others` of its arguments; raises `ConfigError` for
    settings that TRL refuses.

    On a CPU sharding and kept activations import unsloth.models, which puts Unsloth's trainers for GPUs in the place of
    TRL's. These compute in float16 where the processor has no bfloat16, although `fp16` and `bf16` are false, unless
    the model says that it can't (unsloth/models/rl.py: "Mixed precision training"; Unsloth 2026.10.9).
    """
    known = available("precision that a model asks of Unsloth's trainers")
    forced = known and run.distributed.device == "cpu" and not (config.fp16 or config.bf16)
    if forced:
        setattr(model, FORCED, True)
    try:
        trainer: Trainer = imported(METHODS[run.method].trainer_class)(
            model=model,
            processing_class=tokenizer,
            args=config,
            train_dataset=rows.train,
            eval_dataset=rows.held_out,
            **others,
        )
    except (ValueError, NotImplementedError) as error:  # a loss that needs another field, or none with it
        if not refuses(error.__traceback__):
            raise
        consequence, fix = f"TRL refuses it: {first_line(error)}", "correct the setting that it names"
        raise ConfigError(Problem(key="training", consequence=consequence, fix=fix)) from None
    if forced and METHODS[run.method].generates:
        setattr(model, FORCED, False)  # GRPO's loss would go by float16 with it (rl_replacements.py)
    trainer.data_report = rows.report
    return trainer


def refuses(raised: TracebackType | None) -> bool:
    """Return whether an error was raised by a trainer's own code, and not by what it called: Unsloth's copies of TRL's
    trainers are modules that are named after them."""
    module = ""
    while raised:
        module, raised = str(raised.tb_frame.f_globals.get("__name__", "")), raised.tb_next
    copied = module.rpartition(".")[2].startswith("Unsloth") and module.endswith("Trainer")
    return copied or any(module == one or module.startswith(f"{one}.") for one in _REFUSE)
