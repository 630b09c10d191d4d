"""RunLog: what every rank did, as `rank-N.jsonl`, and what the run came to, as `summary.json`."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from ..adapters.hook_types import Arguments, Control, Json, State, TrainerCallback
from ..artifacts.log_file import write_or_tell
from ..artifacts.run_directory import SUMMARY
from .exchange import Exchange
from .memory_figures import memory_now
from .rank_log import RankLog
from .stragglers import Stragglers
from .throughput import Step, Throughput


class RunLog(TrainerCallback):
    """Writes a `start` line, a `step` line for each optimizer step as soon as it can be read, and `end`; shows at each
    log what other ranks warned of; and at the end of training lets rank 0 write `summary.json` beside.

    `log` is where this rank's lines go, `throughput` and `stragglers` the callbacks that measure. `strategy` is told;
    by default it is what runs.
    `exchange` is one that other callbacks use too; by default its own.
    """

    def __init__(
        self,
        log: RankLog,
        throughput: Throughput,
        stragglers: Stragglers | None = None,
        *,
        strategy: str | None = None,
        exchange: Exchange | None = None,
    ) -> None:
        self.log = log
        self._summary_file = log.path.with_name(SUMMARY) if log.path and log.rank == 0 else None
        self._untold = (exchange or Exchange()).join(lambda: [float(len(log.untold))])
        self._throughput = throughput
        self._stragglers = stragglers
        self._strategy = strategy
        self._started = 0.0
        self._first = 0
        throughput.listeners.append(self._steps)

    def on_train_begin(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        from ..adapters import rank_checks
        from ..adapters.real_batch import real_batch
        from ..adapters.saving import versions

        self._started = time.perf_counter()
        self._first = state.global_step
        if self._summary_file:  # of an attempt before this one
            with suppress(OSError):
                self._summary_file.unlink()
        self.log.write(
            "start",
            host=platform.node(),
            device=_device(args),
            versions=versions(),
            world_size=args.world_size,
            strategy=self._strategy or rank_checks.running(),
            model=getattr(getattr(kwargs.get("model"), "config", None), "name_or_path", None),
            batch=asdict(real_batch(args, kwargs.get("train_dataloader"))),
            step=state.global_step,
            steps=state.max_steps,
        )

    def on_log(self, args: Arguments, state: State, control: Control, logs: Json | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs and any(untold for (untold,) in self._untold(state.global_step) or ()):
            self.log.tell()
        self.log.tell_own()  # what callbacks before this one found at this very log

    def on_train_end(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        seconds = time.perf_counter() - self._started
        self.log.tell()
        self.log.write("end", steps=state.global_step - self._first, seconds=seconds, status="finished")
        summary = self._summary(args, state, seconds)  # every rank has written its end by then
        if self._summary_file:
            write_or_tell(self._summary_file, json.dumps(summary, indent=2) + "\n")

    def _steps(self, steps: Sequence[Step]) -> None:
        self.log.steps += len(steps)
        memory = memory_now()
        lines = [
            {
                "step": step.step,
                "seconds": step.seconds,
                "data_seconds": step.data,
                "compute_seconds": step.compute,
                "callbacks_seconds": step.callbacks,
                "wait_seconds": step.wait,
                "tokens": step.tokens,
                "padded_tokens": step.padded_tokens,
                **memory,
            }
            for step in steps
        ]
        self.log.write_all("step", lines)

    def _summary(self, args: Arguments, state: State, seconds: float) -> dict[str, Any]:
        """Summarise this process's part of the run, if it was resumed; a collective."""
        from ..hardware.ranks import of_every_rank

        total, memory = self._throughput.total, memory_now()
        own = {
            "rank": self.log.rank,
            "host": platform.node(),
            "device": _device(args),
            "seconds_median": round(total.median, 4),
            "data_share": round(total.share_of("data"), 4),
            "compute_share": round(total.share_of("compute"), 4),
            "callbacks_share": round(total.share_of("callbacks"), 4),
            "wait_share": round(total.share_of("wait"), 4) if total.waits else None,
            "tokens": total.tokens,
            "peak_gib": memory.get("allocated_gib"),
            "reserved_gib": memory.get("reserved_gib"),
            "host_gib": memory["host_gib"],
        }
        everyone = of_every_rank((own, total.seconds, total.flops, self.log.warnings))
        ranks = [rank for rank, *_ in everyone]
        stepping = max(in_steps for _, in_steps, *_ in everyone)
        tokens = sum(rank["tokens"] for rank in ranks)
        rate = tokens / stepping if stepping else 0.0
        mfu = self._throughput.mfu(sum(flops for _, _, flops, _ in everyone), stepping * len(ranks))
        return {
            "status": "finished",
            "message": "",
            "steps": state.global_step - self._first,
            "seconds": round(seconds, 3),
            "tokens": tokens,
            "tokens_per_second": round(rate, 1),
            "tokens_per_second_per_gpu": round(rate / len(ranks), 1),
            "mfu": None if mfu is None else round(mfu, 4),
            "mfu_why": self._throughput.mfu_why,
            "step_seconds_median": max(rank["seconds_median"] for rank in ranks),
            "ranks": ranks,
            "stragglers": self._stragglers.found if self._stragglers is not None else [],
            "warnings": [line for *_, warnings in everyone for line in warnings],
        }


def _device(args: Arguments) -> str:
    import torch

    kind = str(args.device.type)
    return torch.cuda.get_device_name(args.device) if kind == "cuda" else kind
