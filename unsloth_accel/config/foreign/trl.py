"""YAML of TRL's scripts (`trl sft --config`), and of open-r1 and the alignment handbook, which are built on them; by
TRL 1.15 and the names of earlier releases. An accelerate launch's arguments are read with it, too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...methods import USUAL_METHOD
from . import shared
from .keys import Becomes, Chooses, Computed, Covered, Entry, Outcome, Theirs, Tool, Untranslated, alike
from .trl_grpo import KEYS as GRPO
from .trl_grpo import MARKS, length

_OWN = {
    "grpo": MARKS,
    "kto": ("desirable_weight", "undesirable_weight"),
    "reward": ("center_rewards_coefficient",),
    "dpo": (
        *("precompute_ref_log_probs", "ref_model_init_kwargs", "max_prompt_length", "loss_weights", "use_weighting"),
        *("f_divergence_type", "f_alpha_divergence_coef", "ld_alpha", "discopop_tau", "label_smoothing", "beta"),
    ),
}
"""Keys that SFT's config lacks, by the method whose config has them, or had; the trainer itself is said on the command
line, not in the file. What is in several is of the first."""


def method_of(values: Mapping[str, Any]) -> str:
    """Return the training method of a file that names none, by the keys that only its trainer has."""
    return next((name for name, keys in _OWN.items() if {*keys} & {*values}), USUAL_METHOD)


def _method(value: Any, theirs: Theirs) -> Outcome:
    found = shared.method(name := theirs.method)
    if name == USUAL_METHOD:
        return found
    keys = [key for key in _OWN[name] if key in theirs.values]
    said = f"the file names no method; {', '.join(keys)} belong to {name} or its like"
    return Outcome(found.settings, f"{said}: {found.note}" if found.note else said, found.translated)


def _loss_type(value: Any, theirs: Theirs) -> Outcome:
    """One loss, or a list of them: DPO's, which was a single one in earlier releases."""
    if theirs.method == "dpo" and isinstance(value, str):
        return Outcome({"training.loss_type": [value]})
    return Outcome({"training.loss_type": value})


def _mixer(value: Any, theirs: Theirs) -> Outcome:
    """The alignment handbook's earlier `dataset_mixer`: names and the share of each that is taken."""
    shares = dict(value) if isinstance(value, Mapping) else {}
    given = theirs.values.get("dataset_splits")
    train, *test = given if isinstance(given, list) and given else ["train"]
    parts = [shared.part_of({"data.path": name, "data.split": train}, share) for name, share in shares.items()]
    if len(parts) != 1:
        found = shared.mixed(parts)
        if not test:
            return found
        return Outcome(found.settings, f"{found.note} Held-out rows: data.eval_fraction.".strip(), translated=False)
    held = {"data.eval_split": test[0], "data.eval_path": next(iter(shares))} if test else {}
    return Outcome({**parts[0].settings, **held}, parts[0].note, parts[0].translated)


def _mixture(value: Any, theirs: Theirs) -> Outcome:
    """The mixture of TRL's scripts and the alignment handbook: a list of data sets, of which a share may be held out;
    `weight` is the handbook's, the share of its rows that are taken."""
    sets = (
        [one for one in value.get("datasets") or () if isinstance(one, Mapping)] if isinstance(value, Mapping) else []
    )
    parts = []
    for one in sets:
        found: dict[str, Any] = {"data.path": str(one.get("id") or one.get("path"))}
        found["data.split"] = str(one.get("split", "train"))
        config, share = one.get("config") or one.get("name"), one.get("weight", one.get("fraction"))
        found |= {"data.subset": config} if config not in (None, "default") else {}
        parts.append(shared.part_of(found, 1 if share is None else share))
    said = [{**one.settings, "data.split": ""} for one in parts]
    whole = not any("[" in str(one.settings["data.split"]) for one in parts)
    if said and whole and all(one == said[0] for one in said):  # splits of one data set
        split = "+".join(str(one.settings["data.split"]) for one in parts)
        made = Outcome({**parts[0].settings, "data.split": split}, parts[0].note, parts[0].translated)
    else:
        made = parts[0] if len(parts) == 1 else shared.mixed(parts)
    if not (size := value.get("test_split_size")):
        return made
    rest = shared.held_out(made.settings, size)
    notes = " ".join(note for note in (made.note, rest.note) if note)
    return Outcome({**made.settings, **rest.settings}, notes, made.translated and rest.translated)


def _dataset(value: Any, theirs: Theirs) -> Outcome:
    found: dict[str, Any] = {"data.path": value}
    evaluates = theirs.values.get("eval_strategy", theirs.values.get("evaluation_strategy")) not in (None, "no", False)
    if shared.is_hub_id(value) and evaluates:
        found["data.eval_path"] = value
    return Outcome(found)


_BATCH = shared.rows_per_step("per_device_train_batch_size", "gradient_accumulation_steps", 8)
_KEYS: Mapping[str, Entry] = {
    **shared.TRAINER,
    "method": Computed(_method, "`sft`; others are known by keys that only their trainers' configs have"),
    # model
    **alike("model_name_or_path model_name", Becomes("model.name")),
    "model_revision": shared.REVISION,
    "torch_dtype": shared.DTYPE,
    "dtype": shared.DTYPE,
    "attn_implementation": Covered(shared.ATTENTION),
    "load_in_4bit": Becomes("model.load_in_4bit"),
    "load_in_8bit": Untranslated(shared.OTHER_BASE),
    "bnb_4bit_quant_type": shared.NF4,
    "use_bnb_nested_quant": shared.DOUBLE,
    "max_seq_length": Becomes("model.max_seq_length"),
    "max_length": Computed(length, "`model.max_seq_length`; of GRPO, prompt and completion together"),
    "use_liger_kernel": shared.UNSLOTHS,
    "use_cache": Covered("no cache of keys is kept in training"),
    "model_init_kwargs": Untranslated(
        "Unsloth loads the model: model.dtype, model.load_in_4bit, model.max_seq_length."
    ),
    "tokenizer_name_or_path": Untranslated(shared.OWN_TOKENIZER),
    # adapter
    "use_peft": Chooses({True: {}}, shared.ONLY_LORA),
    "lora_r": Becomes("lora.r"),
    "lora_alpha": Becomes("lora.alpha"),
    "lora_dropout": Becomes("lora.dropout"),
    "lora_target_modules": shared.TARGETS,
    "use_rslora": Becomes("lora.use_rslora"),
    "use_dora": Becomes("lora.use_dora"),
    "lora_modules_to_save": shared.WHOLE_MODULES,
    "lora_target_parameters": Becomes("lora.target_parameters", how=shared.modules, otherwise="a list of names."),
    "lora_task_type": Chooses({"CAUSAL_LM": {}}, "this version trains language models."),
    # data
    "dataset_name": Computed(_dataset, "`data.path`"),
    "dataset_config": Becomes("data.subset"),
    "dataset_train_split": Becomes("data.split"),
    "dataset_test_split": Becomes("data.eval_split"),
    "dataset_streaming": Becomes("data.streaming"),
    "dataset_mixer": Computed(_mixer, "`data.path`; of several data sets `data.mix`"),
    "dataset_mixture": Computed(
        _mixture, "`data.path`, `data.subset`, `data.split`; of several data sets `data.mix`; `data.eval_fraction`"
    ),
    "datasets": Computed(lambda value, theirs: _mixture({"datasets": value}, theirs), "as dataset_mixture"),
    "dataset_splits": Covered("in data.split and data.eval_split"),
    "dataset_text_field": Chooses({"text": {}}, "data.columns: {text: NAME} renames a column."),
    "dataset_kwargs": Untranslated("data.format and data.train_on say what rows are."),
    "preprocessing_num_workers": Becomes("training.dataset_num_proc"),
    "assistant_only_loss": Chooses({True: {"data.train_on": "responses"}, False: {}}, "true or false."),
    "completion_only_loss": Chooses(
        {True: {"data.train_on": "responses"}, False: {"data.train_on": "all"}}, "true or false."
    ),
    "packing_strategy": Becomes(
        "training.packing_strategy", "ffd is bfd by now", how=lambda value: {"ffd": "bfd"}.get(value, value)
    ),
    "chat_template": Computed(shared.template_file, "`model.chat_template`: written to a file beside run.yaml"),
    "eos_token": Untranslated(
        "an answer ends with the token that the chat template writes; the tokenizer's own is kept."
    ),
    "system_prompt": shared.SYSTEM_PROMPT,
    # batch
    "per_device_train_batch_size": _BATCH,
    "gradient_accumulation_steps": _BATCH,
    # elsewhere
    "hub_model_revision": Becomes("training.hub_revision"),
    "hf_hub_token": Untranslated(shared.NO_SECRET),
    "wandb_project": Untranslated(shared.WANDB.format("WANDB_PROJECT"), off=()),
    "wandb_entity": Untranslated(shared.WANDB.format("WANDB_ENTITY"), off=()),
    "callbacks": Untranslated("callbacks are added by a script of your own.", off=([],)),
    "benchmarks": Untranslated("a finished model is measured elsewhere: unsloth-accel merge writes it.", off=([],)),
    **GRPO,
    "loss_type": Computed(_loss_type, "`training.loss_type`, of DPO a list"),
    "max_prompt_length": Covered("TRL cuts a prompt with its answer, and leaves out one of GRPO that is too long"),
    "ref_model_init_kwargs": Untranslated(shared.BASE_SERVES, off=()),
    "rpo_alpha": shared.sft_beside("rpo_alpha"),
}

TRL = Tool(
    name="TRL",
    link="https://github.com/huggingface/trl",
    needs=frozenset({"model_name_or_path", "dataset_name", "dataset_mixer", "dataset_mixture"}),
    marks=frozenset(
        {
            "dataset_name",
            "dataset_mixer",
            "dataset_mixture",
            "use_peft",
            "learning_rate",
            "per_device_train_batch_size",
            "torch_dtype",
            "num_train_epochs",
        }
    ),
    keys=_KEYS,
    fields=True,
    method=method_of,
    defaults={
        "method": "",
        "use_peft": False,
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "max_length": 1024,
        "per_device_train_batch_size": 8,
    },
)
