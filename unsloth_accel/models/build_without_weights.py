"""The program that builds a model without weights and tells its parameters; `models.counted` runs it.

It imports torch and transformers, so it is a process of its own: the rooms that plan import neither. It reads one JSON
from stdin (`values` of a config.json without its quantization; `directory`, where the model's own code is trusted) and
writes one to stdout, which `describe` explains, or `{"error": class, "text": words}`; a KeyError is a
model_type that the installed transformers doesn't know, `NoLanguageModel` one that isn't trained token by token.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..capabilities.probe import available

if TYPE_CHECKING:
    import torch

CLASSES = ("AutoModelForImageTextToText", "AutoModelForCausalLM", "AutoModelForMultimodalLM")
"""Auto classes in the order in which Unsloth's FastModel tries them (unsloth/models/loader.py: `is_vlm`)."""
REACHED = ("self_attn", "attention", "attn", "mixer", "mlp", "feed_forward", "ffn", "dense")
"""Words in a linear layer's path without which Unsloth gives it no LoRA (unsloth_zoo/peft_utils.py:
`get_peft_regex`)."""
ROUTERS = ("router", "gate")
NUMBERS = (
    *("hidden_size", "intermediate_size", "moe_intermediate_size", "vocab_size", "max_position_embeddings"),
    *("num_attention_heads", "num_key_value_heads", "head_dim"),
)
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""Names by which configs tell the number of experts of a layer."""
ROUTED = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_top_k", "moe_topk", "moe_k")
"""Names by which configs tell the number of experts of a token."""
_PREFIXED = ("paligemma",)
"""Models that attend to a whole prompt both ways, and take a text for one (transformers 5.17, `token_type_ids`)."""
SCANS = ("A_log", "dt_bias")
"""Parameters that a state-space or linear-attention layer has of its own."""


class NoLanguageModel(Exception):
    """A config of which transformers builds no model that predicts the next token."""


class SeesLaterTokens(Exception):
    """A model whose attention goes both ways where it is given no kinds of tokens, as text has none."""


def describe(model: torch.nn.Module) -> dict[str, Any]:
    """Tell what `model`, a PreTrainedModel on the meta device, consists of.

    `tensors` are [name, shape, part], where part is `embeddings`, `head`, `linear` (in a decoder block, and Unsloth
    gives it LoRA), `experts`, `tower`, or `other`; a tied head counts once. `blocks` is the path of the list of decoder
    blocks, `num_layers` their number, `block_class` the class of most of them. `values` are those of the text model's
    config that sizes are read from.
    """
    text = _language_model(model)
    paths = {id(module): name for name, module in model.named_modules()}
    blocks = _blocks(text)
    if blocks is None:
        raise ValueError("it has no list of decoder blocks")
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    own = {id(parameter): "embeddings" for parameter in inputs.parameters()}
    if outputs is not None:
        own = {id(parameter): "head" for parameter in outputs.parameters()} | own
    inner = {id(parameter) for parameter in text.parameters()}
    linear = dict(_linear(blocks, f"{paths[id(blocks)]}."))
    composed = model.config.get_text_config() is not model.config
    tensors = []
    for name, parameter in model.named_parameters():
        part = own.get(id(parameter))
        if part is None and composed and id(parameter) not in inner:
            part = "tower"
        elif part is None and ".experts." in name:
            part = "experts"
        tensors.append([name, [*parameter.shape], part or ("linear" if name in linear else "other")])
    classes = Counter(type(block).__name__ for block in blocks)
    return {
        "model_class": type(model).__name__,
        "block_class": classes.most_common(1)[0][0],
        "blocks": paths[id(blocks)],
        "num_layers": len(blocks),
        "tied": outputs is not None and outputs.weight is inputs.weight,
        "reached": any(linear.values()),
        "tensors": tensors,
        "values": _numbers(model.config.get_text_config()),
    }


def _numbers(config: Any) -> dict[str, int]:
    """Return the sizes that `config` tells by its attributes, of which many answer to several names."""
    found = {}
    for key in (*NUMBERS, *ROUTED):
        with suppress(Exception):  # none of that name, or another for each layer, which is told by a kind of its own
            value = getattr(config, key)
            if type(value) is int:
                found[key] = value
    return found


def _language_model(model: Any) -> Any:
    """Return the module in `model` that turns embedded tokens into hidden states."""
    found = model.get_decoder()
    return model if found is None or not any(True for _ in found.parameters()) else found


def _blocks(text: torch.nn.Module) -> torch.nn.ModuleList | None:
    """Return the list of modules with the most parameters, the outer one of two."""
    from torch import nn

    lists = [module for module in text.modules() if isinstance(module, nn.ModuleList) and len(module)]
    return max(lists, key=lambda one: sum(p.numel() for p in one.parameters()), default=None)


def _linear(blocks: torch.nn.ModuleList, path: str) -> Iterator[tuple[str, bool]]:
    """Yield names of the weights of linear layers in the blocks that get LoRA, and whether Unsloth's words reach them.

    Where they reach none at all, as in GPT-2, all linear layers are named. Routers are none of them, nor the layers of
    a state-space mixer, whose own kernels read the weights beside an adapter; linear attention (`linear_attn`) is none.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    scans = [name for name, module in blocks.named_modules() if any(hasattr(module, own) for own in SCANS)]
    found = {}
    for name, module in blocks.named_modules():
        parent, _, leaf = name.rpartition(".")
        if not isinstance(module, (nn.Linear, Conv1D)) or leaf in ROUTERS or not _maps(module):
            continue
        if any(name.startswith(f"{scan}.") and "attn" not in scan for scan in scans):
            continue
        found[f"{path}{name}.weight"] = any(word in parent for word in REACHED)
    named = any(found.values()) and any(word in path for word in ("model.layers.", "language", "text"))
    for name, reached in found.items():
        if reached or not named:
            yield name, named


def _maps(module: Any) -> bool:
    """Return whether a linear layer makes of one input row one of outputs, as PEFT's LoRA beside it does: not one whose
    class divides both in groups (DeepSeek-V4's o_a_proj)."""
    import torch

    if not isinstance(module, torch.nn.Linear) or type(module).forward is torch.nn.Linear.forward:
        return True
    row = torch.empty(1, 1, module.in_features, device=module.weight.device, dtype=module.weight.dtype)
    try:
        return bool(module(row).shape == (1, 1, module.out_features))
    except RuntimeError as error:  # of shapes; what it asks for beside them it may be given in the model
        return isinstance(error, NotImplementedError) or "meta" in str(error)
    except Exception:
        return True


def build(values: Mapping[str, Any], directory: str | None) -> torch.nn.Module:
    """Build the model of a config.json on the meta device, with the code in `directory` where it is trusted."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    trusted = directory is not None
    if trusted:
        config = transformers.AutoConfig.from_pretrained(directory, trust_remote_code=True, local_files_only=True)
        config.__dict__.pop("quantization_config", None)
    elif values["model_type"] not in transformers.CONFIG_MAPPING:
        raise KeyError(values["model_type"])
    else:
        others = {key: value for key, value in values.items() if key != "model_type"}
        config = transformers.AutoConfig.for_model(values["model_type"], **others)
    automatic = [getattr(transformers, name) for name in CLASSES if hasattr(transformers, name)]
    known = available("the configs of an auto class", needed=False)  # stdout is for the answer
    fitting = [one for one in automatic if known and type(config) in one._model_mapping]
    if (not fitting and not trusted) or config.is_encoder_decoder:
        raise NoLanguageModel(type(config).__name__)
    if config.model_type in _PREFIXED:
        raise SeesLaterTokens(type(config).__name__)
    with torch.device("meta"):
        chosen = fitting[0] if fitting else transformers.AutoModelForCausalLM
        return chosen.from_config(config, trust_remote_code=trusted, attn_implementation="eager")


def main() -> None:
    """Answer stdin on stdout; what other packages print goes to stderr."""
    answer, sys.stdout = sys.stdout, sys.stderr
    given = json.load(sys.stdin)
    try:
        told = describe(build(given["values"], given["directory"]))
    except Exception as error:  # whatever a model's code raises is told, by its kind
        told = {"error": type(error).__name__, "text": str(error)}
    json.dump(told, answer)


if __name__ == "__main__":
    main()
