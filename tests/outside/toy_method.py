"""A method from outside the package: supervised fine-tuning of texts, with a field of its own and a callback."""

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unsloth_accel.methods import METHODS
from unsloth_accel.training.sft import config_fields, main, make_trainer, prepare_data

__all__ = ["ToyConfig", "config_fields", "counted", "main", "make_trainer", "prepare_data"]
SFT = METHODS["sft"]


@dataclass
class ToyConfig:
    """Declares the field; what is made is TRL's config."""

    toy_weight: float = 1.0

    def __new__(cls, toy_weight: float = 1.0, **fields: Any) -> Any:
        from trl import SFTConfig

        config = SFTConfig(**fields)
        config.toy_weight = toy_weight
        return config


def counted() -> Any:
    from transformers import TrainerCallback

    class Counted(TrainerCallback):
        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            said = f"{args.toy_weight} {state.global_step} {os.environ['TOY_FITTED']}"
            Path(args.output_dir, "toy.txt").write_text(said, encoding="utf-8")

    return Counted()


METHODS.add(
    replace(
        SFT,
        name="toy_method",
        about="a toy",
        module="toy_method",
        config_class="toy_method.ToyConfig",
        config_sources=(*SFT.config_sources, "toy_method.py:ToyConfig"),
        callbacks=("toy_method.counted",),
        row_kinds=("text",),
        sequences_per_row=2,
    )
)

if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
