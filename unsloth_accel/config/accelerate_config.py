"""AccelerateConfig: the YAML that `accelerate launch --config_file` reads, for any strategy and number of machines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from ..adapters.environment import as_comment
from ..files import write_atomically
from .promise import Strategy as Strategy

STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
SHARDING: tuple[Strategy, ...] = ("fsdp2", "fsdp2_native", "fsdp1")
"""Strategies whose processes divide the model's weights among them."""
Precision = Literal["no", "fp16", "bf16"]
NETWORK_PORT = 29500
"""Where the machines of a run meet: torchrun's own default."""


@dataclass(frozen=True, kw_only=True)
class AccelerateConfig:
    """An accelerate config. Field names are ours; `to_dict` gives accelerate's.

    What accelerate 1.15 accepts in YAML and then ignores is not in `to_dict`: `launch_flags` has it.
    """

    strategy: Strategy
    num_processes: int
    """Over all machines."""
    device: Literal["cuda", "cpu"] = "cuda"
    mixed_precision: Precision = "no"
    num_machines: int = 1
    machine_rank: int = 0
    """This machine's number; 0 is the one that `main_process_ip` names."""
    main_process_ip: str | None = None
    main_process_port: int | None = None
    """None: any free port on one machine, 29500 on several."""
    rdzv_backend: Literal["static", "c10d"] = "static"
    """How several machines find each other; `c10d` numbers them itself and outlives a restarted one."""
    decoder_layers: tuple[str, ...] = ("LlamaDecoderLayer",)
    """Classes that FSDP wraps as one unit each. Accelerate's own guess reads `_no_split_modules`, which names vision
    blocks too and is empty for some models; then the whole model is one unit and nothing is saved."""
    load_in_4bit: bool = False
    reshard_after_forward: bool = True
    """fsdp2: free each block's gathered weights after its forward; False keeps them until its backward."""

    def to_dict(self) -> dict[str, Any]:
        """Keys and values of accelerate 1.15's `ClusterConfig` (accelerate/commands/config/config_args.py)."""
        values: dict[str, Any] = {
            "compute_environment": "LOCAL_MACHINE",
            "distributed_type": self._distributed_type(),
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
        """What must stand on the command line because accelerate ignores it in YAML.

        The launcher takes a YAML value only where its own flag is None, and these flags default to something else
        (accelerate/commands/launch.py: `_validate_launch_command`).
        """
        return ("--rdzv_backend", "c10d") if self.num_machines > 1 and self.rdzv_backend == "c10d" else ()

    @property
    def environment(self) -> dict[str, str]:
        """Variables that choose Unsloth's own sharding, which accelerate's config can't express.

        UNSLOTH_FSDP2 selects it under MULTI_GPU; without UNSLOTH_FSDP2_BACKEND a plain loop's Accelerator would shard
        through accelerate's plugin instead (unsloth/fsdp2_launch.py). UNSLOTH_FSDP2_LAYOUT: without it Unsloth
        keeps all weights on every GPU where they fit, which is DDP under another name. UNSLOTH_FSDP2_SHARDED_LOAD lets
        each rank load only its part, without which every GPU must hold the whole model while loading; Unsloth has it
        for 16-bit weights only (unsloth/models/fsdp2_load.py).
        """
        if self.strategy != "fsdp2_native":
            return {}
        variables = {"UNSLOTH_FSDP2": "1", "UNSLOTH_FSDP2_BACKEND": "native", "UNSLOTH_FSDP2_LAYOUT": "sharded"}
        return variables if self.load_in_4bit else variables | {"UNSLOTH_FSDP2_SHARDED_LOAD": "1"}

    def _distributed_type(self) -> str:
        if self.strategy == "single":
            return "NO"
        # MULTI_GPU on a CPU too: it is the only type for which `accelerate launch` starts several processes
        # without MPI. MULTI_CPU would start one and say nothing (accelerate/commands/launch.py).
        return "FSDP" if self.strategy in ("fsdp2", "fsdp1") else "MULTI_GPU"

    def _fsdp_config(self) -> dict[str, Any]:
        version = 2 if self.strategy == "fsdp2" else 1
        values: dict[str, Any] = {
            # Without it accelerate takes 1.
            "fsdp_version": version,
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
        if version == 2:
            return values | {"fsdp_reshard_after_forward": self.reshard_after_forward}
        return values | {
            # `fsdp_reshard_after_forward: FULL_SHARD`, which `accelerate config` writes, is ignored for version 1.
            "fsdp_sharding_strategy": "FULL_SHARD",
            "fsdp_backward_prefetch": "BACKWARD_PRE",
            "fsdp_forward_prefetch": False,
            # LoRA trains some parameters of a unit and not others, which needs the original ones.
            "fsdp_use_orig_params": True,
            "fsdp_sync_module_states": True,
        }

    def to_yaml(self, comment: str = "") -> str:
        header = "".join(f"# {line}\n" if line else "#\n" for line in comment.splitlines())
        if self.environment:
            header += as_comment(self.environment) + "\n"
        return header + yaml.safe_dump(self.to_dict(), sort_keys=False)

    def write(self, path: str | Path, comment: str = "") -> None:
        write_atomically(path, self.to_yaml(comment))


def launch_lines(config: AccelerateConfig, file: str, script: str = "my_script.py") -> str:
    """How to launch `script` with `config` in `file`, one line per machine, with what the YAML can't say."""
    variables = "".join(f"{name}={value} " for name, value in config.environment.items())
    flags = "".join(f" {flag}" for flag in config.launch_flags)
    ranks = [f" --machine_rank {rank}" for rank in range(config.num_machines)] if config.num_machines > 1 else [""]
    lines = [f"    {variables}accelerate launch --config_file {file}{flags}{rank} {script}" for rank in ranks]
    if config.num_machines > 1 and not config.main_process_ip:
        lines += ["", "Replace MAIN_MACHINE by the address of the first machine."]
    return "\n".join(lines)


_END = "Generated by `python -m unsloth_accel.config.accelerate_config`."
_LAYER = """The class in fsdp_transformer_layer_cls_to_wrap is Llama's; for another model give its own decoder layer
(Qwen2DecoderLayer, Qwen3DecoderLayer, MistralDecoderLayer, Gemma2DecoderLayer, …), or let
`unsloth-accel config RUN.yaml` write the file for yours."""

SHIPPED: dict[str, tuple[AccelerateConfig, str]] = {
    "ddp.yaml": (
        AccelerateConfig(strategy="ddp", num_processes=2, mixed_precision="bf16"),
        f"""DDP: every GPU holds the whole model and trains on its share of each batch.
When: the model fits one GPU. One machine with two GPUs; for another number add --num_processes.
On GPUs older than Ampere (T4, V100) add --mixed_precision fp16.

    accelerate launch --config_file accelerate_configs/ddp.yaml my_script.py

{_END}""",
    ),
    "fsdp2.yaml": (
        AccelerateConfig(strategy="fsdp2", num_processes=2, mixed_precision="bf16"),
        f"""FSDP2 through accelerate's plugin: the GPUs divide the frozen weights and gather them block by block.
When: the model is larger than one GPU. The script must load it inside `with unsloth_accel.sharded_loading(…)` and use
`unsloth_accel.adapt(trainer)` or `unsloth_accel.prepare(…)`, as examples/accelerate_loop.py does; otherwise each GPU
loads the whole model first, and peak memory is above DDP's.
{_LAYER}

    accelerate launch --config_file accelerate_configs/fsdp2.yaml my_script.py

{_END}""",
    ),
    "fsdp2_qlora.yaml": (
        AccelerateConfig(strategy="fsdp2", num_processes=2, mixed_precision="bf16"),
        f"""FSDP2 for a model loaded in 4 bit (QLoRA), through accelerate's plugin.
When: the 4-bit model is larger than one GPU; if it fits, ddp.yaml is faster. The script must load it inside
`with unsloth_accel.sharded_loading(load_in_4bit=True)` and use `unsloth_accel.adapt(trainer)` or
`unsloth_accel.prepare(…)`; otherwise each GPU loads the whole model first.
{_LAYER}

    accelerate launch --config_file accelerate_configs/fsdp2_qlora.yaml my_script.py

{_END}""",
    ),
    "fsdp2_native.yaml": (
        AccelerateConfig(strategy="fsdp2_native", num_processes=2, mixed_precision="bf16"),
        f"""FSDP2 by Unsloth itself: each GPU loads and keeps only its part of the weights.
When: the model is larger than one GPU. The script must `import unsloth_accel` first: accelerate has no key for it, so
the variables that choose it stand in the last line of this comment. Without them this file is plain DDP.
For a model loaded in 4 bit take out UNSLOTH_FSDP2_SHARDED_LOAD, which Unsloth has for 16-bit weights only.

    accelerate launch --config_file accelerate_configs/fsdp2_native.yaml my_script.py

{_END}""",
    ),
    "fsdp1.yaml": (
        AccelerateConfig(strategy="fsdp1", num_processes=2, mixed_precision="bf16"),
        f"""FSDP1, the old one: only for scripts that can't use FSDP2.
Unsloth declines its fused LoRA kernels under it (three times slower than FSDP2, measured), and transformers 5.20
removes it. Without `unsloth_accel.adapt(trainer)` PEFT saves an empty adapter, and a resumed run restores no tensor.
{_LAYER}

    accelerate launch --config_file accelerate_configs/fsdp1.yaml my_script.py

{_END}""",
    ),
    "cpu_ddp.yaml": (
        AccelerateConfig(strategy="ddp", num_processes=2, device="cpu"),
        f"""DDP on a CPU: two processes that talk over gloo. Slow; it is for tests and for trying things out.
The script must `import unsloth_accel` first: accelerate does not tell several processes that they train on the CPU,
and without that word each of them would train alone.

    accelerate launch --config_file accelerate_configs/cpu_ddp.yaml examples/sft.py

{_END}""",
    ),
    "multi_node_ddp.yaml": (
        AccelerateConfig(strategy="ddp", num_processes=16, num_machines=2, mixed_precision="bf16"),
        f"""DDP over two machines with eight GPUs each. num_processes counts the GPUs of all machines.
When: the model fits one GPU and one machine is not fast enough. Replace MAIN_MACHINE by the first machine's address,
which the others must reach on port 29500; then, on machine 0 and on machine 1:

    accelerate launch --config_file accelerate_configs/multi_node_ddp.yaml --machine_rank 0 my_script.py
    accelerate launch --config_file accelerate_configs/multi_node_ddp.yaml --machine_rank 1 my_script.py

rdzv_backend and same_network are ignored in this file; where they are needed, write --rdzv_backend c10d.

{_END}""",
    ),
    "multi_node_fsdp2.yaml": (
        AccelerateConfig(strategy="fsdp2", num_processes=16, num_machines=2, mixed_precision="bf16"),
        f"""FSDP2 through accelerate's plugin over two machines with eight GPUs each, sharded over all sixteen.
When: as fsdp2.yaml. Weights cross the network in every step, so it wants InfiniBand or better. Replace MAIN_MACHINE
by the first machine's address, which the others must reach on port 29500.
{_LAYER}
On machine 0 and on machine 1:

    accelerate launch --config_file accelerate_configs/multi_node_fsdp2.yaml --machine_rank 0 my_script.py
    accelerate launch --config_file accelerate_configs/multi_node_fsdp2.yaml --machine_rank 1 my_script.py

rdzv_backend and same_network are ignored in this file; where they are needed, write --rdzv_backend c10d.

{_END}""",
    ),
}


def write_shipped(directory: str | Path = "accelerate_configs") -> None:
    """Write the ready configs that the project ships."""
    for name, (config, comment) in SHIPPED.items():
        config.write(Path(directory, name), comment)


if __name__ == "__main__":
    write_shipped()
