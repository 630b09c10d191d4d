"""Trainers of TRL whose model writes the completions that it is trained on: GRPO and its kin."""

from __future__ import annotations

from typing import Any

from ..capabilities.probe import available
from ..errors import ConfigError, Problem


def writes_completions(trainer: Any) -> bool:
    """Return whether `trainer` has its model write completions, several to a prompt, and scores them."""
    return available("trainers that write completions") and hasattr(trainer, "_generate_and_score_completions")


def refuse_asynchronous(trainer: Any) -> None:
    """Raise `ConfigError` for TRL's AsyncGRPOTrainer.

    Its rank 0 alone takes completions from a server and deals them out in micro-batches of its own making
    (trl/experimental/async_grpo/async_grpo_trainer.py: `RolloutQueueDataset`), while what is checked and counted here
    is what each rank's loader gives.
    """
    if not any(base.__name__.endswith("AsyncGRPOTrainer") for base in type(trainer).__mro__):
        return
    consequence = (
        "AsyncGRPOTrainer can't be adapted: its rank 0 deals out what a server wrote, so the rows of a rank are none "
        "that could be compared, counted or gone on with, and nothing of it was tried here."
    )
    fix = "trl.GRPOTrainer; or launch the script as it is, without adapt"
    raise ConfigError(Problem(key="trainer", value=type(trainer).__name__, consequence=consequence, fix=fix))


def ends_and_pads(tokenizer: Any) -> str:
    """Return a warning where completions end with the token that pads them; empty elsewhere."""
    if tokenizer.pad_token_id != tokenizer.eos_token_id:
        return ""
    # unsloth_zoo/rl_replacements.py: `create_completion_attention_mask`
    return (
        f"{tokenizer.eos_token} ends completions and pads them, too: on GPUs Unsloth's loss leaves it out, so the "
        "model does not learn where to end. Fix: give the tokenizer another pad_token before the trainer is made"
    )


def pad_apart(tokenizer: Any) -> str:
    """Give `tokenizer` another token to pad with where completions end with that one, before a trainer is made; returns
    what was done, or the warning of `ends_and_pads` where it has no other; empty where there is nothing to do."""
    warning = ends_and_pads(tokenizer)
    ends = tokenizer.eos_token
    other = next((one for one in (tokenizer.unk_token, tokenizer.bos_token) if one and one != ends), None)
    if not warning or other is None:
        return warning
    tokenizer.pad_token = other
    return f"{other} pads completions from here on: {ends}, which did, ends them, and is to be learned"


def text_of(said: Any) -> str:
    """Return a prompt or a completion as text: of messages what they say, one after another."""
    if isinstance(said, str):
        return said
    return "\n\n".join(str(message.get("content") or "") for message in said)
