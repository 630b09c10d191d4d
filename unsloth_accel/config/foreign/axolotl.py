"""axolotl's YAML (`axolotl train`), by its utils/schemas/*.py of July 2026 and the names of earlier releases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import shared
from .keys import Becomes, Chooses, Computed, Covered, Entry, Outcome, Theirs, Tool, Untranslated, alike

_OWN = "is axolotl's own; training.{} takes transformers'."
_OWN_OPTIMIZERS = alike(
    "optimi_adamw ao_adamw_4bit ao_adamw_8bit ao_adamw_fp8 adopt_adamw came_pytorch muon dion sinkgd flash_adamw "
    "flash_adam flash_sgd flash_sgdw flash_lion q_galore_adamw8bit",
    _OWN.format("optim"),
)
_QUIET_PLUGINS = ("liger", "cut_cross_entropy")
"""Plugins in whose place Unsloth has kernels of its own."""
_FORMS = {
    "alpaca": "alpaca",
    "alpaca_chat": "alpaca",
    "sharegpt": "sharegpt",
    "chat_template": "chat",
    "completion": "text",
    "pretrain": "text",
}
_USED = (
    *("path", "type", "split", "name", "data_files", "ds_type", "field", "text_column", "field_messages"),
    *("field_tools", "message_property_mappings", "message_field_role", "message_field_content", "trust_remote_code"),
)
"""Keys of a data set that are read."""
_AS_HERE = {
    "roles_to_train": ["assistant"],
    "train_on_eos": "turn",
    "train_on_eot": "turn",
    "roles": {"system": ["system"], "user": ["user"], "assistant": ["assistant"]},
    "chat_template": "tokenizer_default",
}
"""Keys of a data set with the value that says what is done here."""
_BUILDERS = ("json", "csv", "parquet", "text")
"""Paths that say how data_files are read."""
_INSTRUCTIONS = "rows become chats in the model's own template, without the Alpaca prompt's words"


def _datasets(value: Any, theirs: Theirs, key: str = "data.path") -> Outcome:
    """A list of data sets; their keys have entries of their own (`_DATASET`). Of several files each is one."""
    sets = [one if isinstance(one, Mapping) else {"path": one} for one in value] if isinstance(value, list) else []
    each = [part for one in sets for part in _files(one)]
    if len(each) == 1:
        return _one(each[0], theirs, key)
    if key != "data.path" or not each:
        return shared.several([str(one.get("path")) for one in sets], key)
    return shared.mixed([_one(one, theirs, key) for one in each])


def _files(dataset: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a data set, or several where it names several files here."""
    files = dataset.get("data_files")
    if isinstance(files, list) and files and dataset.get("path") in _BUILDERS:
        return [{**dataset, "data_files": file} for file in files]
    return [dict(dataset)]


def _one(first: Mapping[str, Any], theirs: Theirs, key: str) -> Outcome:
    split = "data.split" if key == "data.path" else "data.eval_split"
    files, path = first.get("data_files"), str(first.get("path"))
    local = files if isinstance(files, str) and path in _BUILDERS else None
    settings: dict[str, Any] = {key: local or path}
    settings |= {split: first["split"]} if first.get("split") else {}
    settings |= {"data.subset": first["name"]} if first.get("name") else {}
    if files and not local:
        return Outcome(settings, "data_files of a hub's data set: download them, and name the files.", translated=False)
    others = [name for name, one in first.items() if name not in _USED and one and one != _AS_HERE.get(str(name))]
    if key != "data.path":
        return Outcome(settings)
    form, note = _form(first)
    if form is None:
        return Outcome(settings, note, translated=False)
    answers = "all" if theirs.values.get("train_on_inputs") or form.get("data.format") == "text" else "responses"
    if others:
        note = f"all but {', '.join(map(str, others))}, which nothing here does: write rows as they shall be trained."
    return Outcome(settings | form | {"data.train_on": answers}, note, translated=not others)


def _form(dataset: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """Return format and columns of a data set's rows, or None, and what is to be said of them."""
    kind = dataset.get("type") or "alpaca"
    if not isinstance(kind, str) or kind.split(".")[0].split(":")[0] not in _FORMS:
        reason = (
            f"type {kind if isinstance(kind, str) else 'of its own'} is a prompt of axolotl's: write the rows as "
            "messages, or as prompt and completion."
        )
        return None, reason
    form = _FORMS[kind.split(".")[0].split(":")[0]]
    if form == "alpaca":
        return {"data.format": form}, _INSTRUCTIONS
    if form == "text":
        column = dataset.get("field") or dataset.get("text_column") or "text"
        return {"data.format": form} | ({} if column == "text" else {"data.columns": {"text": column}}), ""
    names = dataset.get("message_property_mappings")
    names = names if isinstance(names, Mapping) else {}
    role = names.get("role") or dataset.get("message_field_role") or ("from" if form == "sharegpt" else "role")
    said = (
        names.get("content") or dataset.get("message_field_content") or ("value" if form == "sharegpt" else "content")
    )
    known = {("from", "value"): ("sharegpt", "conversations"), ("role", "content"): ("chat", "messages")}
    if (role, said) not in known:
        return None, f"messages have {role} and {said}: rename them to role and content in the rows."
    form, usual = known[role, said]
    column = dataset.get("field_messages") or ("messages" if kind != "sharegpt" else "conversations")
    columns = {} if column == usual else {usual: column}
    if tools := dataset.get("field_tools"):
        columns |= {} if tools == "tools" else {"tools": tools}
    return {"data.format": form} | ({"data.columns": columns} if columns else {}), ""


def _pretraining(value: Any, theirs: Theirs) -> Outcome:
    sets = value if isinstance(value, list) else [value]
    sets = [{"type": "pretrain"} | (dict(one) if isinstance(one, Mapping) else {"path": one}) for one in sets]
    found = _datasets(sets, theirs)
    return Outcome({**found.settings, "data.streaming": True}, found.note, found.translated)


def _val_set_size(value: Any, theirs: Theirs) -> Outcome:
    if not value:
        return Outcome(note="off, as here")
    return shared.held_out(_datasets(theirs.values.get("datasets") or [], theirs).settings, float(value))


def _each_epoch(what: str) -> Entry:
    """Return the entry of `saves_per_epoch` or `evals_per_epoch`, for what axolotl makes of it itself."""

    def read(value: Any, theirs: Theirs) -> Outcome:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return Outcome(note=f"is no number: set training.{what}_steps.", translated=False)
        if what == "eval" and not theirs.has("val_set_size", "test_datasets"):
            return Outcome(note="no rows are held out, so there is no evaluation, as there")
        if not value:
            return Outcome({f"training.{what}_strategy": "no"})
        epochs = theirs.number("num_epochs", 1)
        share = round(1 / (value * epochs), 6)
        if share >= 1:
            return Outcome({f"training.{what}_strategy": "epoch"})
        return Outcome({f"training.{what}_strategy": "steps", f"training.{what}_steps": share}, "a share of all steps")

    return Computed(read, f"`training.{what}_strategy: steps`, `training.{what}_steps`: a share of all steps")


def _template(value: Any, theirs: Theirs) -> Outcome:
    if value == "jinja":
        return shared.template_file(theirs.values.get("chat_template_jinja"), theirs)
    if value == "chatml":
        note = "the same text; where <|im_end|> is no token, Unsloth renames the one that ends a text to it"
        return Outcome({"model.chat_template": value}, note)
    return Outcome() if value == "tokenizer_default" else Outcome(note=shared.OTHER_TEMPLATE, translated=False)


def _special_tokens(value: Any, theirs: Theirs) -> Outcome:
    others = sorted(set(value) - {"pad_token", "unk_token"}) if isinstance(value, Mapping) else []
    if not others:
        return Outcome(note="padding is never trained, whatever token it is")
    reason = f"{', '.join(others)}: the tokenizer's own are taken; save a tokenizer that has others beside the model."
    return Outcome(note=reason, translated=False)


def _plugins(value: Any, theirs: Theirs) -> Outcome:
    names = value if isinstance(value, list) else [value]
    others = [str(name) for name in names if not any(quiet in str(name) for quiet in _QUIET_PLUGINS)]
    if not others:
        return Outcome(note=shared.KERNELS)
    return Outcome(note=f"{', '.join(others)}: plugins of axolotl don't run here.", translated=False)


def _least_rate(value: Any, theirs: Theirs) -> Outcome:
    settings = {
        "training.lr_scheduler_type": "cosine_with_min_lr",
        "training.lr_scheduler_kwargs": {"min_lr_rate": value},
    }
    return Outcome(settings)


def _project(value: Any, theirs: Theirs) -> Outcome:
    return Outcome({"logging.report_to": "wandb"}, f"and export WANDB_PROJECT={value}")


_AS_THE_TRAINER = (
    *("output_dir", "evaluation_strategy", "eval_strategy", "save_strategy", "warmup_ratio", "group_by_length"),
    *("save_safetensors", "remove_unused_columns", "local_rank", "ddp_find_unused_parameters", "accelerator_config"),
    *("auto_find_batch_size", "gradient_checkpointing", "gradient_checkpointing_kwargs", "resume_from_checkpoint"),
    *("fsdp", "fsdp_config", "deepspeed", "hub_token"),
)
_BATCH = shared.rows_per_step("micro_batch_size", "gradient_accumulation_steps", 1)
_RL = Covered("belongs to another training method, which rl says")


def method_of(values: Mapping[str, Any]) -> str:
    """Return the method that a file asks for."""
    if values.get("reward_model"):
        return "reward"
    asked = str(values.get("rl") or "sft")
    return "dpo" if asked == "ipo" else asked


def _rl(value: Any, theirs: Theirs) -> Outcome:
    found = shared.method(method_of(theirs.values))
    return Outcome({**found.settings, "training.loss_type": ["ipo"]}) if value == "ipo" else found


_DATASETS = (
    "`data.path`, `data.split`, `data.subset`, `data.format`, `data.columns`, `data.train_on`; of several `data.mix`"
)
_KEYS: Mapping[str, Entry] = {
    **{key: shared.TRAINER[key] for key in _AS_THE_TRAINER},
    # model
    "base_model": Becomes("model.name"),
    "base_model_config": Covered("the model's own config.json is read"),
    "tokenizer_config": Untranslated(shared.OWN_TOKENIZER),
    "revision_of_model": shared.REVISION,
    "base_model_ignore_patterns": Covered("says what is downloaded"),
    **alike(
        "model_type tokenizer_type tokenizer_use_fast tokenizer_legacy",
        Covered("Unsloth loads model and tokenizer by what their files say"),
    ),
    **alike(
        "is_falcon_derived_model is_llama_derived_model is_mistral_derived_model is_qwen_derived_model",
        Covered("Unsloth knows the model by its config.json"),
    ),
    "tokenizer_use_mistral_common": Untranslated("the tokenizer of transformers is taken."),
    "trust_remote_code": Becomes("model.trust_remote_code"),
    **alike("processor_type freeze_mm_modules image_size", shared.TEXT_ONLY),
    "sequence_len": Becomes("model.max_seq_length"),
    "excess_length_strategy": Chooses(
        {"drop": {"data.too_long": "drop"}, "truncate": {"data.too_long": "cut"}}, "data.too_long is cut or drop."
    ),
    "load_in_4bit": Becomes("model.load_in_4bit"),
    **alike(
        "load_in_8bit gptq gptq_groupsize gptq_model_v1 gptq_disable_exllama model_quantization_config "
        "model_quantization_config_kwargs bnb_config_kwargs quantize_moe_experts use_onebitllms",
        Untranslated(shared.OTHER_BASE),
    ),
    **alike("model_config overrides_of_model_config", Untranslated("change the config.json of the model's directory.")),
    **alike(
        "device_map low_cpu_mem_usage max_memory gpu_memory_limit torchdistx_path experimental_skip_move_to_device",
        Covered("each process loads its model onto its own GPU"),
    ),
    **alike(
        "attn_implementation flash_attention xformers_attention sdp_attention flex_attention eager_attention "
        "sage_attention flex_attn_compile_kwargs flash_optimum gemma4_hybrid_attn_impl pretrain_multipack_attn",
        Covered(shared.ATTENTION),
    ),
    **alike(
        "lora_mlp_kernel lora_qkv_kernel lora_o_kernel lora_embedding_kernel use_kernels cut_cross_entropy "
        "chunked_cross_entropy fused_attn_kernel flash_attn_cross_entropy flash_attn_fuse_mlp flash_attn_rms_norm "
        "unsloth_lora_mlp tiled_mlp liger_rope liger_rms_norm liger_layer_norm liger_glu_activation "
        "liger_fused_linear_cross_entropy liger_swiglu liger_cross_entropy liger_rms_norm_gated use_scattermoe "
        "use_sonicmoe experts_implementation llama4_linearized_experts",
        shared.UNSLOTHS,
    ),
    "plugins": Computed(_plugins, "nothing to write for liger and cut_cross_entropy; other plugins don't run here"),
    **alike("torch_compile torch_compile_backend torch_compile_mode", Covered("Unsloth compiles what it replaces")),
    # adapter
    "adapter": Chooses({"lora": {}, "qlora": {"model.load_in_4bit": True}}, shared.ONLY_LORA),
    "lora_model_dir": Becomes("model.name", "training goes on from this adapter, whose base it names"),
    "lora_r": Becomes("lora.r"),
    "lora_alpha": Becomes("lora.alpha"),
    "lora_dropout": Becomes("lora.dropout"),
    "lora_target_modules": shared.TARGETS,
    "lora_target_linear": Chooses({True: {"lora.target_modules": "all-linear"}, False: {}}, "true or false."),
    "lora_target_parameters": Becomes("lora.target_parameters", how=shared.modules, otherwise="a list of names."),
    "lora_modules_to_save": shared.WHOLE_MODULES,
    "lora_fan_in_fan_out": Covered("PEFT finds it out by itself"),
    "lora_on_cpu": Covered("says where an adapter is loaded"),
    "peft_use_rslora": Becomes("lora.use_rslora"),
    "peft_use_dora": Becomes("lora.use_dora"),
    "peft": Untranslated("LoftQ and its like begin with another base; leave it out."),
    "peft_layers_to_transform": Becomes("lora.layers_to_transform"),
    "peft_layers_pattern": Becomes("lora.layers_pattern"),
    "peft_init_lora_weights": Becomes("lora.init_lora_weights"),
    "relora": Untranslated("ReLoRA merges the adapter while it trains; here one adapter is trained."),
    **alike("relora_prune_ratio relora_cpu_offload relora_steps", Covered("belongs to ReLoRA")),
    "loraplus_lr_ratio": shared.ONE_RATE,
    "embedding_lr": shared.EMBEDDING_RATE,
    "embedding_lr_scale": Untranslated("training.embedding_learning_rate takes the rate itself."),
    **alike("unfrozen_parameters full_finetune", Untranslated(shared.ONLY_LORA)),
    "merge_lora": Covered("unsloth-accel merge OUTPUT_DIR does it afterwards"),
    # data
    "datasets": Computed(_datasets, _DATASETS),
    "test_datasets": Computed(
        lambda value, theirs: _datasets(value, theirs, "data.eval_path"),
        "`data.eval_path`, `data.eval_split`; of one data set",
    ),
    "pretraining_dataset": Computed(_pretraining, "`data.path`, `data.format: text`, `data.streaming: true`"),
    "streaming": Becomes("data.streaming"),
    "val_set_size": Computed(_val_set_size, "below 1 `data.eval_fraction`; else the last rows, of a hub data set"),
    "train_on_inputs": Covered("in data.train_on", "false: `data.train_on: responses`; true: `all`"),
    "dataset_prepared_path": Covered("tokenised rows are kept in the cache of the library datasets"),
    **alike("dataset_processes dataset_num_proc", Becomes("training.dataset_num_proc")),
    "dataset_exact_deduplication": Untranslated("remove equal rows from the file beforehand."),
    "shuffle_merged_datasets": Chooses({True: {}}, shared.NEW_ORDER),
    "curriculum_sampling": Untranslated(shared.NEW_ORDER),
    "min_sample_len": Untranslated("leave short rows out of the file."),
    "push_dataset_to_hub": Untranslated("only adapters are pushed: training.push_to_hub."),
    "hf_use_auth_token": Covered("the hub's client reads HF_TOKEN"),
    "skip_prepare_dataset": shared.TEXT_ONLY,
    "sample_packing": Becomes("training.packing"),
    "eval_sample_packing": Becomes("training.eval_packing"),
    **alike(
        "max_packed_sequence_len sample_packing_eff_est sample_packing_seq_len_multiplier sample_packing_group_size "
        "sample_packing_bin_size sample_packing_sequentially multipack_real_batches batch_flattening total_num_tokens "
        "total_supervised_tokens",
        Covered("says how rows are packed; packed rows here are full ones of model.max_seq_length"),
    ),
    "pad_to_sequence_len": Covered("rows are padded to the longest of their micro-batch; padding is never trained"),
    "chat_template": Computed(
        _template, "`chatml`: `model.chat_template`; `jinja`: as chat_template_jinja; `tokenizer_default`: nothing"
    ),
    "chat_template_jinja": Covered("is chat_template's, where that says jinja"),
    "chat_template_path": Computed(shared.template_file, "`model.chat_template`, for a file"),
    "chat_template_kwargs": shared.TEMPLATE_KWARGS,
    "default_system_message": shared.SYSTEM_PROMPT,
    "special_tokens": Computed(_special_tokens, "pad_token: nothing to write; others are the tokenizer's own"),
    "tokens": shared.ADDED_TOKENS,
    "added_tokens_overrides": Untranslated("save a tokenizer that has them beside the model.", off=()),
    "resize_token_embeddings_to_32x": Untranslated("embeddings keep the model's size."),
    "eot_tokens": Covered("an answer is trained up to the token with which the chat template ends it"),
    # batch
    "micro_batch_size": _BATCH,
    "gradient_accumulation_steps": _BATCH,
    "batch_size": Becomes("batch.global_size", "rows per step, as axolotl's earlier releases meant it"),
    "eval_batch_size": Becomes("training.per_device_eval_batch_size"),
    # training
    "num_epochs": Becomes("training.num_train_epochs"),
    "optimizer": Becomes("training.optim", refused=_OWN_OPTIMIZERS),
    "lr_scheduler": Becomes(
        "training.lr_scheduler_type", refused=alike("one_cycle rex log_sweep", _OWN.format("lr_scheduler_type"))
    ),
    "cosine_min_lr_ratio": Computed(
        _least_rate,
        "`training.lr_scheduler_type: cosine_with_min_lr`, `training.lr_scheduler_kwargs: {min_lr_rate: …}`",
    ),
    **alike("cosine_constant_lr_ratio lr_quadratic_warmup", Untranslated(_OWN.format("lr_scheduler_type"))),
    "eta_min": Untranslated("is read by no schedule of transformers: training.lr_scheduler_kwargs.", off=()),
    "adam_eps": Becomes("training.adam_epsilon"),
    "bf16": Chooses(
        {"auto": {}, True: {"training.bf16": True}, False: {"training.bf16": False}, "full": {"training.bf16": True}},
        "true, false or auto.",
        "auto is what the plan does",
    ),
    "fp16": Chooses({True: {"training.fp16": True}, False: {}}, "true or false."),
    "tf32": Chooses(
        {True: {"training.tf32": True}, False: {"training.tf32": False}, "auto": {}}, "true, false or auto."
    ),
    "bfloat16": Chooses({True: {"model.dtype": "bfloat16"}, False: {}}, "true or false."),
    "float16": Chooses({True: {"model.dtype": "float16"}, False: {}}, "true or false."),
    "torch_dtype": shared.DTYPE,
    "fp8": shared.FP8,
    "qat": Untranslated("quantisation-aware training is not done."),
    "activation_offloading": Covered("Unsloth's checkpointing offloads activations itself"),
    "auto_resume_from_checkpoints": Chooses({True: {"training.resume": "if_any"}, False: {}}, "true or false."),
    "saves_per_epoch": _each_epoch("save"),
    "evals_per_epoch": _each_epoch("eval"),
    "early_stopping_patience": Becomes("training.early_stopping_patience"),
    "loss_watchdog_threshold": Covered("logging.stop_on_divergence ends a run whose loss stays far above its median"),
    "loss_watchdog_patience": Covered("logging.stop_on_divergence ends a run whose loss stays far above its median"),
    "eval_table_size": Untranslated("evaluation.samples shows answers at the end.", off=(0,)),
    "eval_max_new_tokens": Becomes("evaluation.max_new_tokens"),
    "rl": Computed(_rl, "`method`, when it is known here; ipo: `method: dpo`, `training.loss_type: [ipo]`"),
    **alike("rl_beta dpo_beta", Becomes("training.beta")),
    "orpo_alpha": Becomes("training.beta", "TRL's name of ORPO's alpha"),
    "rpo_alpha": shared.sft_beside("rpo_alpha"),
    "kto_desirable_weight": Becomes("training.desirable_weight"),
    "kto_undesirable_weight": Becomes("training.undesirable_weight"),
    "dpo_use_weighting": Becomes("training.use_weighting"),
    "dpo_padding_free": Becomes("training.padding_free"),
    "dpo_label_smoothing": Untranslated(shared.SMOOTHED, off=(0,)),
    "precompute_ref_log_probs": Becomes("training.precompute_ref_log_probs"),
    "dpo_use_liger_kernel": shared.UNSLOTHS,
    "max_prompt_len": Covered("TRL cuts a prompt with its answer: model.max_seq_length"),
    **alike("trl vllm ebft simpo_gamma", _RL),
    "reward_model": Chooses({True: {"method": "reward"}, False: {}}, "true or false."),
    "center_rewards_coefficient": Becomes("training.center_rewards_coefficient"),
    "process_reward_model": Untranslated("this version trains language models; a script of your own can train others."),
    "num_labels": Untranslated(
        "this version trains language models; a script of your own can train a classifier.", off=()
    ),
    # processes
    **alike("fsdp_version dp_shard_size dp_replicate_size fsdp_final_state_dict_type", shared.SHARDED),
    **alike(
        "context_parallel_size tensor_parallel_size expert_parallel_size sequence_parallel_degree",
        Untranslated(shared.MODEL_PARALLEL, off=(1,)),
    ),
    "use_ray": Untranslated(shared.WITHOUT_RAY),
    "ray_num_workers": Untranslated(shared.WITHOUT_RAY, off=(1,)),
    # logging
    "wandb_project": Computed(_project, "`logging.report_to: wandb`, and `export WANDB_PROJECT=…`"),
    "wandb_name": Becomes("training.run_name"),
    "wandb_run_id": Untranslated(shared.WANDB.format("WANDB_RUN_ID"), off=()),
    "wandb_entity": Untranslated(shared.WANDB.format("WANDB_ENTITY"), off=()),
    "wandb_watch": Untranslated(shared.WANDB.format("WANDB_WATCH")),
    "wandb_log_model": Untranslated(shared.WANDB.format("WANDB_LOG_MODEL")),
    "use_wandb": Chooses({True: {"logging.report_to": "wandb"}, False: {}}, "true or false."),
    "use_tensorboard": Chooses({True: {"logging.report_to": "tensorboard"}, False: {}}, "true or false."),
    "use_swanlab": shared.SWANLAB,
    "strict": Covered("unknown keys are always refused"),
    "debug": Covered("--dry-run shows what would be started"),
}

AXOLOTL = Tool(
    name="axolotl",
    link="https://github.com/axolotl-ai-cloud/axolotl",
    needs=frozenset({"base_model"}),
    marks=frozenset({"sequence_len", "micro_batch_size", "datasets", "pretraining_dataset", "adapter", "num_epochs"}),
    keys=_KEYS,
    fields=True,
    method=method_of,
    families={
        "liger_": shared.UNSLOTHS,
        "flash_attn_": Covered(shared.ATTENTION),
        "swanlab_": shared.SWANLAB,
        "trackio_": Untranslated("logging.report_to: trackio, and its variables: export TRACKIO_PROJECT=…", off=()),
        "fp8_": shared.FP8,
        **alike("eaft_ use_eaft ebft_ diffusion", Untranslated(_OWN.format("loss_type"))),
        **alike("dsv4_ use_dsv4 use_glm nvfp4_ expert_parallel_", Untranslated(shared.OTHER_BASE)),
        **alike("lisa_ jagged_ relora_ reinit_", Untranslated(shared.ONLY_LORA)),
        **alike("use_otel otel_", Untranslated("logs/ and the report have what a run measures.")),
        "ray_": Untranslated(shared.WITHOUT_RAY, off=()),
        "sample_packing_": Covered("says how rows are packed"),
        **alike("dion_ qgalore_", Covered("belongs to an optimizer of axolotl's own")),
    },
    defaults={"adapter": "none", "sequence_len": 512, "micro_batch_size": 1, "num_epochs": 1, "lr_scheduler": "cosine"},
)
