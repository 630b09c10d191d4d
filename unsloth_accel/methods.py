"""The training methods: one record each, with everything in which one differs from another.

Classes are named as import paths in text, so that nothing heavy is imported. A method of your own: `METHODS.add(
Method(…))`, in a module that UNSLOTH_ACCEL_PLUGINS names, and a module as `Method.module` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .registry import Registry

Logits = Literal["fused", "scored", "tiled", "whole"]
"""What a loss has of the vocabulary's logits at once: a chunk of Unsloth's fused cross entropy, or of its GRPO loss,
which scores completions; a tile from which the answers' log-probabilities are summed up (TRL's `fused_lm_head`, with
Unsloth's kernel); or those of all tokens."""


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
    others_on_gpus: tuple[str, ...] = ()
    """Fields that decide what is learned and that have other defaults in Unsloth's config of this method than in TRL's,
    beside those of `config.trainer_settings.OTHERS_ON_GPUS`."""
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    """Fields of its config that have one place of their own in run.yaml; set twice they could disagree."""
    callbacks: tuple[str, ...] = ()
    """Import paths of more callbacks than every run has, made without arguments."""
    watch: str = ""
    """Import path of a function that is given the trainer, the run and its log, before the callbacks of every run."""

    # Its rows.
    row_kinds: tuple[str, ...]
    """The kinds of canonical rows that it trains (`data.formats.Kind`)."""
    needs_prompt: bool = False
    """Whether it takes preferences as answers to a prompt; otherwise as whole texts or chats."""

    packs: bool = False
    """Whether its trainer lays several rows into one of full length (TRL's `packing`)."""
    generates: bool = False
    """Whether the model writes completions to prompts, several to each, which are scored; a row of a batch is then a
    completion."""

    # Its model.
    has_score: bool = False
    """Whether a head that gives a text one number takes the place of the language model's head."""

    # Its loss and figures.
    mean_over_rows: bool = False
    """Whether the loss is a mean over the rows of a micro-batch; otherwise a step's tokens weigh alike, wherever their
    rows are."""
    sums_answers: bool = False
    """Whether its loss goes by sums of log-probabilities over whole answers, of which bfloat16 rounds each otherwise in
    every run: losses then differ more than those of a mean over tokens."""
    loss_scale: float = 0.0
    """Size that a loss counts as at least, where it passes through 0 or falls towards it: differences of losses are
    taken as shares of it."""
    depends_on_ranks: str = ""
    """Sentence on why several processes don't train quite as one does; empty where they do."""
    depends_with: Mapping[str, str] = field(default_factory=dict)
    """Such sentences by the setting that makes it so: `name=value`, or `name` for any value that isn't zero or none."""
    charts: Mapping[str, str] = field(default_factory=dict)
    """Titles of the figures, beside the loss, that show what it learns, by their names in the Trainer's log."""
    accuracy: str = ""
    """Name in the Trainer's log of the share of pairs in which the chosen answer wins; empty where there is none."""
    score: str = ""
    """Name in the Trainer's log of the figure that tells held-out rows better than the loss; empty where none does."""

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
_FALLEN = 0.25
"""Loss of preferences below which 5 % of it are less than the 0.012 by which two runs of one H200 differ
(docs/preferences.md: DPO)."""
_REWARDS = {"rewards/margins": "Reward margin", "rewards/accuracies": "Reward accuracy"}
_GENERATED = {
    "max_prompt_length": "model.max_seq_length and training.max_completion_length",
    "reward_weights": "rewards.functions",
    "reward_funcs": "rewards.functions",
}
_COMPLETIONS = {
    "reward": "Reward",
    "frac_reward_zero_std": "Groups without a signal",
    "completions/mean_length": "Mean tokens of a completion",
    "completions/clipped_ratio": "Completions cut at the limit",
    "kl": "KL to the reference",
    "sampling/importance_sampling_ratio/mean": "Importance ratio",
}
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
            sums_answers=True,
            loss_scale=_FALLEN,
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
            sums_answers=True,
            loss_scale=_FALLEN,
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
        Method(
            name="grpo",
            about="group relative policy optimization: of several completions to a prompt those with a higher reward "
            "than the others get likelier",
            module="unsloth_accel.training.grpo",
            # unsloth/models/rl.py: "use base model as reference, not SFT/LoRA model"
            note="with beta above 0 the reference is the base model, also where training goes on from an adapter.",
            config_class="trl.GRPOConfig",
            config_sources=(*_TRAINING, "trl/trainer/grpo_config.py:GRPOConfig"),
            trainer_class="trl.GRPOTrainer",
            # unsloth/models/rl.py: `if trainer_file == "grpo_trainer"`. A mixture's `router_aux_loss_coef` is left
            # alone: Unsloth's loss has no such term.
            others_on_gpus=("beta", "loss_type", "mask_truncated_completions", "vllm_importance_sampling_correction"),
            elsewhere=_GENERATED,
            row_kinds=("prompt", "messages"),
            needs_prompt=True,
            generates=True,
            loss_scale=1.0,  # advantages, as scale_rewards makes them
            # trl/trainer/grpo_trainer.py: `_compute_loss`
            depends_with={
                "loss_type=bnpo": "loss_type=bnpo divides by the tokens of one process's micro-batch, so the same "
                "completions train otherwise on another number of GPUs or with other rows per device; dapo, TRL's "
                "usual, divides by those of all.",
                "entropy_coef": "entropy_coef adds a mean over the tokens of one process's micro-batch, which depends "
                "on the number of GPUs and rows per device.",
                "use_adaptive_entropy": "use_adaptive_entropy adds a mean over the tokens of one process's "
                "micro-batch, which depends on the number of GPUs and rows per device.",
            },
            charts=_COMPLETIONS,
            logits="scored",
            score="reward",
            watch="unsloth_accel.callbacks.completions.watch_completions",
        ),
        Method(
            name="rloo",
            about="REINFORCE leave one out: of several completions to a prompt those with a higher reward than the "
            "others' mean get likelier",
            module="unsloth_accel.training.grpo",
            note="the reference of beta (0.05, if nothing is said) is the base model, also where training goes on from "
            "an adapter. Compared with one process on two CPU processes only.",
            config_class="trl.RLOOConfig",
            config_sources=(*_TRAINING, "trl/trainer/rloo_config.py:RLOOConfig"),
            trainer_class="trl.RLOOTrainer",
            elsewhere=_GENERATED,
            row_kinds=("prompt", "messages"),
            needs_prompt=True,
            generates=True,
            reference_passes=1,
            charts={name: title for name, title in _COMPLETIONS.items() if not name.startswith("sampling/")},
            score="reward",
            watch="unsloth_accel.callbacks.completions.watch_completions",
            mean_over_rows=True,
            loss_scale=1.0,  # advantages, as normalize_advantages makes them
        ),
    ],
)
USUAL_METHOD = "sft"
"""Method of a run.yaml that names none."""


def method_or_usual(name: object) -> Method:
    """Return the method of that name; the usual one where nobody knows it, which is told where a run is read."""
    return METHODS.get(name) or METHODS[USUAL_METHOD]
