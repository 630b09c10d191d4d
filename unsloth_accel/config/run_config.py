"""RunConfig: the description of a run, section by section; the string under a field is its help text.

The sections are OmegaConf structured configs. `read_run` makes one of a YAML file and `key=value` overrides.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from omegaconf import MISSING

from ..methods import USUAL_METHOD, method_or_usual
from ..strategies import STRATEGIES, Strategy
from .rewards_config import RewardsConfig

OWN_TRAINING_KEYS: dict[str, Any] = {
    "resume": bool | str,
    "overwrite": bool,
    "early_stopping_patience": int,
    "early_stopping_threshold": float,
    "save_minutes": float | None,
    "embedding_learning_rate": float | None,
}
"""Keys of `training` that are no fields of the method's config, and their types."""
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""`all-linear`: the linear layers of a Llama-style decoder block, for which Unsloth has fused LoRA kernels."""
IF_ANY = "if_any"
"""Value of training.resume: go on where there is something to go on from, start where there is nothing."""
SAVE_MINUTES, KEPT_CHECKPOINTS = 15.0, 2
"""Minutes between checkpoints, and how many are kept, where a run doesn't say when it saves."""
DEFAULT_PER_DEVICE = 8
"""Largest per-device batch, in rows, where memory sets no limit: on a CPU, or without a global batch."""


@dataclass
class ModelConfig:
    name: str = MISSING
    """Model to fine-tune: a local directory with a config.json, or a hub id. Of an adapter (its directory, or its id in
    the local hub cache) training goes on; what `lora` leaves out is taken from it."""
    load_in_4bit: bool = False
    """Load the base model's weights in 4 bit (QLoRA)."""
    max_seq_length: int = 2048
    """Maximum length of a row in tokens; `data.too_long` says what happens to longer rows."""
    dtype: str | None = None
    """Data type of the base model: float32, float16 or bfloat16; null lets Unsloth choose for the hardware."""
    gradient_checkpointing: str = "unsloth"
    """Gradient checkpointing: `unsloth` (offloaded, least memory), `true` (PyTorch's) or `false` (fastest)."""
    keep_activations: Any = "auto"
    """Decoder blocks that keep their activations instead of computing them again in the backward pass, which is faster
    and takes memory: a number, `all`, or `auto`, the fastest that fits. Only with gradient_checkpointing."""
    trust_remote_code: bool = False
    """Run Python code from the model's repository."""
    chat_template: str | None = None
    """Chat template by which chats become text: a name of Unsloth's `get_chat_template` (`chatml`, `llama-3.1`,
    `qwen3-thinking`, …), or a file of Jinja; null for the tokenizer's own."""
    added_tokens: list[str] = field(default_factory=list)
    """Tokens to add to the tokenizer: the embeddings get rows for them, and embed_tokens and lm_head are trained
    whole."""


@dataclass
class LoraConfig:
    r: int = 16
    """Rank of the LoRA matrices."""
    alpha: int = 16
    """Numerator of the LoRA scaling: the update is multiplied by alpha / r."""
    dropout: float = 0.0
    """Dropout probability of the LoRA layers; 0 is fastest with Unsloth."""
    target_modules: Any = "all-linear"
    """Modules that get LoRA: `all-linear` (the seven projections of a decoder block) or a list of module names."""
    use_rslora: bool = False
    """Scale the LoRA update by alpha / sqrt(r) instead of alpha / r (rank-stabilized LoRA)."""
    use_dora: bool = False
    """Train a magnitude beside the direction of each weight (DoRA); slower, since Unsloth's kernels don't know it."""
    init_lora_weights: Any = True
    """First weights of the adapter: `true` (a change of zero), `false` (random), `gaussian`, `orthogonal`, or made of
    the base's own weights: `pissa`, `olora` or `loftq`."""
    loftq_config: dict[str, Any] = field(default_factory=dict)
    """Settings of init_lora_weights=loftq: loftq_bits and loftq_iter."""
    modules_to_save: list[str] = field(default_factory=list)
    """Modules trained whole beside LoRA: embed_tokens, lm_head, or both."""
    layers_to_transform: Any = None
    """Numbers of the decoder blocks that get LoRA, from 0; null for all."""
    layers_pattern: str | None = None
    """Name of the list that layers_to_transform counts in, where the model has several."""
    bias: str = "none"
    """Biases that are trained: `none`, `all`, or `lora_only`, those of the modules with LoRA."""
    target_parameters: Any = None
    """Weights that are no modules' own and get LoRA, such as mlp.experts.down_proj; null takes the experts where
    target_modules names an MLP, [] none."""
    random_state: int = 3407
    """Seed of the adapter's initial weights, equal on every process."""


@dataclass
class DataConfig:
    path: str = MISSING
    """Training rows: a JSON Lines, JSON, CSV, Parquet or Arrow file, a directory or glob of them (data/{a,b}.json
    is two files), or a hub id."""
    eval_path: str | None = None
    """Held-out rows for evaluation: files or a hub id, as for `data.path`."""
    mix: list[Any] = field(default_factory=list)
    """Several sources in the place of `data.path`, each a path, or {path: …, weight: …} with `split`, `subset`,
    `format`, `columns` and `max_rows` of its own where they differ. Weights are the shares in which rows are drawn;
    without them all rows of all sources are trained."""
    stopping_strategy: str = "first_exhausted"
    """End of a mix with weights: `first_exhausted`, where a source has no more rows, or `all_exhausted`, where every
    row has been drawn at least once, and those of smaller sources several times."""
    max_rows: int | None = None
    """Most rows that are taken of `data.path` or of the mix, the first ones; null for all."""
    eval_fraction: float | None = None
    """Share of these rows that is held out for evaluation, above 0 and below 1, drawn by training.seed: the same rows
    on every rank and when a run is resumed. In the place of `data.eval_path`."""
    split: str = "train"
    """Split of the Hub dataset to train on."""
    eval_split: str = "test"
    """Split of the Hub dataset to evaluate on."""
    subset: str | None = None
    """Configuration (subset) of the Hub dataset, for training and evaluation."""
    format: str = "auto"
    """Format of the rows: `auto` (by their columns), `chat`, `prompt-completion`, `text`, `alpaca`, `sharegpt`,
    `preference` (pairs of answers), `unpaired-preference` (answers with a label), `prompt` (the model answers), or
    `question`, which is a prompt's text as a user's message."""
    columns: dict[str, str] = field(default_factory=dict)
    """Mapping from the column names used here to those in the data: {messages: my_column}."""
    train_on: str = "auto"
    """Tokens to train on: `all`; `responses`, the assistant's messages or the completions; or `auto`: completions and
    answers where rows have them, otherwise all."""
    instruction_marker: str | None = None
    """Text that a user's message begins with in a row's text, for training on responses where the chat template
    doesn't tell it; with `response_marker`."""
    response_marker: str | None = None
    """Text that an answer begins with; the next `instruction_marker` ends it. `preview` shows both."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the chat template for all chats, such as {enable_thinking: false}; those that a row brings itself go
    before."""
    too_long: str = "cut"
    """Treatment of rows longer than model.max_seq_length: `cut` truncates them, `drop` leaves them out."""
    streaming: bool = False
    """Read training rows as they are needed, for datasets that don't fit in memory; needs training.max_steps."""

    @property
    def holds_out(self) -> bool:
        """Whether there are rows to evaluate on."""
        return bool(self.eval_path or self.eval_fraction)

    @property
    def sources(self) -> dict[str, DataConfig]:
        """Description of each source of training rows, by the key that names its path; each has only what it says of
        one: no mix, and no share that is held out."""
        alone = replace(self, mix=[], eval_fraction=None)
        if not self.mix:
            return {"data.path": alone}
        own = [{key: value for key, value in one.items() if key != "weight" and value is not None} for one in self.mix]
        return {f"data.mix.{place}.path": replace(alone, **{"max_rows": None, **one}) for place, one in enumerate(own)}

    @property
    def names(self) -> str:
        """Paths of the training rows, in words."""
        return " and ".join(dict.fromkeys(one.path for one in self.sources.values()))


@dataclass
class BatchConfig:
    global_size: int | None = None
    """Rows per optimizer step over all processes: per-device × accumulation × processes. Null lets these decide."""
    global_tokens: int | None = None
    """Tokens per optimizer step over all processes, in full rows: a multiple of model.max_seq_length."""
    balance: str = "tokens"
    """Distribution of a step's rows over processes: equal `tokens`, so that none waits for the others, or equal numbers
    of `rows`, in order. Each step trains on the same rows either way."""
    on_out_of_memory: str = "halve"
    """Reaction to running out of GPU memory: `halve` repeats the step, and goes on, with fewer activations kept, then
    in twice as many micro-batches of half the rows; `stop` ends the run, as `fsdp2_native`, `fsdp1` and `fsdp2` without
    peer access always do."""
    rehearse: str = "auto"
    """Compute the longest step and the longest evaluation batch once before the first step, and drop what they give, so
    that a run that doesn't fit shows it in the first minute: `true`, `false`, or `auto`, on GPUs and where lengths
    differ."""

    def rows(self, max_seq_length: int) -> int | None:
        """Return the rows per optimizer step, or None if no global batch is given."""
        return self.global_tokens // max_seq_length if self.global_tokens else self.global_size


@dataclass
class DistributedConfig:
    strategy: str = "auto"
    """Parallelism strategy: `auto`, `single`, `ddp`, `fsdp2`, `fsdp2_native` or `fsdp1`."""
    num_processes: Any = "auto"
    """Number of processes, or `auto`: one per visible GPU, two on a CPU."""
    device: str = "auto"
    """Device to train on: `auto`, `cuda` or `cpu`."""
    gradient_as_bucket_view: bool = False
    """Make DDP's gradients views of its communication buckets, which saves one copy of the adapter in float32. The
    buckets' size is training.ddp_bucket_cap_mb, by default 25 MiB."""


@dataclass
class EvaluationConfig:
    """Compare the model before and after training on `data.eval_path`."""

    loss: bool = True
    """Compute the held-out loss before and after training."""
    exact_match: bool = False
    """Answer the held-out chat rows greedily, before and after training, and count answers equal to the reference."""
    max_rows: int = 64
    """Maximum number of rows that `exact_match` answers."""
    max_new_tokens: int = 64
    """Maximum number of tokens of an answer."""
    samples: int = 3
    """Number of sample answers to show at the end."""


@dataclass
class LoggingConfig:
    report_to: Any = "none"
    """Experiment tracker, or a list of them: `none`, `tensorboard`, `wandb`, `trackio`, …, the Trainer's own
    integrations."""
    progress: bool = True
    """Show the progress bar (on rank 0)."""
    rank_sync_steps: int = 100
    """Steps between comparisons of the adapter over all ranks; the run stops if they differ. 0 never compares."""
    stop_on_divergence: bool = True
    """Stop on a loss, gradient or weight that is NaN or infinite, or a loss that stays far above its median."""
    hang_after: float | None = None
    """Seconds without progress after which a rank hangs: it is named, and the run ends. Null takes three times the
    slowest step so far, at least 60; what may take long by itself gets ten times as much, as long as it doesn't work. 0
    watches for no hang."""


@dataclass
class RunConfig:
    method: str = USUAL_METHOD
    """Training method: `sft`, `dpo`, `kto`, `reward`, `orpo`, `grpo` or `rloo`."""
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    data: DataConfig = field(default_factory=DataConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    training: dict[str, Any] = field(default_factory=dict)
    """Fields of the method's config (TRL's SFTConfig, DPOConfig, …); `resume` (true, false or `if_any`), `overwrite`;
    `early_stopping_patience`, the evaluations in a row without a better `metric_for_best_model` (by default the
    held-out loss, of GRPO and RLOO the held-out reward) after which training stops, and `early_stopping_threshold`,
    what counts as better; `save_minutes`, the minutes between checkpoints: 15 where neither `save_strategy` nor
    `save_steps` is given, 0 or null for none; `embedding_learning_rate`, the learning rate of embed_tokens and
    lm_head where they are trained whole."""
    rewards: RewardsConfig = field(default_factory=RewardsConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    output_dir: str = MISSING
    """Directory that everything the run writes goes to."""
    references: dict[str, str] = field(
        default_factory=dict, repr=False, compare=False, metadata={"omegaconf_ignore": True}
    )
    """Not a key of run.yaml: the text of each `${…}` in it, by the dotted key that it gives a value to."""

    @property
    def strategy(self) -> Strategy | None:
        """Record of the strategy that is asked for; None for `auto`."""
        return STRATEGIES.get(self.distributed.strategy)

    @property
    def resume(self) -> bool:
        return self.training.get("resume") is True

    @property
    def overwrite(self) -> bool:
        return bool(self.training.get("overwrite", False))

    @property
    def save_minutes(self) -> float | None:
        """Minutes between checkpoints by the clock, beside those of save_strategy; None for none."""
        said = {"save_strategy", "save_steps"} & {*self.training}
        minutes = self.training.get("save_minutes", None if said else SAVE_MINUTES)
        return float(minutes) if minutes else None

    @property
    def early_stopping(self) -> dict[str, Any]:
        """The arguments of transformers' EarlyStoppingCallback; empty where the run doesn't stop early."""
        keys = ("early_stopping_patience", "early_stopping_threshold")
        found = {key: self.training[key] for key in keys if self.training.get(key) is not None}
        return found if keys[0] in found else {}

    def trainer_fields(self) -> dict[str, Any]:
        """Return `training` without `OWN_TRAINING_KEYS`: the arguments of the method's config class."""
        fields = {key: value for key, value in self.training.items() if key not in OWN_TRAINING_KEYS}
        score = method_or_usual(self.method).score
        # Whoever takes less for better, as schedulers that watch the evaluation do (mode: min), means the loss.
        if fields.get("lr_scheduler_type") in ("reduce_lr_on_plateau", "greedy") or (
            fields.get("greater_is_better") is False
        ):
            score = ""
        if self.early_stopping or (score and fields.get("load_best_model_at_end")):
            fields.setdefault("metric_for_best_model", f"eval_{score or 'loss'}")
        # YAML 1.1 reads an unquoted `no` as false; these fields mean the word.
        return {key: "no" if key.endswith("_strategy") and value is False else value for key, value in fields.items()}


SECTIONS = frozenset(one.name for one in fields(RunConfig) if callable(one.default_factory) and not one.metadata)
"""Names of the keys of a run.yaml that have keys below them."""
