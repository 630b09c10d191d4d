"""AccelerateConfig: the YAML that `accelerate launch --config_file` reads, for any strategy and number of machines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from ..files import write_atomically
from ..strategies import STRATEGIES
from .promise import Promise, as_comment

Precision = Literal["no", "fp16", "bf16"]
NETWORK_PORT = 29500
"""Port of the rendezvous of several machines: torchrun's own default."""


@dataclass(frozen=True, kw_only=True)
class AccelerateConfig:
    """An accelerate config. Field names are ours; `to_dict` gives accelerate's.

    Settings that accelerate 1.15 accepts in YAML and then ignores are in `launch_flags`, not in `to_dict`.
    """

    strategy: str
    num_processes: int
    """Number of processes over all machines."""
    device: Literal["cuda", "cpu"] = "cuda"
    mixed_precision: Precision = "no"
    num_machines: int = 1
    machine_rank: int = 0
    """Rank of this machine; 0 is the one that `main_process_ip` names."""
    main_process_ip: str | None = None
    main_process_port: int | None = None
    """Port of the rendezvous; None takes any free port on one machine, 29500 on several."""
    rdzv_backend: Literal["static", "c10d"] = "static"
    """Torchrun's rendezvous backend; `c10d` assigns the machine ranks itself and survives a restarted machine."""
    decoder_layers: tuple[str, ...] = ("LlamaDecoderLayer",)
    """Classes that FSDP wraps as one unit each. Accelerate's own guess reads `_no_split_modules`, which names vision
    blocks too and is empty for some models; then the whole model is one unit and nothing is saved."""
    load_in_4bit: bool = False
    reshard_after_forward: bool = True
    """Free each block's gathered weights after its forward (fsdp2); False keeps them until its backward."""

    def to_dict(self) -> dict[str, Any]:
        """Return keys and values of accelerate 1.15's `ClusterConfig` (accelerate/commands/config/config_args.py)."""
        values: dict[str, Any] = {
            "compute_environment": "LOCAL_MACHINE",
            "distributed_type": STRATEGIES[self.strategy].distributed_type,
            "use_cpu": self.device == "cpu",
            "num_machines": self.num_machines,
            "machine_rank": self.machine_rank,
            "num_processes": self.num_processes,
            "mixed_precision": self.mixed_precision,
        }
        if self.num_machines > 1:
            values["main_process_ip"] = self.main_process_ip or "MAIN_MACHINE"
        # 0: any free port, so that two runs on one machine don't meet on 29500. Several machines must agree on one.
        default_port = NETWORK_PORT if self.num_machines > 1 else 0
        values["main_process_port"] = default_port if self.main_process_port is None else self.main_process_port
        values |= {"main_training_function": "main", "debug": False}
        if values["distributed_type"] == "FSDP":
            values["fsdp_config"] = self._fsdp_config()
        return values

    @property
    def launch_flags(self) -> tuple[str, ...]:
        """Return the command-line flags for settings that accelerate ignores in YAML.

        The launcher takes a YAML value only where its own flag is None, and these flags default to something else
        (accelerate/commands/launch.py: `_validate_launch_command`).
        """
        return ("--rdzv_backend", "c10d") if self.num_machines > 1 and self.rdzv_backend == "c10d" else ()

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment variables that choose the strategy where accelerate's config has no key for it."""
        return STRATEGIES[self.strategy].variables(in_4bit=self.load_in_4bit)

    def _fsdp_config(self) -> dict[str, Any]:
        own = STRATEGIES[self.strategy].fsdp_config
        values: dict[str, Any] = {
            # Without it accelerate takes 1.
            "fsdp_version": own["fsdp_version"],
            # Without it the whole model is one unit: Unsloth declines its fused kernels, and nothing is saved.
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_transformer_layer_cls_to_wrap": ",".join(self.decoder_layers),
            # With SHARDED_STATE_DICT, the default for version 2, save_model writes no adapter and says nothing.
            "fsdp_state_dict_type": "FULL_STATE_DICT",
            # True, the default, would move the model to meta and broadcast it from rank 0: Unsloth's patched modules
            # don't survive that, and 4-bit weights are left out of it anyway.
            "fsdp_cpu_ram_efficient_loading": False,
            # Unsloth checkpoints activations itself; both together raise in the Trainer.
            "fsdp_activation_checkpointing": False,
            "fsdp_offload_params": False,
        }
        values |= own
        if "fsdp_reshard_after_forward" in own:
            values["fsdp_reshard_after_forward"] = self.reshard_after_forward
        return values

    def to_yaml(self, comment: str = "", promised: Promise | None = None) -> str:
        """The file's text, with `comment` at its head, and what accelerate has no key for in the lines after it."""
        header = "".join(f"# {line}\n" if line else "#\n" for line in comment.splitlines())
        header += as_comment(self.environment, promised)
        return header + yaml.safe_dump(self.to_dict(), sort_keys=False)

    def write(self, path: str | Path, comment: str = "", promised: Promise | None = None) -> None:
        """Write `to_yaml` to `path`; raises `OSError` where that fails."""
        write_atomically(path, self.to_yaml(comment, promised))


def launch_lines(config: AccelerateConfig, file: str, script: str = "my_script.py") -> str:
    """Return the commands that launch `script` with `config` in `file`, one per machine, with the flags it needs."""
    variables = "".join(f"{name}={value} " for name, value in config.environment.items())
    flags = "".join(f" {flag}" for flag in config.launch_flags)
    ranks = [f" --machine_rank {rank}" for rank in range(config.num_machines)] if config.num_machines > 1 else [""]
    lines = [f"    {variables}accelerate launch --config_file {file}{flags}{rank} {script}" for rank in ranks]
    if config.num_machines > 1 and not config.main_process_ip:
        lines += ["", "Replace MAIN_MACHINE by the address of the first machine."]
    return "\n".join(lines)
