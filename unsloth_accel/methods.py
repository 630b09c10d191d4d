"""The training methods: one record each, with everything in which one differs from another.

Classes are named as import paths in text, so that nothing heavy is imported. A method of your own: `METHODS.add(
Method(…))`, in a module that UNSLOTH_ACCEL_PLUGINS names, and a module as `Method.module` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .registry import Registry


@dataclass(frozen=True, kw_only=True)
class Method:
    name: str
    about: str
    """One line for people."""
    module: str
    """Module that each launched process runs. It has `config_fields`, `prepare_data` and `make_trainer`, which
    `training.process` calls, and is `training.process.main` as a program."""

    # The trainer's config.
    config_class: str
    """Config class of the trainer; `training` in run.yaml takes its fields."""
    config_sources: tuple[str, ...]
    """Classes that declare the fields, as package/file.py:Class, base classes first; read without importing."""
    trainer_class: str
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    """Fields of its config that have one place of their own in run.yaml; set twice they could disagree."""
    callbacks: tuple[str, ...] = ()
    """Import paths of more callbacks than every run has, made without arguments."""

    # Its rows.
    row_kinds: tuple[str, ...]
    """The kinds of canonical rows that it trains (`data.formats.Kind`)."""

    # Memory and speed (planning).
    sequences_per_row: int = 1
    """Sequences that the model reads for one row: two for a pair."""
    reference_passes: int = 0
    """Forward passes beside the trained one, such as a reference model's."""

    @property
    def config_name(self) -> str:
        return self.config_class.rpartition(".")[2]


METHODS: Registry[Method] = Registry(
    "method",
    [
        Method(
            name="sft",
            about="supervised fine-tuning: the next token of text, chats or completions",
            module="unsloth_accel.training.sft",
            config_class="trl.SFTConfig",
            config_sources=(
                "transformers/training_args.py:TrainingArguments",
                "trl/trainer/base_config.py:_BaseConfig",
                "trl/trainer/sft_config.py:SFTConfig",
            ),
            trainer_class="trl.SFTTrainer",
            elsewhere={
                "max_length": "model.max_seq_length",
                "max_seq_length": "model.max_seq_length",
                "assistant_only_loss": "data.train_on",
                "completion_only_loss": "data.train_on",
                "dataset_text_field": "data.columns",
                "dataset_kwargs": "data.format and data.train_on",
            },
            row_kinds=("messages", "prompt-completion", "text"),
        )
    ],
)
USUAL_METHOD = "sft"
"""Method of a run.yaml that names none."""
