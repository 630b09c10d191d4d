"""Entries that several tools share: fields of transformers' TrainingArguments that have another place here, what the
Trainer's fields were called, and rows per step."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import counted
from ...methods import METHODS
from ..data_mix import OWN, WEIGHT
from ..lora_fields import WHOLE
from .keys import Becomes, Chooses, Computed, Covered, Entry, Field, Outcome, Theirs, Untranslated, alike

ONLY_LORA = (
    "all weights were trained; this version trains LoRA adapters. The run.yaml trains an adapter in their place, which "
    "takes a higher learning rate: choose lora.r and training.learning_rate, or train all weights by a script of your "
    "own."
)
ONLY_TEXT = "is for pictures, sound or video; a run.yaml trains text only. Write a script of your own for it."
KERNELS = "Unsloth has fused kernels of its own"
ATTENTION = "Unsloth chooses among the attention kernels that are installed; they compute the same"
SHARDING = "the plan decides how GPUs share the model (distributed.strategy: auto)"
NO_SECRET = "is a secret, and none is written to a file: export HF_TOKEN=…, which the hub's client reads."
_ONE_EACH = ("training.per_device_train_batch_size", "training.gradient_accumulation_steps")
WITHOUT_RAY = "launch starts one process per GPU of one machine, without Ray."
WANDB = "is read by Weights & Biases from the environment: export {}=…"
OTHER_BASE = "a base is loaded in 16 bit, or in bitsandbytes' 4 bit: model.load_in_4bit=true."
OWN_TOKENIZER = "the model's own tokenizer is taken: save another beside the model."
MODEL_PARALLEL = "only data parallelism is done: GPUs share the rows, or the weights, too."
_ENDS_OF_FILES = (".json", ".jsonl", ".ndjson", ".csv", ".parquet", ".arrow", ".txt", ".gz", ".zst", "}")
_PROJECTIONS = "give a list of modules' names to lora.target_modules; what it has is a pattern."


def method(name: str) -> Outcome:
    """Return the outcome of a training method's name, in the words of methods.py."""
    if name in METHODS.names:
        return Outcome({"method": name})
    reason = (
        f"this version trains {', '.join(METHODS.names)}. The run.yaml says method: {name}, which is refused until it "
        "can: a script of your own, with TRL's trainer and unsloth_accel.adapt, can do it now."
    )
    return Outcome({"method": name}, reason, translated=False)


def sft_beside(key: str) -> Entry:
    """Return the entry of a key whose value weighs the loss of fine-tuning on the chosen answers beside DPO's."""

    def read(value: Any, theirs: Theirs) -> Outcome:
        if not value:
            return Outcome(note="off, as here")
        settings = {"training.loss_type": ["sigmoid", "sft"], "training.loss_weights": [1.0, float(value)]}
        return Outcome(settings, "TRL's is a mean over the chosen answers' tokens")

    return Computed(read, f"`training.loss_type: [sigmoid, sft]`, with {key} as the second of `training.loss_weights`")


BASE_SERVES = "the base is the reference: the model without its adapter, or with the one that training goes on from."
SMOOTHED = "TRL's sigmoid loss isn't smoothed: training.loss_type=[robust] is, with training.label_smoothing."


def rows_per_step(per_device: str, accumulation: str, default: int) -> Entry:
    """Return the entry of two keys whose product, times the GPUs, is the global batch."""

    def read(value: Any, theirs: Theirs) -> Outcome:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            return Outcome(note="is no number of rows: write batch.global_size.", translated=False)
        rows, steps = int(theirs.number(per_device, default)), int(theirs.number(accumulation, 1))
        if theirs.gpus is None and rows * steps == 1:
            note = "one row on each GPU, as there; batch.global_size is the number for all"
            return Outcome(dict(zip(_ONE_EACH, (1, 1), strict=True)), note)
        gpus = theirs.gpus or 1
        said = f"{rows} × {steps} × {counted(gpus, 'GPU')} (per device × accumulation × GPUs)"
        unknown = "" if theirs.gpus else "; one GPU is assumed, since nothing says how many: init --gpus N multiplies"
        return Outcome({"batch.global_size": rows * steps * gpus}, said + unknown)

    return Computed(read, f"`batch.global_size` = {per_device} × {accumulation} × GPUs (`init --gpus N`; else one)")


def modules(value: Any) -> Any:
    """Return lora.target_modules of a list, or of names between commas; raises `ValueError` for a pattern."""
    if value in ("all", "all-linear", ["all-linear"], ["all"]):
        return "all-linear"
    names = value.split(",") if isinstance(value, str) else value
    names = [str(name).strip() for name in names] if isinstance(names, list) else []
    if not names or not all(name.replace("_", "").replace(".", "").isalnum() for name in names):
        raise ValueError
    return names


def whole(value: Any) -> Any:
    """Return lora.modules_to_save of a list of names; raises `ValueError` for others than Unsloth trains whole."""
    names = modules(value)
    if not {*names} <= {*WHOLE}:
        raise ValueError
    return names


def template_file(value: Any, theirs: Theirs) -> Outcome:
    """Return model.chat_template of a template's text, which is written to a file, or of a file's name."""
    if isinstance(value, str) and "{" in value:
        return Outcome({"model.chat_template": value}, "written to a file beside run.yaml")
    if isinstance(value, str) and any(path.is_file() for path in (Path(value), theirs.place / value)):
        return Outcome({"model.chat_template": value if Path(value).is_file() else str(theirs.place / value)})
    return Outcome(note="name a file: model.chat_template=FILE.jinja.", translated=False)


def template_arguments(value: Any) -> Any:
    """Return data.chat_template_kwargs of a mapping, or of one as JSON; raises `ValueError` for another value."""
    found = json.loads(value) if isinstance(value, str) else value
    if not isinstance(found, Mapping):
        raise ValueError
    return dict(found)


def names(value: Any) -> Any:
    """Return a list of names, or of those between commas; raises `ValueError` for another value."""
    found = value.split(",") if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(one, str) and one.strip() for one in found):
        raise ValueError
    return [one.strip() for one in found]


TEMPLATE_KWARGS = Becomes(
    "data.chat_template_kwargs", how=template_arguments, otherwise="is no mapping: say it in data.chat_template_kwargs."
)
ADDED_TOKENS = Becomes(
    "model.added_tokens",
    "they begin as the mean of the others, and embed_tokens and lm_head are trained whole",
    how=names,
    otherwise="is no list of tokens.",
)
OTHER_TEMPLATE = (
    "the model's own chat template is taken, which may write rows otherwise: see them with unsloth-accel preview "
    "run.yaml; model.chat_template takes another, one of Unsloth's by its name or a file."
)
TARGETS = Becomes("lora.target_modules", how=modules, otherwise=_PROJECTIONS)


def tracker(value: Any) -> Any:
    """Return logging.report_to of a name or a list of names; raises `ValueError` where one is none, or SwanLab's."""
    names = [value] if isinstance(value, str) else list(value) if isinstance(value, list) else []
    if not names or not all(isinstance(name, str) and name != "swanlab" for name in names):
        raise ValueError
    return names[0] if len(names) == 1 else names


def word(value: Any) -> Any:
    """Return a strategy's word, of which YAML 1.1 reads `no` as false."""
    return "no" if value is False else value


def several(names: Sequence[str], key: str = "data.eval_path") -> Outcome:
    """Return the outcome of several data sets for `key`, which takes one, or several files whose rows are alike."""
    reason = (
        f"{len(names)} data sets; {key} takes one hub id, or files of one kind whose rows are alike: a "
        "directory, or data/{{a,b}}.json. Write them so, and name them there; or data.eval_fraction holds out a share."
    )
    return Outcome({key: ", ".join(names)}, reason, translated=False)


def mixed(outcomes: Sequence[Outcome], weights: Sequence[float] = (), most: int | None = None) -> Outcome:
    """Return the outcome of several data sets to train on, of which each has one of `outcomes`: a mix of them, drawn
    by `weights` where there are any; of each the first `most` rows."""
    each = [dict(one.settings) for one in outcomes]
    first = each[0]
    alike = {key: value for key, value in first.items() if all(one.get(key) == value for one in each[1:])}
    alike.pop("data.path", None)
    sources = []
    for place, one in enumerate(each):
        source = {key.removeprefix("data."): value for key, value in one.items() if key not in alike}
        source |= {"max_rows": most} if most else {}
        sources.append(source | ({"weight": weights[place]} if weights else {}))
    notes = dict.fromkeys(one.note for one in outcomes if one.note)
    asked = {key for source in sources for key in source} - {*OWN, WEIGHT}
    if asked:  # of the whole run
        why = f"they differ in {', '.join(f'data.{key}' for key in sorted(asked))}, which one run has only one of."
        return Outcome({"data.mix": [one.get("data.path") for one in each]}, why, translated=False)
    translated = all(one.translated for one in outcomes)
    return Outcome(alike | {"data.mix": sources}, " ".join(notes), translated)


def part_of(settings: Mapping[str, Any], share: float) -> Outcome:
    """Return the outcome of a `share` of the rows, at most 1, of the data set in `settings`: a part of its split."""
    if share == 1:
        return Outcome(settings)
    split, percent = str(settings.get("data.split", "train")), round(share * 100, 6)
    if is_hub_id(settings.get("data.path")) and split.replace("_", "").isalnum() and percent == int(percent):
        said = {**settings, "data.split": f"{split}[:{int(percent)}%]"}
        return Outcome(said, "the first rows, where as many were drawn at random")
    return Outcome(settings, f"{share:g} of the rows were taken: data.max_rows takes so many.", translated=False)


def held_out(values: Mapping[str, Any], size: float) -> Outcome:
    """Return the settings that hold out `size` of the rows: below 1 a share of any, else a number of rows, the last
    ones of a split of the data set of the hub in `values`."""
    if size < 1:
        return Outcome({"data.eval_fraction": size}, "drawn at random, by training.seed; not the rows that were")
    split, path = str(values.get("data.split", "train")), values.get("data.path")
    if not is_hub_id(path) or not split.replace("_", "").isalnum():
        return Outcome(note="a number of rows: give it as a share of all, data.eval_fraction.", translated=False)
    settings = {
        "data.split": f"{split}[:-{int(size)}]",
        "data.eval_path": path,
        "data.eval_split": f"{split}[-{int(size)}:]",
    }
    return Outcome(settings, f"the last {int(size)} of the rows, where as many were drawn at random")


def is_hub_id(path: Any) -> bool:
    """Return whether a data set's name could be an id of the hub, and is no file's name."""
    text = str(path)
    owner, _, name = text.partition("/")
    if text.startswith((".", "~")) or text.endswith(_ENDS_OF_FILES) or os.path.exists(text):
        return False
    return bool(owner and name) and not any(sign in name for sign in "/*, ")


def _resume(value: Any, theirs: Theirs) -> Outcome:
    if isinstance(value, bool):
        return Outcome({"training.resume": True} if value else {})
    reason = (
        "another tool's checkpoint has other weights' names and no record of the rows: to go on from an adapter, name "
        "its directory in model.name."
    )
    return Outcome(note=reason, translated=False)


def _overwrite(value: Any, theirs: Theirs) -> Outcome:
    if theirs.has("resume_from_checkpoint", "auto_resume_from_checkpoints"):
        return Outcome(note="going on from a checkpoint, it replaces nothing, as there")
    return Outcome({"training.overwrite": value})


def _dtype(value: Any) -> Any:
    name = str(value).removeprefix("torch.")
    names = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "auto": None}
    if names.get(name, name) not in (None, "bfloat16", "float16", "float32"):
        raise ValueError
    return names.get(name, name)


def field(*names: str, note: str = "", how: Callable[[Any], Any] | None = None) -> Field:
    return Field(names, note, how)


DTYPE = Becomes("model.dtype", how=_dtype, otherwise="float32, float16 or bfloat16 can be loaded.")
CHECKPOINTING = Chooses(
    {
        **{value: {"model.gradient_checkpointing": "unsloth"} for value in (True, "offload", "unsloth")},
        False: {"model.gradient_checkpointing": "false"},
    },
    "model.gradient_checkpointing is unsloth, true or false.",
    "Unsloth's own computes the same in less memory",
)
RESUME = Computed(_resume, "true: `training.resume: true`; a path isn't translated: name an adapter in `model.name`")
SHARDED = Covered(SHARDING)
SWANLAB = Untranslated("SwanLab is no integration of the Trainer: set logging.report_to to one that is.")
FP8 = Untranslated("precision is fp16 or bf16: training.bf16=true.")
TEXT_ONLY = Untranslated(ONLY_TEXT)
UNSLOTHS = Covered(KERNELS)
ON_CPU = Chooses({True: {"distributed.device": "cpu"}, False: {}}, "distributed.device is auto, cuda or cpu.")
REVISION = Chooses({"main": {}}, "a model is taken at its newest: download the revision, and name it.")
NF4 = Chooses({"nf4": {}}, "Unsloth loads 4-bit bases as nf4.")
DOUBLE = Covered("Unsloth loads 4-bit bases with double quantization")
ONE_RATE = Untranslated("both matrices of LoRA learn at one rate; raise training.learning_rate.", off=())
EMBEDDING_RATE = Becomes("training.embedding_learning_rate")
WHOLE_MODULES = Becomes(
    "lora.modules_to_save", how=whole, otherwise="Unsloth trains only embed_tokens and lm_head whole."
)
SYSTEM_PROMPT = Untranslated("write a system message into the rows that have none.")
NEW_ORDER = "rows are drawn in a new order each epoch; the order can't be kept."

TRAINER: Mapping[str, Entry] = {
    "chat_template_path": Computed(template_file, "`model.chat_template`, for a file"),
    "chat_template_kwargs": TEMPLATE_KWARGS,
    "output_dir": Becomes("output_dir"),
    "report_to": Becomes(
        "logging.report_to",
        how=tracker,
        otherwise="the Trainer's own integrations are taken: set logging.report_to to one or several.",
    ),
    "gradient_checkpointing": CHECKPOINTING,
    "activation_checkpointing": CHECKPOINTING,
    "gradient_checkpointing_kwargs": Covered("Unsloth chooses how checkpointing recomputes; the numbers are the same"),
    "resume_from_checkpoint": RESUME,
    "trust_remote_code": Becomes("model.trust_remote_code"),
    "disable_tqdm": Chooses({True: {"logging.progress": False}, False: {}}, "logging.progress is true or false."),
    **alike("use_cpu no_cuda", ON_CPU),
    **alike("fsdp fsdp_config deepspeed fsdp_transformer_layer_cls_to_wrap", SHARDED),
    "accelerator_config": Untranslated("the plan writes the accelerate config: unsloth-accel config run.yaml."),
    "parallelism_config": Untranslated(MODEL_PARALLEL),
    "auto_find_batch_size": Untranslated(
        "a batch that changes inside the run would break batch.global_size; batch.on_out_of_memory: halve keeps it."
    ),
    "enable_jit_checkpoint": Covered("after SIGTERM all ranks save a checkpoint together"),
    "do_train": Chooses({True: {}}, "launch always trains; evaluation.loss measures the held-out loss before."),
    "do_eval": Chooses({True: {}, False: {}}, "true or false.", "evaluation runs where data.eval_path names rows"),
    "do_predict": Untranslated("launch trains; evaluation.exact_match answers held-out rows."),
    "overwrite_output_dir": Computed(
        _overwrite, "true: `training.overwrite: true`, where the file doesn't go on from a checkpoint"
    ),
    **alike("evaluation_strategy eval_strategy", field("eval_strategy", how=word)),
    "save_strategy": field("save_strategy", how=word),
    "logging_strategy": field("logging_strategy", how=word),
    "warmup_ratio": field("warmup_ratio", "warmup_steps", note="below 1 it is a share of all steps"),
    "group_by_length": Untranslated(
        "ranks would draw other orders; each step's rows are shared out by tokens here (batch.balance)."
    ),
    "save_safetensors": Chooses({True: {}}, "adapters are written as safetensors."),
    "embedding_learning_rate": EMBEDDING_RATE,
    "push_to_hub_model_id": field("hub_model_id"),
    **alike("hub_token push_to_hub_token", Untranslated(NO_SECRET)),
    "local_rank": Covered("set in each process when it is launched"),
    "logging_dir": Covered("logs lie in output_dir"),
    "remove_unused_columns": Covered("columns that are not trained are left out, and named"),
    "ddp_find_unused_parameters": Covered("every adapter weight gets a gradient, so none is looked for"),
    "log_on_each_node": Covered("rank 0 shows the log; logs/ has every rank's"),
}
"""Fields of TrainingArguments that are no fields of `training`, or had other names."""
