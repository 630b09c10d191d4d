"""Record: the adapter before training, and each rank's own figures, written inside each process for `verify`."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..adapters import environment, rank_checks
from ..adapters.fsdp1 import is_fsdp1
from ..adapters.fsdp2.peer_fetch.fetch import mapped_bytes, shared_bytes
from ..adapters.hook_types import Arguments, Control, State, TrainerCallback
from ..adapters.recorded_completions import record_or_replay
from ..artifacts.run_directory import START_RECORD, rank_record, start_of
from ..files import write_atomically
from ..strategies import STRATEGIES


class Record(TrainerCallback):
    """Writes into `directory` the adapter as training starts, and from each rank its memory and its adapter's hash.

    Add it before `PeakMemory`, which sets torch's peak back. Memory is in GiB, per rank: `loading` is the peak up to
    the first step (sharding included), `training` the peak after it, both of torch's allocator on a GPU; `host_…` is
    the process's resident memory, `mapped` what fsdp2 maps instead of copying. The hash is of the whole adapter, so it
    takes part in all ranks' gathers.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.figures: dict[str, Any] = {"rank": environment.rank()}

    def on_train_begin(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        self._note_memory("loading", kwargs["model"])
        promised = environment.promise()
        strategy = STRATEGIES.get(promised.strategy) if promised else None
        if strategy is None or not strategy.flattens:  # otherwise its parameters are pieces without shape
            self._save_start(kwargs["model"])
        _forget_host_peak()

    def on_train_end(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        self._note_memory("training", kwargs["model"])
        trained = rank_checks.trainable(kwargs["model"])
        flat = is_fsdp1(kwargs["model"])  # each rank holds pieces of its own
        self.figures["sharded"] = flat or any(map(rank_checks.is_sharded, trained.values()))
        if not flat:
            self.figures["adapter"] = _hash(trained)
        write_atomically(rank_record(self.directory, self.figures["rank"]), json.dumps(self.figures, indent=1) + "\n")

    def _note_memory(self, phase: str, model: Any) -> None:
        import torch

        if torch.cuda.is_available():
            self.figures["gpu"] = torch.cuda.get_device_name()
            shared = shared_bytes(model) if phase == "training" else 0  # before, the allocator counted it
            if phase == "training" and mapped_bytes(model):
                self.figures["mapped"] = round(mapped_bytes(model) / 2**30, 3)
            self.figures[phase] = round((torch.cuda.max_memory_allocated() + shared) / 2**30, 3)
        peak = _host_peak()
        if peak is not None:
            self.figures[f"host_{phase}"] = round(peak / 2**30, 3)

    def _save_start(self, model: Any) -> None:
        """Save the adapter under the names that PEFT saves it with."""
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        whole = {name: rank_checks.whole(tensor).cpu() for name, tensor in rank_checks.trainable(model).items()}
        if self.figures["rank"]:
            return
        inner = model.module if hasattr(model, "module") else model
        named = get_peft_model_state_dict(inner, state_dict={k.removeprefix("module."): v for k, v in whole.items()})
        self.directory.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in named.items()}, str(start_of(self.directory)))


def _hash(tensors: Any) -> str:
    import torch

    digest = hashlib.sha256()
    for tensor in tensors.values():
        digest.update(rank_checks.whole(tensor).contiguous().view(-1).view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()


def _host_peak() -> int | None:
    """Return the most bytes that this process held since its start, or since `_forget_host_peak`."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def _forget_host_peak() -> None:
    with suppress(OSError):  # Linux alone has it
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def add_if_asked(trainer: Any) -> None:
    """Add a `Record`, and keep or take the completions, where `verify` launched this process."""
    record_or_replay(trainer)
    directory = os.environ.get(START_RECORD)
    if directory:
        trainer.add_callback(Record(directory))
