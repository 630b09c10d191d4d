"""LLaMA-Factory's YAML (`llamafactory-cli train`), by its hparams/*.py of August 2026."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...files import read_json
from . import shared
from .keys import Becomes, Chooses, Computed, Covered, Entry, Outcome, Theirs, Tool, Untranslated, alike

_COLUMNS = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "history": "history",
    "system": "system",
    "tools": "tools",
    "messages": "conversations",
}
"""Columns of dataset_info.json, by the names they have here."""
_TAGS: tuple[Mapping[str, str], ...] = (
    {
        "role_tag": "from",
        "content_tag": "value",
        "user_tag": "human",
        "assistant_tag": "gpt",
        "observation_tag": "observation",
        "function_tag": "function_call",
        "system_tag": "system",
    },
    {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "observation_tag": "tool",
        "function_tag": "function_call",
        "system_tag": "system",
    },
)
"""The tags of ShareGPT's and OpenAI's messages, which are read here."""
_ABOVE = 4
"""Directories above the YAML file in which dataset_dir is looked for: its examples lie two below its root."""
_OWN_OPTIMIZER = "is an optimizer of LLaMA-Factory's own; training.optim takes transformers'."
_KTRANSFORMERS = "KTransformers trains on the CPU beside the GPU; here every weight is on the GPUs."
_BEGINS_AT_ZERO = "an adapter begins at zero here; leave it out."
_MEGATRON = "is Megatron's, which divides models otherwise; here the plan decides (distributed.strategy)."
_STAGES = {"rm": "reward"}
"""Names of stages that are other ones here."""
_STRATEGIES = {"interleave_under": "first_exhausted", "interleave_over": "all_exhausted"}
"""Values of mix_strategy, as `datasets` calls them."""
_LOSSES = ("sigmoid", "hinge", "ipo")
"""Losses of preferences that have TRL's names."""


def method_of(values: Mapping[str, Any]) -> str:
    """Return the method that a file asks for."""
    stage = str(values.get("stage", "sft"))
    if stage == "dpo" and values.get("pref_loss") in ("orpo", "simpo"):
        return str(values["pref_loss"])
    return {"pt": "sft", **_STAGES}.get(stage, stage)


def _stage(value: Any, theirs: Theirs) -> Outcome:
    if value == "pt":
        packing = {} if "packing" in theirs.values else {"training.packing": True}
        return Outcome({"method": "sft", "data.format": "text", "data.train_on": "all"} | packing)
    return shared.method(method_of(theirs.values))


def _loss(value: Any, theirs: Theirs) -> Outcome:
    if value in ("orpo", "simpo"):
        return Outcome(note="in method")
    if value not in _LOSSES:
        return Outcome(
            note=f"training.loss_type takes TRL's losses, {', '.join(_LOSSES)} among them.", translated=False
        )
    weighed = theirs.has("pref_ftx") and value == "sigmoid"
    return Outcome(note="in training.loss_type") if weighed else Outcome({"training.loss_type": [value]})


def _dataset(value: Any, theirs: Theirs, key: str = "data.path") -> Outcome:
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else list(map(str, value))
    if len(names) > 1:
        return _together(names, theirs, key)
    folder, record = _record(names[0], theirs)
    if record is None:
        reason = (
            f"is a name in {theirs.values.get('dataset_dir') or 'data'}/dataset_info.json, which is not there: name "
            f"the file of rows, or its hub id, in {key} (init --data)."
        )
        return Outcome({key: names[0]}, reason, translated=False)
    tags = record.get("tags")
    if isinstance(tags, Mapping) and not any(tags.items() <= known.items() for known in _TAGS):
        reason = "has tags of its own: rename them to role and content, user and assistant, in the rows."
        return Outcome({key: names[0]}, reason, translated=False)
    place = record.get("hf_hub_url") or (str(folder / str(record["file_name"])) if "file_name" in record else None)
    if place is None or record.get("ranking"):
        reason = "comes from a script, another hub, or has pairs of answers: write its rows to a file, and name it."
        return Outcome({key: names[0]}, reason, translated=False)
    if key != "data.path":
        return Outcome({key: place})
    return Outcome({key: place} | _form(record), "as dataset_info.json says")


def _together(names: Sequence[str], theirs: Theirs, key: str) -> Outcome:
    """Return the outcome of several data sets: a mix, or one path with braces of held-out files that are read alike."""
    outcomes = [_dataset(name, theirs, key) for name in names]
    if key == "data.path":
        strategy, most = str(theirs.values.get("mix_strategy", "concat")), theirs.values.get("max_samples")
        weights = _probabilities(theirs, len(names)) if strategy.startswith("interleave") else []
        found = shared.mixed(outcomes, weights, most if type(most) is int else None)
        until = {"data.stopping_strategy": _STRATEGIES[strategy]} if weights and strategy in _STRATEGIES else {}
        return Outcome({**found.settings, **until}, found.note, found.translated)
    places = [str(one.settings[key]) for one in outcomes]
    folders = {os.path.dirname(place) for place in places}
    if len(folders) > 1 or any(map(shared.is_hub_id, places)) or not all(one.translated for one in outcomes):
        return shared.several(names, key)
    return Outcome({key: f"{folders.pop()}/{{{','.join(map(os.path.basename, places))}}}"}, outcomes[0].note)


def _probabilities(theirs: Theirs, count: int) -> list[float]:
    """Return interleave_probs, numbers between commas; alike for each of `count` data sets where there are none."""
    said = theirs.values.get("interleave_probs")
    given = said.split(",") if isinstance(said, str) else said if isinstance(said, list) else []
    return [float(one) for one in given] or [round(1 / count, 4)] * count


def _mix_strategy(value: Any, theirs: Theirs) -> Outcome:
    if not isinstance(theirs.values.get("dataset"), list) and "," not in str(theirs.values.get("dataset")):
        return Outcome(note="there is one data set")
    if value == "concat":
        return Outcome(note="all rows of data.mix, as here")
    if value not in _STRATEGIES:
        return Outcome(note="a mix with weights ends at first_exhausted or all_exhausted.", translated=False)
    turns = "" if theirs.has("interleave_probs") else "; drawn in equal shares, where they came in turn"
    return Outcome(note=f"in data.mix and data.stopping_strategy{turns}")


def _max_samples(value: Any, theirs: Theirs) -> Outcome:
    several_sets = isinstance(theirs.values.get("dataset"), list) or "," in str(theirs.values.get("dataset"))
    return Outcome(note="in data.mix, of each source") if several_sets else Outcome({"data.max_rows": value})


def _record(name: str, theirs: Theirs) -> tuple[Path, Mapping[str, Any] | None]:
    """Return the directory of the rows, and what dataset_info.json there says of a data set; None if nothing."""
    said = Path(str(theirs.values.get("dataset_dir") or "data"))
    for above in (Path(), theirs.place, *[*theirs.place.absolute().parents][:_ABOVE]):
        record = read_json(above / said / "dataset_info.json").get(name)
        if isinstance(record, dict):
            return above / said, record
    return said, None


def _form(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the format, columns, subset and split that an entry of dataset_info.json says."""
    tags = record.get("tags") if isinstance(record.get("tags"), dict) else {}
    chat = record.get("formatting") == "openai" or (tags or {}).get("role_tag") == "role"
    form = "chat" if chat else str(record.get("formatting", "alpaca"))
    columns = record.get("columns") if isinstance(record.get("columns"), dict) else {}
    ours = {**_COLUMNS, "messages": "messages" if chat else "conversations"}
    named = {ours[theirs]: name for theirs, name in (columns or {}).items() if theirs in ours and ours[theirs] != name}
    settings: dict[str, Any] = {"data.format": form} | ({"data.columns": named} if named else {})
    return settings | {f"data.{key}": record[key] for key in ("subset", "split") if record.get(key)}


def _rank(value: Any, theirs: Theirs) -> Outcome:
    if theirs.values.get("lora_alpha") is not None or not isinstance(value, int):
        return Outcome({"lora.r": value})
    return Outcome({"lora.r": value, "lora.alpha": 2 * value}, "lora_alpha is left out: twice the rank")


def _adapter(value: Any, theirs: Theirs) -> Outcome:
    if "," in str(value):
        return Outcome(note="training goes on from one adapter: merge the others first.", translated=False)
    return Outcome({"model.name": value}, "training goes on from this adapter, whose base it names")


def _bits(value: Any, theirs: Theirs) -> Outcome:
    if value == 4 and theirs.values.get("quantization_method", "bnb") in ("bnb", "bitsandbytes"):
        return Outcome({"model.load_in_4bit": True})
    return Outcome(note="bitsandbytes' 4 bit is what a base is loaded in: model.load_in_4bit=true.", translated=False)


def _trained(value: Any, theirs: Theirs) -> Outcome:
    if theirs.values.get("stage", "sft") != "sft":
        return Outcome()
    return Outcome({"data.train_on": "all" if value else "responses"})


def _held_out(value: Any, theirs: Theirs) -> Outcome:
    return shared.held_out(_dataset(theirs.values.get("dataset") or "", theirs).settings, float(value))


_BATCH = shared.rows_per_step("per_device_train_batch_size", "gradient_accumulation_steps", 8)
_KEYS: Mapping[str, Entry] = {
    **shared.TRAINER,
    # model
    "model_name_or_path": Becomes("model.name"),
    "adapter_name_or_path": Computed(_adapter, "`model.name`: training goes on from this adapter"),
    "model_revision": shared.REVISION,
    "cutoff_len": Becomes("model.max_seq_length"),
    "quantization_bit": Computed(_bits, "4: `model.load_in_4bit: true`; others are not translated"),
    "quantization_method": Chooses({"bnb": {}, "bitsandbytes": {}}, "a base is loaded in bitsandbytes' 4 bit only."),
    "double_quantization": shared.DOUBLE,
    "quantization_type": shared.NF4,
    "flash_attn": Covered(shared.ATTENTION),
    "use_unsloth": Covered("it is always Unsloth"),
    "use_unsloth_gc": Covered("model.gradient_checkpointing is Unsloth's own"),
    "use_reentrant_gc": shared.TRAINER["gradient_checkpointing_kwargs"],
    "disable_gradient_checkpointing": Chooses(
        {True: {"model.gradient_checkpointing": "false"}, False: {}}, "true or false."
    ),
    "enable_liger_kernel": shared.UNSLOTHS,
    "use_v1_kernels": shared.UNSLOTHS,
    "use_fast_tokenizer": Covered("Unsloth loads the tokenizer"),
    "low_cpu_mem_usage": Covered("Unsloth loads the model"),
    "hf_hub_token": Untranslated(shared.NO_SECRET),
    "rope_scaling": Untranslated("Unsloth scales positions by itself where model.max_seq_length asks for it."),
    # method
    "stage": Computed(
        _stage,
        "sft, dpo, kto: `method`; rm: `method: reward`; pt: `method: sft`, on text; dpo with pref_loss orpo: `orpo`",
    ),
    "finetuning_type": Chooses({"lora": {}}, shared.ONLY_LORA),
    "lora_rank": Computed(_rank, "`lora.r`; without lora_alpha, `lora.alpha` is twice as much"),
    "lora_alpha": Becomes("lora.alpha"),
    "lora_dropout": Becomes("lora.dropout"),
    "lora_target": shared.TARGETS,
    "use_rslora": Becomes("lora.use_rslora"),
    "create_new_adapter": Untranslated("training goes on from the adapter that model.name names; merge it first."),
    "additional_target": shared.WHOLE_MODULES,
    "pure_bf16": Chooses({True: {"training.bf16": True}, False: {}}, "true or false."),
    "upcast_layernorm": Covered("Unsloth chooses what it computes in 32 bit"),
    **alike("use_adam_mini use_muon", Untranslated(_OWN_OPTIMIZER)),
    "early_stopping_steps": Becomes("training.early_stopping_patience", "evaluations without a better loss"),
    "plot_loss": Covered("report.html draws it"),
    "disable_shuffling": Untranslated(shared.NEW_ORDER),
    "include_effective_tokens_per_second": Covered("tokens per second are in the log and the report"),
    # data
    "dataset": Computed(
        _dataset, "`data.path`, `data.format`, `data.columns`, as dataset_info.json says; of several `data.mix`"
    ),
    "eval_dataset": Computed(lambda value, theirs: _dataset(value, theirs, "data.eval_path"), "`data.eval_path`"),
    "dataset_dir": Covered("read to find dataset_info.json"),
    "template": Chooses({"chatml": {"model.chat_template": "chatml"}}, shared.OTHER_TEMPLATE),
    "add_tokens": shared.ADDED_TOKENS,
    "resize_vocab": Covered("the embeddings get a row for every token that is added"),
    "train_on_prompt": Computed(_trained, "false: `data.train_on: responses`; true: `all`"),
    "mask_history": Untranslated("every answer of a chat is trained: give the earlier ones weight: 0 in the rows."),
    "streaming": Becomes("data.streaming"),
    "mix_strategy": Computed(_mix_strategy, "`data.mix`, with weights where it interleaves; `data.stopping_strategy`"),
    "interleave_probs": Covered("in data.mix, as weights"),
    "max_samples": Computed(_max_samples, "`data.max_rows`; of several data sets `max_rows` of each in `data.mix`"),
    "val_size": Computed(_held_out, "below 1 `data.eval_fraction`; else the last rows, of a hub data set"),
    "packing": Becomes("training.packing"),
    "neat_packing": Chooses(
        {True: {"training.packing": True}, False: {}}, "true or false.", "packed rows don't attend to one another"
    ),
    "preprocessing_num_workers": Becomes("training.dataset_num_proc"),
    "overwrite_cache": Covered("rows that changed are tokenised anew by themselves"),
    "preprocessing_batch_size": Covered("says how rows are tokenised, not what becomes of them"),
    "data_shared_file_system": Covered("one rank tokenises, the others wait for it"),
    "tokenized_path": Untranslated("tokenised rows are kept in a cache of this package: name the rows in data.path."),
    "tool_format": Covered("tools are written by the model's own chat template"),
    "ignore_pad_token_for_loss": Chooses({True: {}}, "padding is never trained here."),
    "default_system": shared.SYSTEM_PROMPT,
    "enable_thinking": Untranslated(
        "a template of its own decides what it does: data.chat_template_kwargs={enable_thinking: false}.", off=(True,)
    ),
    **alike(
        "media_dir image_max_pixels image_min_pixels video_max_pixels video_min_pixels video_fps video_maxlen "
        "freeze_vision_tower freeze_multi_modal_projector freeze_language_model",
        shared.TEXT_ONLY,
    ),
    # batch
    "per_device_train_batch_size": _BATCH,
    "gradient_accumulation_steps": _BATCH,
    # elsewhere
    "ray_num_workers": Untranslated(shared.WITHOUT_RAY, off=(1,)),
    "predict_with_generate": Untranslated("evaluation.exact_match=true answers held-out rows."),
    "compute_accuracy": Untranslated("evaluation.exact_match=true counts answers equal to the reference."),
    "use_swanlab": shared.SWANLAB,
    "infer_backend": Covered("is for inference"),
    "pref_loss": Computed(_loss, "`training.loss_type`, for TRL's losses; orpo is a `method`"),
    "pref_beta": Becomes("training.beta"),
    "pref_ftx": shared.sft_beside("pref_ftx"),
    "pref_bco_weight": Untranslated("TRL weighs losses by training.loss_weights.", off=(0,)),
    "dpo_label_smoothing": Untranslated(shared.SMOOTHED, off=(0,)),
    "kto_chosen_weight": Becomes("training.desirable_weight"),
    "kto_rejected_weight": Becomes("training.undesirable_weight"),
    "simpo_gamma": Covered("belongs to SimPO, which pref_loss says"),
    **alike("ref_model ref_model_adapters ref_model_quantization_bit", Untranslated(shared.BASE_SERVES)),
    **alike(
        "tensor_model_parallel_size pipeline_model_parallel_size context_parallel_size expert_model_parallel_size "
        "sequence_parallel",
        Untranslated(_MEGATRON, off=(1, False)),
    ),
    "fp8": shared.FP8,
    "use_kt": Untranslated(_KTRANSFORMERS),
    "use_llama_pro": Untranslated(shared.ONLY_LORA),
    "ddp_timeout": Becomes("training.ddp_timeout"),
    "use_dora": Becomes("lora.use_dora"),
    "loraplus_lr_ratio": shared.ONE_RATE,
    **alike("use_galore use_apollo use_badam mixture_of_depths", Untranslated(shared.ONLY_LORA)),
    **alike(
        "use_dft_loss use_asft_loss use_eaft_loss",
        Untranslated("is a loss of LLaMA-Factory's own; training.loss_type takes TRL's."),
    ),
}

LLAMA_FACTORY = Tool(
    name="LLaMA-Factory",
    link="https://github.com/hiyouga/LLaMA-Factory",
    needs=frozenset({"model_name_or_path"}),
    marks=frozenset({"stage", "finetuning_type", "cutoff_len", "template", "dataset", "lora_rank", "export_dir"}),
    keys=_KEYS,
    fields=True,
    method=method_of,
    families={
        **alike("galore_ apollo_ badam_ freeze_ oft_", Untranslated(shared.ONLY_LORA, off=())),
        "kt_": Untranslated(_KTRANSFORMERS, off=()),
        "pissa_": Untranslated(_BEGINS_AT_ZERO),
        **alike("asft_ eaft_", Covered("belongs to a loss of LLaMA-Factory's own")),
        "fp8_": shared.FP8,
        "swanlab_": shared.SWANLAB,
        "export_": Covered("says what becomes of a finished model: unsloth-accel merge OUTPUT_DIR writes it"),
        **alike("infer_ vllm_ sglang_", Covered("is for inference")),
        **alike(
            "use_distributed_optimizer overlap_ recompute_ moe_ bias_ apply_rope use_packed", Untranslated(_MEGATRON)
        ),
    },
    defaults={
        "finetuning_type": "lora",
        "lora_rank": 8,
        "train_on_prompt": False,
        "learning_rate": 5e-5,
        "per_device_train_batch_size": 8,
    },
)
