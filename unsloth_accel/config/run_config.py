"""RunConfig: the description of a run, section by section; the string under a field is its help text.

The sections are OmegaConf structured configs. `read_run` makes one of a YAML file and `key=value` overrides.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, OmegaConf

from ..methods import USUAL_METHOD
from ..strategies import STRATEGIES, Strategy

OWN_TRAINING_KEYS = {"resume": bool, "overwrite": bool}
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""`all-linear`: the linear layers of a Llama-style decoder block, for which Unsloth has fused LoRA kernels."""
DEFAULT_PER_DEVICE = 8
"""Rows: the most that one process gets at once where memory says nothing: on a CPU, or without a global batch."""


@dataclass
class ModelConfig:
    name: str = MISSING
    """A local directory with a config.json, or a hub id."""
    load_in_4bit: bool = False
    """QLoRA: keep the base model's weights in 4 bit."""
    max_seq_length: int = 2048
    """Tokens; longer rows are cut."""
    dtype: str | None = None
    """float32, float16 or bfloat16; null lets Unsloth choose for the hardware."""
    gradient_checkpointing: str = "unsloth"
    """`unsloth` (offloaded, least memory), `true` (PyTorch's), or `false` (fastest while memory lasts)."""
    trust_remote_code: bool = False
    """Run Python code that the model repository ships."""


@dataclass
class LoraConfig:
    r: int = 16
    """Rank."""
    alpha: int = 16
    """Scale: the update is multiplied by alpha / r."""
    dropout: float = 0.0
    """0 is fastest with Unsloth."""
    target_modules: Any = "all-linear"
    """`all-linear` (the seven projections of a decoder block) or a list of module names."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(r)."""
    random_state: int = 3407
    """Seed of the adapter's initial weights; the same on every process."""


@dataclass
class DataConfig:
    path: str = MISSING
    """Training rows: a JSON Lines, JSON, CSV, Parquet or Arrow file, a directory or glob of them, or a hub id."""
    eval_path: str | None = None
    """Held-out rows, in the same form."""
    split: str = "train"
    """Of a hub data set."""
    eval_split: str = "test"
    """The same for `eval_path`."""
    subset: str | None = None
    """Of a hub data set: its configuration's name."""
    format: str = "auto"
    """`auto` (told by the columns), `chat`, `prompt-completion`, `text`, `alpaca` or `sharegpt`."""
    columns: dict[str, str] = field(default_factory=dict)
    """Columns of other names, ours first: {messages: my_column}."""
    train_on: str = "auto"
    """`all` tokens; only the `responses`: assistant's messages, completions; or `auto`: completions where rows have
    them, otherwise all."""
    too_long: str = "cut"
    """Rows longer than model.max_seq_length: `cut`, or `drop` them whole."""
    streaming: bool = False
    """Read training rows as they are needed, for those that don't fit in memory; needs training.max_steps."""


@dataclass
class BatchConfig:
    global_size: int | None = None
    """Rows per optimizer step over all processes: per-device × accumulation × processes. Null: what these give."""
    global_tokens: int | None = None
    """The same in tokens, of full rows: a multiple of model.max_seq_length."""
    balance: str = "tokens"
    """How the rows of a step are shared out among processes: alike in `tokens`, so that none waits for the others, or
    alike in number of `rows`, in order. The rows of each step are the same."""
    on_out_of_memory: str = "halve"
    """`halve`: do the step again with half as many rows at once, and go on in twice as many micro-batches; or `stop`.
    Where divided weights are gathered (`fsdp2_native`, `fsdp1`, `fsdp2` without peer access) a run always stops."""

    def rows(self, max_seq_length: int) -> int | None:
        """Rows per optimizer step; None where nothing is said."""
        return self.global_tokens // max_seq_length if self.global_tokens else self.global_size


@dataclass
class DistributedConfig:
    strategy: str = "auto"
    """`auto`, `single`, `ddp`, `fsdp2`, `fsdp2_native` or `fsdp1`."""
    num_processes: Any = "auto"
    """`auto` (one per visible GPU; two on a CPU) or a number."""
    device: str = "auto"
    """`auto`, `cuda` or `cpu`."""
    gradient_as_bucket_view: bool = False
    """DDP: keep gradients in the buffers they are averaged in, which saves one copy of the adapter (float32). The size
    of these buffers is training.ddp_bucket_cap_mb, 25 MiB where nothing is said."""


@dataclass
class EvaluationConfig:
    """Compare the model before and after training on `data.eval_path`."""

    loss: bool = True
    """Held-out loss before and after."""
    exact_match: bool = False
    """Answer the held-out chat rows greedily, before and after, and count answers that equal the reference."""
    max_rows: int = 64
    """Rows to answer for `exact_match`."""
    max_new_tokens: int = 64
    samples: int = 3
    """Answers to show at the end."""


@dataclass
class LoggingConfig:
    report_to: str = "none"
    """`none`, `tensorboard`, `wandb`, `trackio`, …: the Trainer's own integrations."""
    progress: bool = True
    """Show the progress bar (rank 0)."""
    rank_sync_steps: int = 100
    """Compare the adapter over all ranks every so many steps and stop where it differs; 0: never."""
    stop_on_divergence: bool = True
    """Stop on a loss, gradient or weight that is NaN or infinite, or a loss that stays far above its median."""


@dataclass
class RunConfig:
    method: str = USUAL_METHOD
    """`sft`."""
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    data: DataConfig = field(default_factory=DataConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    training: dict[str, Any] = field(default_factory=dict)
    """Any field of the method's config (TRL's SFTConfig), and `resume` and `overwrite` (true or false)."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    output_dir: str = MISSING
    """Everything that the run writes goes here."""

    @property
    def strategy(self) -> Strategy | None:
        """The record of the strategy that is asked for; None for `auto`."""
        return STRATEGIES.get(self.distributed.strategy)

    @property
    def resume(self) -> bool:
        return bool(self.training.get("resume", False))

    @property
    def overwrite(self) -> bool:
        return bool(self.training.get("overwrite", False))

    def trainer_fields(self) -> dict[str, Any]:
        """`training` without our own two keys: what the config of the method's trainer gets."""
        fields = {key: value for key, value in self.training.items() if key not in OWN_TRAINING_KEYS}
        # YAML 1.1 reads an unquoted `no` as false; these fields mean the word.
        return {key: "no" if key.endswith("_strategy") and value is False else value for key, value in fields.items()}

    def to_yaml(self) -> str:
        return str(OmegaConf.to_yaml(OmegaConf.structured(self)))
