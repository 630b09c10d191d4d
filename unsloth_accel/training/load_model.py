"""Loading of a run's model by Unsloth, and its adapter."""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..artifacts.fused_experts import fused_experts, take_as_given
from ..capabilities.probe import available
from ..config.lora_fields import given_to_peft, reads_the_base, trained_whole
from ..config.run_config import PROJECTIONS, RunConfig
from ..config.start_adapter import Adapter, find_adapter, model_of
from ..data.chat_template import choose_template, tokens_to_add
from ..errors import ConfigError, Problem, first_line, raise_errors
from ..methods import METHODS
from ..models.added_tokens import added_tokens_problems, trained_rows
from .model_kind import kind_of, load_on_cpu, settle_routers
from .score_model import add_score_adapter, load_score_model

CHECKPOINTING: dict[str, str | bool] = {"unsloth": "unsloth", "true": True, "false": False}
"""Value that Unsloth takes for each `model.gradient_checkpointing`."""


def load_model(run: RunConfig) -> tuple[Any, Any]:
    """Load model and tokenizer, with the run's added tokens and chat template; where the strategy divides the weights
    each process loads its part. Raises `ConfigError` for tokens or a template that don't fit them."""
    adapter = find_adapter(run.model.name)
    model, tokenizer = _load(run, adapter)
    settle_routers(model)
    _add_tokens(model, tokenizer, run, adapter)
    return model, choose_template(tokenizer, run)


def _load(run: RunConfig, adapter: Adapter | None) -> tuple[Any, Any]:
    import torch
    import unsloth
    from transformers import set_seed

    from ..adapters.ddp_settings import device_map
    from ..adapters.fsdp2.loading import loading_of
    from ..adapters.towers import tokenizer_only

    name = model_of(run.model.name)
    # Absolute, so that the saved adapter finds its base model from any directory.
    name = str(Path(name).resolve()) if Path(name).is_dir() else name
    dtype = getattr(torch, run.model.dtype) if run.model.dtype else None
    if METHODS[run.method].has_score:  # a new head, which is to be equal on every rank and in every run
        set_seed(run.lora.random_state)
    plain = {"dtype": dtype or torch.float32, "remote_code": run.model.trust_remote_code}
    if _scores_plainly(run):
        return load_score_model(name, adapter.tokenizer if adapter else name, **plain)
    kind = kind_of(name, remote_code=run.model.trust_remote_code)
    if kind.tower and _on_cpu():
        return load_on_cpu(name, adapter.tokenizer if adapter else name, **plain)
    loader = unsloth.FastModel if kind.tower else unsloth.FastLanguageModel
    placed = device_map() if run.distributed.device != "cpu" else None
    reads = reads_the_base(use_dora=run.lora.use_dora, init_lora_weights=run.lora.init_lora_weights)
    loading = loading_of(load_in_4bit=run.model.load_in_4bit, mixture=kind.mixture, reads_base=reads)
    with loading, tokenizer_only() if kind.tower else nullcontext():
        model, tokenizer = loader.from_pretrained(
            model_name=name,
            max_seq_length=run.model.max_seq_length,
            dtype=dtype,
            load_in_4bit=run.model.load_in_4bit,
            trust_remote_code=run.model.trust_remote_code,
            **({"device_map": placed} if placed else {}),
            **({"tokenizer_name": adapter.tokenizer} if adapter else {}),
            **({"num_labels": 1} if METHODS[run.method].has_score else {}),
        )
    return model, getattr(tokenizer, "tokenizer", tokenizer) if kind.tower else tokenizer


def _add_tokens(model: Any, tokenizer: Any, run: RunConfig, adapter: Adapter | None) -> None:
    """Give `model` embeddings of the tokens that `run` adds to `tokenizer`, or that its adapter was trained with.

    New ones begin as the mean of the others, the same on every rank. Raises `ConfigError` where the run can't train
    them.
    """
    raise_errors([*added_tokens_problems(run)])
    if adapter and (rows := trained_rows(adapter.directory)) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(rows, mean_resizing=False)
    if new := tokens_to_add(tokenizer, run):
        from unsloth_zoo.tokenizer_utils import add_new_tokens

        add_new_tokens(model, tokenizer, new_tokens=new)


def add_adapter(model: Any, run: RunConfig) -> Any:
    """Return `model` with the run's LoRA adapter: a new one, or the one that the run begins with.

    Raises `ConfigError`, on every rank, where that one's weights don't fit.
    """
    import unsloth

    from ..adapters.kept_activations import blocks, keep_unless_chosen
    from ..adapters.towers import towers_of

    adapter = find_adapter(run.model.name)
    modules, whole = run.lora.target_modules, run.lora.modules_to_save
    said = {
        "r": run.lora.r,
        "lora_alpha": run.lora.alpha,
        # Of modules_to_save Unsloth forgets, where tokens were added, that embedding and head are tied
        # (unsloth/models/llama.py: `_need_to_train_embeddings`); as targets it trains the same whole.
        "target_modules": list(dict.fromkeys([*(PROJECTIONS if modules == "all-linear" else modules), *whole])),
        "use_rslora": run.lora.use_rslora,
        **given_to_peft(replace(run.lora, modules_to_save=[])),
    }
    made: dict[str, Any] = (said if adapter is None else _made_as(adapter)) | {"lora_dropout": run.lora.dropout}
    if (towers := towers_of(model)) and _on_cpu():  # on a GPU Unsloth goes by finetune_vision_layers
        made["exclude_modules"] = rf"({'|'.join(map(re.escape, towers))})\..*"
    checkpointing, seed = CHECKPOINTING[run.model.gradient_checkpointing], run.lora.random_state
    take_as_given()
    if adapter is None and _on_cpu() and run.lora.target_parameters is None:  # on a GPU Unsloth finds them
        made |= {"target_parameters": experts} if (experts := fused_experts(model, made["target_modules"])) else {}
    if _scores_plainly(run):
        model = add_score_adapter(model, seed=seed, checkpointing=bool(checkpointing), **made)
    else:
        model = unsloth.FastLanguageModel.get_peft_model(
            model, **made, use_gradient_checkpointing=checkpointing, random_state=seed
        )
    _save_embeddings_once(model)
    for path in towers_of(model):  # PEFT's bias=all would train a tower's biases, which text gives no gradient
        model.get_submodule(path).requires_grad_(False)
    asked = run.model.keep_activations
    if asked != "auto" and checkpointing:
        # Unsloth heeds its own variable, which comes before.
        keep_unless_chosen(model, len(blocks(model)) if asked == "all" else int(asked))
    if adapter:
        _load_weights(model, adapter)
    return model


def _save_embeddings_once(model: Any) -> None:
    """Let `model` save embeddings that are trained whole as they are trained, and no more: where they were resized PEFT
    adds the base's own, and both once more, which is three times the size."""
    whole = trained_whole(model.peft_config["default"].modules_to_save)
    if whole and available("embeddings saved once"):
        model.save_pretrained = partial(model.save_pretrained, save_embedding_layers=False)


def _on_cpu() -> bool:
    """Return whether Unsloth was imported for training on a CPU."""
    import unsloth

    return bool(unsloth.DEVICE_TYPE == "cpu")


def _scores_plainly(run: RunConfig) -> bool:
    """Return whether the run's model has a score head that Unsloth can't load."""
    import torch

    return METHODS[run.method].has_score and not torch.cuda.is_available()


def _made_as(adapter: Adapter) -> dict[str, Any]:
    """Return what `get_peft_model` needs to make an adapter as this one was made: all that its config says of LoRA."""
    from peft import LoraConfig, PeftConfig

    config, usual = LoraConfig.from_pretrained(str(adapter.directory)), LoraConfig()
    of_all_kinds = {field.name for field in fields(PeftConfig)}
    of_this_run = {"lora_dropout", "init_lora_weights", "runtime_config"}
    said = {
        field.name: getattr(config, field.name)
        for field in fields(LoraConfig)
        if field.init and field.name not in of_all_kinds | of_this_run
    }
    changed = {name: value for name, value in said.items() if value != getattr(usual, name)}
    modules = config.target_modules
    whole = {"target_modules": modules if isinstance(modules, str) else sorted(modules or ())}
    if "ensure_weight_tying" in said:  # left out, Unsloth ties on a GPU what was trained as two tables on a CPU
        whole["ensure_weight_tying"] = said["ensure_weight_tying"]
    return changed | whole | {"r": config.r, "lora_alpha": config.lora_alpha}


def _load_weights(model: Any, adapter: Adapter) -> None:
    """Give the adapter of `model`, which is still whole on every rank, the weights of `adapter`, all of them."""
    from peft import load_peft_weights, set_peft_model_state_dict

    try:
        told = set_peft_model_state_dict(model, load_peft_weights(str(adapter.directory), device="cpu"))
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        fault = ", ".join([*told.unexpected_keys, *(name for name in told.missing_keys if name in trained)])
    except (RuntimeError, ValueError, KeyError, OSError) as error:  # other shapes, or a damaged file
        fault = first_line(error)
    if fault:
        consequence = f"its weights don't fit its base, {adapter.base}: {fault[:300]}."
        fix = f"the model that it was trained on, as base_model_name_or_path in {adapter.directory}/adapter_config.json"
        raise ConfigError(Problem(key="model.name", value=adapter.name, consequence=consequence, fix=fix))
