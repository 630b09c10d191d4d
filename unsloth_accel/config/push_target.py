"""Where a run's adapter is pushed to: the fields of `training` that the Trainer's push has, read once for all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .run_config import RunConfig

STRATEGIES = ("end", "every_save", "checkpoint", "all_checkpoints")
"""Values of hub_strategy (transformers 5.17, `HubStrategy`)."""


@dataclass(frozen=True, kw_only=True)
class PushTarget:
    """A repository of the Hub, and when what is pushed there."""

    repository: str
    """`owner/name`, or a name in the namespace of the token's owner."""
    token: str | None
    """None: HF_TOKEN or the cached login."""
    private: bool | None
    revision: str | None
    """Branch; it is made where there is none."""
    strategy: str
    """One of `STRATEGIES`."""
    always: bool
    """Whether a checkpoint is also pushed while the one before it is still on its way."""

    @classmethod
    def of(cls, run: RunConfig) -> PushTarget | None:
        """Return where `run` is pushed to; None where it isn't."""
        said = run.training
        if not said.get("push_to_hub"):
            return None
        return cls(
            repository=said.get("hub_model_id") or Path(run.output_dir).absolute().name,
            token=said.get("hub_token") or None,
            private=said.get("hub_private_repo"),
            revision=said.get("hub_revision"),
            strategy=str(said.get("hub_strategy") or "every_save"),
            always=bool(said.get("hub_always_push")),
        )
