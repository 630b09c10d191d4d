"""The training methods: one record each, with everything in which one differs from another.

Classes are named as import paths in text, so that nothing heavy is imported. A method of your own: `METHODS.add(
Method(…))`, in a module that UNSLOTH_ACCEL_PLUGINS names, and a module as `Method.module` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .registry import Registry

Logits = Literal["fused", "tiled", "whole"]
"""What a loss has of the vocabulary's logits at once: a chunk of Unsloth's fused cross entropy, a tile from which the
answers' log-probabilities are summed up (TRL's `fused_lm_head`, with Unsloth's kernel), or those of all tokens."""


@dataclass(frozen=True, kw_only=True)
class Method:
    name: str
    about: str
    """One line for people."""
    module: str
    """Module that each launched process runs. It has `config_fields`, `prepare_data` and `make_trainer`, which
    `training.process` calls, and is `training.process.main` as a program."""
    note: str = ""
    """Sentence for every plan, on what a user of the method must know."""

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
    needs_prompt: bool = False
    """Whether it takes preferences as answers to a prompt; otherwise as whole texts or chats."""

    packs: bool = False
    """Whether its trainer lays several rows into one of full length (TRL's `packing`)."""

    # Its model.
    has_score: bool = False
    """Whether a head that gives a text one number takes the place of the language model's head."""

    # Its loss and figures.
    mean_over_rows: bool = False
    """Whether the loss is a mean over the rows of a micro-batch; otherwise a step's tokens weigh alike, wherever their
    rows are."""
    depends_on_ranks: str = ""
    """Sentence on why several processes don't train quite as one does; empty where they do."""
    charts: Mapping[str, str] = field(default_factory=dict)
    """Titles of the figures, beside the loss, that show what it learns, by their names in the Trainer's log."""
    accuracy: str = ""
    """Name in the Trainer's log of the share of pairs in which the chosen answer wins; empty where there is none."""

    # Memory and speed (planning).
    least_per_device: int = 1
    """Fewest rows that a process must have at once."""
    sequences_per_row: int = 1
    """Sequences that the model reads for one row: two for a pair."""
    reference_passes: int = 0
    """Forward passes of the reference; none in a step where they are computed beforehand."""
    other_passes: int = 0
    """Forward passes of the trained model without gradients."""
    logits: Logits = "fused"
    pads: bool = False
    """Whether its collator pads the sequences of a micro-batch to the longest; otherwise Unsloth lays them end to
    end."""

    def unpairs(self, kind: str) -> bool:
        """Return whether a row of `kind` is a pair, of which each answer becomes a row with a label."""
        return kind == "preference" and "unpaired-preference" in self.row_kinds

    @property
    def config_name(self) -> str:
        return self.config_class.rpartition(".")[2]


_TRAINING = ("transformers/training_args.py:TrainingArguments", "trl/trainer/base_config.py:_BaseConfig")
_LENGTH = {"max_length": "model.max_seq_length"}
_REWARDS = {"rewards/margins": "Reward margin", "rewards/accuracies": "Reward accuracy"}
METHODS: Registry[Method] = Registry(
    "method",
    [
        Method(
            name="sft",
            about="supervised fine-tuning: the next token of text, chats or completions",
            module="unsloth_accel.training.sft",
            config_class="trl.SFTConfig",
            config_sources=(*_TRAINING, "trl/trainer/sft_config.py:SFTConfig"),
            trainer_class="trl.SFTTrainer",
            elsewhere={
                **_LENGTH,
                "max_seq_length": "model.max_seq_length",
                "assistant_only_loss": "data.train_on",
                "completion_only_loss": "data.train_on",
                "dataset_text_field": "data.columns",
                "dataset_kwargs": "data.format and data.train_on",
            },
            row_kinds=("messages", "prompt-completion", "text"),
            packs=True,
        ),
        Method(
            name="dpo",
            about="direct preference optimization: of two answers to a prompt the chosen one gets likelier",
            module="unsloth_accel.training.preference_methods",
            note="the reference is the model as training begins: the base model, or the adapter that training goes on "
            "from.",
            config_class="trl.DPOConfig",
            config_sources=(*_TRAINING, "trl/trainer/dpo_config.py:DPOConfig"),
            trainer_class="trl.DPOTrainer",
            elsewhere=_LENGTH,
            row_kinds=("preference",),
            needs_prompt=True,
            mean_over_rows=True,
            charts=_REWARDS,
            accuracy="rewards/accuracies",
            sequences_per_row=2,
            reference_passes=1,
            logits="tiled",
            pads=True,
        ),
        Method(
            name="kto",
            about="Kahneman-Tversky optimization: answers labelled good get likelier, bad ones less likely",
            module="unsloth_accel.training.preference_methods",
            note="the reference is the model as training begins: the base model, or the adapter that training goes on "
            "from.",
            config_class="trl.KTOConfig",
            config_sources=(*_TRAINING, "trl/trainer/kto_config.py:KTOConfig"),
            trainer_class="trl.KTOTrainer",
            elsewhere=_LENGTH,
            row_kinds=("unpaired-preference", "preference"),
            needs_prompt=True,
            mean_over_rows=True,
            # trl/trainer/kto_trainer.py: `kl = self.accelerator.gather_for_metrics(kl).mean().clamp(min=0)`
            depends_on_ranks="KTO estimates its KL term from the rows that all ranks have in one micro-batch, so it "
            "depends on how many these are.",
            charts={"rewards/margins": "Reward margin", "kl": "KL"},
            # trl/trainer/kto_trainer.py: "Actual (not effective) batch size must be > 1"
            least_per_device=2,
            # `_compute_loss`, same file: for its KL term both models read each prompt with another's answer too.
            reference_passes=2,
            other_passes=1,
            logits="tiled",
            pads=True,
        ),
        Method(
            name="reward",
            about="a reward model: one number for a text, higher for the chosen one of two",
            module="unsloth_accel.training.preference_methods",
            config_class="trl.RewardConfig",
            config_sources=(*_TRAINING, "trl/trainer/reward_config.py:RewardConfig"),
            trainer_class="trl.RewardTrainer",
            elsewhere=_LENGTH,
            row_kinds=("preference",),
            has_score=True,
            mean_over_rows=True,
            charts={"margin": "Reward margin", "accuracy": "Reward accuracy"},
            accuracy="accuracy",
            sequences_per_row=2,
            pads=True,
        ),
        Method(
            name="orpo",
            about="odds ratio preference optimization: fine-tuning on the chosen answer, and odds against the other",
            module="unsloth_accel.training.preference_methods",
            # trl/experimental/orpo/orpo_trainer.py: `chosen_nll_loss`
            note="experimental in TRL: its fields and its loss may change with any release. The loss over the chosen "
            "answers is a mean over a micro-batch's tokens, so that other rows per device train slightly otherwise.",
            config_class="trl.experimental.orpo.ORPOConfig",
            config_sources=(*_TRAINING, "trl/experimental/orpo/orpo_config.py:ORPOConfig"),
            trainer_class="trl.experimental.orpo.ORPOTrainer",
            elsewhere=_LENGTH,
            row_kinds=("preference",),
            needs_prompt=True,
            mean_over_rows=True,
            charts=_REWARDS,
            accuracy="rewards/accuracies",
            sequences_per_row=2,
            logits="whole",
            pads=True,
        ),
    ],
)
USUAL_METHOD = "sft"
"""Method of a run.yaml that names none."""
