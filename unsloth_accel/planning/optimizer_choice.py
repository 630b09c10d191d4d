"""The optimizer of a plan, by name."""

from __future__ import annotations

from dataclasses import replace

from ..config.run_config import RunConfig
from ..errors import Problem
from ..strategies import STRATEGIES
from .optimizers import OPTIMIZER, needs_gpu, optimizer_for
from .ways import Refused, Way


def with_optimizer(run: RunConfig, strategy: str, device: str, reasons: list[str]) -> RunConfig:
    """Return `run` with its optimizer by name, the same one under every strategy where nothing is said.

    Raises `Refused` for one that Unsloth would replace on a CPU by another kind.
    """
    asked = run.training.get("optim")
    if device == "cpu":
        return _with_cpu_optimizer(run, asked, reasons) if asked and needs_gpu(asked) else run
    taken = optimizer_for(strategy, asked)
    if taken == asked:
        return run
    why = "the same steps under every strategy"
    if asked:
        cannot = "save the state" if STRATEGIES[strategy].steps_bitsandbytes else "step the shards"
        why = f"{strategy} can't {cannot} of {asked}"
    reasons.append(f"training.optim={taken}: {why}.")
    return replace(run, training=run.training | {"optim": taken})


def _with_cpu_optimizer(run: RunConfig, asked: str, reasons: list[str]) -> RunConfig:
    if not asked.removeprefix("paged_").startswith("adamw_"):
        consequence = "needs a GPU: on a CPU Unsloth would take AdamW in its place, which is another optimizer and "
        consequence += "takes another learning rate."
        problem = Problem(key="training.optim", value=asked, consequence=consequence, fix="")
        raise Refused(problem, [[Way(changes={"training.optim": OPTIMIZER})]])
    reasons.append(f"training.optim={OPTIMIZER}: {asked} needs a GPU, and Unsloth takes this AdamW on a CPU.")
    return replace(run, training=run.training | {"optim": OPTIMIZER})
