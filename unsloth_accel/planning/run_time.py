"""RunTime: the steps of a whole run, the hours they take and what these cost."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

from ..artifacts.resume_facts import USUAL_EPOCHS
from ..config.run_config import RunConfig
from ..data.length_estimate import RowLengths
from ..errors import counted
from .batch import Batch
from .groups import groups
from .speed_estimate import Speed


@dataclass(frozen=True, kw_only=True)
class RunTime:
    """Training alone: without loading, evaluation and saving."""

    steps: int
    counted: str
    """Words on where the steps come from."""
    hours: float | None
    """None where no speed can be estimated."""
    gpus: int
    """GPUs that are paid for: all of the hardware, used or not."""
    price: float | None = None
    """Price of one GPU for an hour, in any currency."""

    @property
    def cost(self) -> float | None:
        return None if self.price is None or self.hours is None else self.price * self.gpus * self.hours

    def to_dict(self) -> dict[str, Any]:
        hours, cost = self.hours, self.cost
        return {
            "steps": self.steps,
            "estimated_hours": None if hours is None else round(hours, 4),
            "price_per_gpu_hour": self.price,
            "estimated_cost": None if cost is None else round(cost, 4),
        }

    def __str__(self) -> str:
        text = f"{counted(self.steps, 'step')} ({self.counted})"
        if self.hours is None:
            return text
        text += f", about {hours_text(self.hours)} of training"
        gpus = counted(self.gpus, "GPU")
        return text if self.cost is None else f"{text}, {self.cost:,.2f} for {gpus} at {self.price:,.2f} an hour each"


def hours_text(hours: float) -> str:
    """Return hours as days, hours, minutes or seconds, whichever reads best."""
    for unit, seconds in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if hours * 3600 >= 2 * seconds:
            return f"{hours * 3600 / seconds:,.1f} {unit}"
    return f"{hours * 3600:.0f} seconds"


def run_time(
    run: RunConfig, batch: Batch, speed: Speed | None, lengths: RowLengths | None, gpus: int, price: float | None
) -> RunTime | None:
    """Estimate the time of the whole `run`; None where its number of steps is unknown."""
    found = steps_of(run, batch, lengths)
    if found is None:
        return None
    steps, words = found
    hours = speed.step_seconds * steps / 3600 if speed else None
    return RunTime(steps=steps, counted=words, hours=hours, gpus=gpus, price=price)


def steps_of(run: RunConfig, batch: Batch, lengths: RowLengths | None) -> tuple[int, str] | None:
    """Return the optimizer steps of the whole `run`, and where they come from; None where that is unknown."""
    most = run.training.get("max_steps") or 0
    if most > 0:
        return int(most), "training.max_steps"
    if lengths is None or not lengths.total:
        return None
    epochs = run.training.get("num_train_epochs", USUAL_EPOCHS)
    rows, about = lengths.total, "" if lengths.total_known else "about "
    words = f"{about}{counted(rows, 'row')}"
    if run.training.get("packing"):
        rows = ceil(rows * lengths.mean / run.model.max_seq_length)
        words += f", about {rows:,} packed"
    if written := groups(run, batch):
        epoch = written.steps(rows)
        return max(1, ceil(epoch * epochs)), f"{epochs:g} epoch{'s' * (epochs != 1)} of {words}"
    each = rows // batch.global_size if run.training.get("dataloader_drop_last") else ceil(rows / batch.global_size)
    return max(1, ceil(each * epochs)), f"{epochs:g} epoch{'s' * (epochs != 1)} of {words}"
