"""Pushing a run's adapter to the Hub: at its end, and where `hub_strategy` asks for it with each checkpoint.

The Trainer's own push (transformers 5.17) makes the repository when the Trainer is made, so that a refused token ends
in a traceback once the model is loaded; it uploads all of output_dir, with logs and the description of the run, into
which it copies the adapter before; it does so at checkpoints alone; it waits for an upload before training ends, with
the adapter in memory; and what fails in the background is told to nobody. So a launched run's Trainer isn't told of
push_to_hub, and what `training` says of it is done here, with `HfApi.upload_folder`. Uploads are rank 0's, in a thread
that nothing waits for while it trains; the last one is made when the ranks have nothing more to tell one another.
"""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import thread as executors
from fnmatch import fnmatch
from glob import escape
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from ..artifacts.checkpoints import RECORD
from ..artifacts.own_files import made_in
from ..artifacts.run_directory import ACCELERATE_YAML, PLANNED_YAML, RunDirectory
from ..config.push_target import PushTarget
from ..errors import first_line
from .hook_types import Arguments, Control, State, TrainerCallback

if TYPE_CHECKING:
    from transformers import Trainer

NOT_TO_LOAD = (
    *(PLANNED_YAML, ACCELERATE_YAML, RECORD),
    *("optimizer*", "scheduler.pt", "scaler.pt", "rng_state*", "trainer_state.json", "training_args.bin"),
)
"""What lies beside an adapter and isn't needed to load it: the description of a run, with paths of its machine, and in
checkpoints the state of its training."""
PATIENCE = 600.0
"""Seconds after which the last push is given up, and one more for each of `SLOWEST` bytes: huggingface_hub sets itself
no limit."""
SLOWEST = 2**17
"""Bytes per second of the slowest line that is waited for."""
AGAIN = (2.0, 10.0)
"""Seconds after which the last push is tried again where the Hub failed: huggingface_hub tries a commit once."""


def push(directory: Path, target: PushTarget, message: str, *, into: str | None = None) -> str:
    """Upload what a run made in `directory`, its adapter or a checkpoint, as a commit with `message`; returns the URL.

    Into the root of the repository goes what loads the adapter; with `into`, a folder there, all that the run made.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    disable_progress_bars()  # they would cut through the lines of the training that goes on
    api = HfApi(token=target.token)
    repository = api.create_repo(target.repository, private=target.private, exist_ok=True).repo_id
    if target.revision and not target.revision.startswith("refs/"):
        api.create_branch(repository, branch=target.revision, exist_ok=True)
    names = [path.relative_to(directory).as_posix() for path in made_in(directory)]
    chosen = names if into else [name for name in names if not any(fnmatch(name, other) for other in NOT_TO_LOAD)]
    api.upload_folder(
        repo_id=repository,
        folder_path=directory,
        path_in_repo=into,
        allow_patterns=[escape(name) for name in chosen],
        commit_message=message,
        revision=target.revision,
    )
    return f"{api.endpoint}/{repository}" + (f"/tree/{target.revision}" if target.revision else "")


def command(directory: Path, target: PushTarget) -> str:
    """Return the command by which the user pushes the adapter in `directory` again."""
    words = ["hf", "upload", target.repository, str(directory), "."]
    words += ["--private"] if target.private else []
    words += ["--revision", target.revision] if target.revision else []
    for file in made_in(directory):  # and none of the user's own
        if file.name not in (PLANNED_YAML, ACCELERATE_YAML, RECORD):
            words += ["--include", file.relative_to(directory).as_posix()]
    return shlex.join(words)


class Pushes(TrainerCallback):
    """The pushes of one run. Those of checkpoints begin when one is whole, and never hold up or end the training."""

    def __init__(self, target: PushTarget, warn: Callable[[str, int], None]) -> None:
        """`warn` tells of a push that failed, and of the step after which that was seen."""
        self.target, self._warn = target, warn
        self.url: str | None = None
        """Address of what was pushed last."""
        self._last: threading.Thread | None = None
        _before_threads_are_waited_for(self._let_go)
        self._faults: SimpleQueue[str] = SimpleQueue()

    def on_save(self, args: Arguments, state: State, control: Control, **kwargs: object) -> None:
        checkpoint = RunDirectory(args.output_dir).checkpoint(state.global_step)
        busy = self._last is not None and self._last.is_alive() and not self.target.always
        if not state.is_world_process_zero or self.target.strategy == "end" or busy or not made_in(checkpoint):
            return
        folders = {"checkpoint": "last-checkpoint", "all_checkpoints": checkpoint.name}
        into = folders.get(self.target.strategy)
        self._begin(checkpoint, f"Training in progress, step {state.global_step}", [None, *([into] if into else [])])

    def on_log(self, args: Arguments, state: State, control: Control, **kwargs: object) -> None:
        self._tell(state.global_step)

    def _tell(self, step: int) -> None:
        for fault in self._found():
            self._warn(f"{fault}; training goes on, and its end pushes again.", step)

    def _found(self) -> list[str]:
        """Return the faults since the last call."""
        return [self._faults.get() for _ in range(self._faults.qsize())]

    def finish(self, adapter: Path, step: int) -> dict[str, Any]:
        """Push the adapter, after what is on its way; returns what results.json has of it: `repository`, `url` (None
        where nothing was pushed), and `error`, of which is warned too, where the adapter wasn't. Rank 0 alone calls it.
        """
        patience = PATIENCE + sum(file.stat().st_size for file in made_in(adapter)) / SLOWEST
        if self._last is not None:
            self._last.join(patience)
        self._tell(step)
        last = self._begin(adapter, "End of training", [None], AGAIN)
        last.join(patience)
        faults = self._found()
        if last.is_alive():
            faults = [f"{adapter.name} was not pushed: the Hub has not answered for {patience:.0f} s"]
        found: dict[str, Any] = {"repository": self.target.repository, "url": self.url}
        if faults:
            found["error"] = f"{faults[0]}. It lies whole in {adapter}. Fix: {command(adapter, self.target)}"
            self._warn(found["error"], step)
        return found

    def _begin(
        self, directory: Path, message: str, places: Sequence[str | None], again: Sequence[float] = ()
    ) -> threading.Thread:
        before = self._last

        def work() -> None:
            if before is not None:
                before.join()
            for pause in (*again, None):
                try:
                    for into in places:
                        self.url = push(directory, self.target, message, into=into)
                    return
                except Exception as error:  # its kinds differ by version and transport; none is worth a training
                    if pause is None or _is_refusal(error):
                        told = f"{type(error).__name__}: {first_line(error)}"
                        self._faults.put(f"{directory.name} was not pushed to {self.target.repository}: {told}")
                        return
                    time.sleep(pause)

        self._last = threading.Thread(target=work, name="unsloth-accel-push", daemon=True)
        self._last.start()
        return self._last

    def _let_go(self) -> None:
        """Let this process end while an upload is on its way: Python waits for every executor's threads, also for those
        that ours have begun, which are daemons as ours are."""
        if self._last is not None and self._last.is_alive():
            waited_for: Any = getattr(executors, "_threads_queues", {})
            for worker in [one for one in waited_for if one.daemon]:
                del waited_for[worker]


def _before_threads_are_waited_for(call: Callable[[], None]) -> None:
    # Python (3.10 to 3.14) has no public way: `atexit` comes later. What is registered last is called first.
    register = getattr(threading, "_register_atexit", None)
    if register is not None:
        register(call)


def _is_refusal(error: Exception) -> bool:
    """Return whether the Hub would say the same again."""
    status = getattr(getattr(error, "response", None), "status_code", 500)
    return 400 <= status < 500 and status not in (408, 429)


def pushes_of(trainer: Trainer) -> Pushes | None:
    """Return the pushes that `trainer` makes on this rank; None where it makes none."""
    found = (one for one in trainer.callback_handler.callbacks if isinstance(one, Pushes))
    return next(found, None) if trainer.is_world_process_zero() else None
